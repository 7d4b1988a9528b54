"""Requests joined with routing: which token rows of a trace each simulated request uses (docs/reference/trace.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numba import njit

from moesim.scenario import Scenario
from moesim.trace import RoutingTrace


@dataclass(frozen=True)
class TokenRows:
    """Which trace rows each simulated request uses: rows ``prompt_start`` to ``prompt_start + prompt_count``, in order.

    It begins ``offset`` rows in and wraps around. Likewise for the tokens that it decodes. All int64 [requests].
    """

    prompt_start: np.ndarray
    prompt_count: np.ndarray
    decode_start: np.ndarray
    decode_count: np.ndarray
    offset: np.ndarray

    @classmethod
    def none(cls, n_requests: int) -> TokenRows:
        """Return what stands in for rows where there is no trace: all tokens have row 0."""
        zeros, ones = np.zeros(n_requests, np.int64), np.ones(n_requests, np.int64)
        return cls(zeros, ones, zeros, ones, zeros)

    def span(self, requests: np.ndarray, prompt: np.ndarray, past: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the rows of *tokens* of each of *requests* after its first *past* ones, one after the other.

        *prompt*: tokens of its prompt; those behind it are decoded ones (which a preempted request computes again).
        """
        owner = np.repeat(np.arange(len(requests)), tokens)
        at = np.arange(len(owner)) - np.repeat(np.cumsum(tokens) - tokens, tokens) + past[owner]
        request = requests[owner]
        rows = self.prompt_start[request] + (at + self.offset[request]) % self.prompt_count[request]
        behind = at >= prompt[owner]
        if behind.any():
            rows[behind] = self.decode(request[behind], (at - prompt[owner])[behind])
        return rows

    def decode(self, requests: np.ndarray, i: np.ndarray) -> np.ndarray:
        """Return the row of the *i*-th decoded token of each of *requests*."""
        return _wrapped(requests, i, self.decode_start, self.offset, self.decode_count)

    def padding(self, n_tokens: int, n_rows: int) -> np.ndarray:
        """Return the rows of *n_tokens* that only fill up a step, of the trace's *n_rows*: always the same.

        What such tokens are is left in buffers from earlier steps.
        """
        return np.arange(n_tokens) % n_rows

    def source(self) -> TokenRows:
        """Return where an island's steps get their rows from: these, which do not depend on the step."""
        return self

    def next_step(self) -> None:
        """Nothing changes from step to step."""


@njit(cache=True)
def _wrapped(requests, i, start, offset, count):  # type: ignore[no-untyped-def]
    """Return ``start + (i + offset) % count`` of each of *requests*."""
    rows = np.empty(len(requests), np.int64)
    for at, request in enumerate(requests):
        rows[at] = start[request] + (i[at] + offset[request]) % count[request]
    return rows


def join(scenario: Scenario, trace: RoutingTrace, requests: pd.DataFrame) -> tuple[pd.DataFrame, TokenRows]:
    """Return the request table and the trace rows of each request (docs/reference/trace.md)."""
    sources = _sources(scenario, trace)
    if scenario.traced.join == "paired":
        if len(requests) > len(sources):
            raise scenario.error("requests.count", f"{len(requests)} is more than the {len(sources)} requests of the "
                                                   f"evaluation part of the trace; lower it, or use join: resampled")
        drawn, offset = sources.iloc[: len(requests)], np.zeros(len(requests), np.int64)
        requests = requests.assign(prompt_tokens=drawn["prompt_count"].to_numpy(),
                                   output_tokens=drawn["decode_count"].to_numpy() + 1)
    else:
        picks, again = _draw(scenario, requests, sources)
        drawn = sources.iloc[picks]
        cycle = (drawn["prompt_count"] * drawn["decode_count"]).to_numpy(np.int64)  # any row of either is as likely
        offset = np.where(again, np.random.default_rng([scenario.seed, 3]).integers(cycle), 0)
    columns = ("prompt_start", "prompt_count", "decode_start", "decode_count")
    return requests, TokenRows(**{c: drawn[c].to_numpy(np.int64) for c in columns}, offset=offset)


def _sources(scenario: Scenario, trace: RoutingTrace) -> pd.DataFrame:
    """Return one row per traced request: its domain and where its prompt and decode rows lie."""
    tokens = trace.tokens[["request", "phase"]].reset_index(drop=True)
    tokens = tokens.assign(domain=trace.tokens["domain"].astype(object).to_numpy(), row=np.arange(trace.n_tokens))
    spans = tokens.groupby(["request", "phase"])["row"].agg(["min", "size"]).unstack("phase")
    for phase, name in ((0, "prefill"), (1, "decode")):
        if ("min", phase) not in spans or spans["min", phase].isna().all():
            if not scenario.traced.any_phase:
                raise scenario.error("trace", f"the trace has no {name} rows; set trace.any_phase: true to use its "
                                              f"other rows in their place (the result says so)")
            spans["min", phase], spans["size", phase] = spans["min", 1 - phase], spans["size", 1 - phase]
    table = pd.DataFrame({"domain": tokens.groupby("request")["domain"].first(),
                          "prompt_start": spans["min", 0], "prompt_count": spans["size", 0],
                          "decode_start": spans["min", 1], "decode_count": spans["size", 1].fillna(0)})
    table["decode_start"] = table["decode_start"].fillna(table["prompt_start"])
    table = table.dropna(subset=["prompt_start"])
    table = table if scenario.traced.join == "paired" else table[table["decode_count"] > 0]
    if table.empty:
        raise scenario.error("trace", "no request of the evaluation part has both prompt and decode rows; capture "
                                      "whole requests, or keep one phase and set trace.any_phase: true")
    return table


def _draw(scenario: Scenario, requests: pd.DataFrame, sources: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return which of *sources* each request draws (of its domain, if it has one), and whether one before it drew it.

    Requests that share a source would choose the same experts at the same time: sources are dealt in a random order,
    all before any a second time, and a request that draws one again begins elsewhere in it.
    """
    rng = np.random.default_rng([scenario.seed, 2])
    picks, again = np.empty(len(requests), np.int64), np.empty(len(requests), bool)
    if "domain" not in requests:
        groups = [(np.arange(len(requests)), np.arange(len(sources)))]
    else:
        missing = sorted(map(str, set(requests["domain"]) - set(sources["domain"])))
        if missing:
            known = ", ".join(sorted(map(str, set(sources["domain"]))))
            raise scenario.error("requests", f"domain {missing[0]!r} is not in the evaluation part of the trace, which "
                                             f"has {known}; correct it")
        groups = [(members, np.flatnonzero(sources["domain"] == domain))
                  for domain, members in requests.groupby("domain").indices.items()]
    for members, pool in groups:
        rounds = -(-len(members) // len(pool))
        picks[members] = np.concatenate([rng.permutation(pool) for _ in range(rounds)])[: len(members)]
        again[members] = np.arange(len(members)) >= len(pool)
    return picks, again
