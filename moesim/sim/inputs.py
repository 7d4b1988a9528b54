"""From a scenario to what a run needs: evaluation trace, placement, requests and their token rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from moesim import balanced
from moesim import placement as placing
from moesim import requests as arrivals
from moesim.placement.placement import Placement
from moesim.pools import naming
from moesim.scenario import Scenario
from moesim.serving.pool import block_hashes
from moesim.sim.dealing import Decks
from moesim.trace import RoutingTrace, read_trace


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
        return self.decode_start[requests] + (i + self.offset[requests]) % self.decode_count[requests]

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


class Routing(NamedTuple):
    """Which experts tokens choose, and where these are as a run begins."""

    trace: RoutingTrace
    placement: Placement


@dataclass(frozen=True)
class Inputs:
    """What a run reads and never changes. ``routing``: None for a model without experts.

    ``prefill_placement``: where experts are on the devices that only prefill, if there are such.
    """

    scenario: Scenario
    routing: Routing | None
    requests: pd.DataFrame
    rows: TokenRows | Decks
    prefill_placement: Placement | None = None

    @property
    def trace(self) -> RoutingTrace:
        """Return the trace of a model with experts."""
        assert self.routing is not None, "asked only of models with experts"
        return self.routing.trace

    @property
    def placement(self) -> Placement:
        """Return the placement of a model with experts."""
        assert self.routing is not None, "asked only of models with experts"
        return self.routing.placement

    @property
    def pools(self) -> dict[str, Inputs]:
        """Return the inputs of the devices that prefill and of those that decode; of all under "", if all do both."""
        pools = {name: replace(self, scenario=scenario) for name, scenario in self.scenario.pools.items()}
        if self.prefill_placement is not None and self.routing is not None:
            pools["prefill"] = replace(pools["prefill"], routing=self.routing._replace(
                placement=self.prefill_placement))
        return pools

    @property
    def of_island(self) -> Inputs:
        """Return the inputs of one island: the same for each."""
        return replace(self, scenario=self.scenario.of_island)

    @property
    def of_stage(self) -> Inputs:
        """Return the inputs of one stage of a pipeline: the same for each."""
        return replace(self, scenario=self.scenario.of_stage)

    def hashes(self, request: int) -> list[int]:
        """Return one number per full KV block of *request*'s tokens: equal if it and all before it are."""
        return self._hashes[request]

    @cached_property
    def _hashes(self) -> list[list[int]]:
        block, table = self.scenario.kv.block, self.requests
        return [block_hashes(np.concatenate([np.asarray(p, np.int64), np.asarray(o, np.int64)]), block)
                for p, o in zip(table["prompt_ids"], table["output_ids"], strict=True)]


def prepare(scenario: Scenario, requests: pd.DataFrame | None = None) -> Inputs:
    """Return the inputs of *scenario*: read the trace, split it, place the experts, join requests with routing.

    *requests*: a request table in place of the scenario's. Raises ``ConfigError`` (with file:line where known) if the
    trace does not fit the model or the requests.
    """
    requests = _requests(scenario, requests)
    if scenario.trace is None:
        return Inputs(scenario, None, requests, TokenRows.none(len(requests)))
    trace = read(scenario)
    fraction = scenario.traced.profile_fraction
    try:
        profile = trace.profile(fraction, scenario.seed)
        evaluation = _by_request(trace.evaluation(fraction, scenario.seed))
    except ValueError as error:
        raise scenario.error("trace", str(error)) from None
    placements = []
    for name, pool in scenario.pools.items():
        with naming(name):
            placements.append(_placement(pool.of_stage, profile))
    prefill = placements[0] if len(placements) > 1 else None
    if scenario.traced.balanced:
        return Inputs(scenario, Routing(evaluation, placements[-1]), requests, Decks.of(evaluation), prefill)
    requests, rows = _join(scenario, evaluation, requests)
    return Inputs(scenario, Routing(evaluation, placements[-1]), requests, rows, prefill)


def _requests(scenario: Scenario, given: pd.DataFrame | None) -> pd.DataFrame:
    """Return the request table: the *given* one, or that of *scenario*."""
    try:
        requests = arrivals.table(scenario.requests, scenario.seed) if given is None else given
    except ValueError as error:
        raise scenario.error("requests", str(error)) from None
    if scenario.kv.prefix_cache and "prompt_ids" not in requests:
        raise scenario.error("kv.prefix_cache", "needs the tokens of requests; replay a file with columns prompt_ids "
                                                "and output_ids, or set it to false")
    return requests


def read(scenario: Scenario) -> RoutingTrace:
    """Return the trace of *scenario*. Raises ``ConfigError`` if it does not fit the model."""
    spec, model = scenario.traced, scenario.model
    try:
        if spec.balanced:
            return balanced.deal(model.experts_per_layer, model.top_k, scenario.seed, model.name)
        trace = spec.synthetic.generate() if spec.synthetic else read_trace(str(spec.path))
    except ValueError as error:
        raise scenario.error("trace", str(error)) from None
    for what, traced, simulated in (("MoE layers", trace.n_layers, model.n_moe_layers),
                                    ("experts", _in_words(trace.sizes), _in_words(model.experts_per_layer)),
                                    ("top_k", trace.top_k, model.top_k)):
        if traced != simulated:
            raise scenario.error("trace", f"the trace has {traced} {what}, model {model.name} has {simulated}; "
                                          f"choose the model that was traced (widths may differ: trace.scaled)")
    traced_model = trace.meta.get("model")
    if traced_model != model.name and not spec.scaled:
        raise scenario.error("trace", f"the trace was taken from {traced_model!r}, the model is {model.name!r}; "
                                      f"set trace.scaled: true to put its routing on this model's sizes")
    return trace


def _in_words(sizes: np.ndarray) -> str:
    """Return the experts of a layer, or of each if they differ."""
    return str(sizes[0]) if (sizes == sizes[0]).all() else str(sizes.tolist())


def _by_request(trace: RoutingTrace) -> RoutingTrace:
    """Return *trace* with the rows of a request together: prompt, then decode, each in order of position."""
    tokens = trace.tokens
    order = np.lexsort((tokens["position"], tokens["phase"], tokens["request"]))
    return trace if np.array_equal(order, np.arange(len(order))) else trace.select(order)


def _placement(scenario: Scenario, profile: RoutingTrace) -> Placement:
    spec, machine, model = scenario.placed, scenario.hardware, scenario.model
    try:
        if spec.path is not None:
            placement = Placement.load(spec.path)
        else:
            nodes = machine.devices_per_node if machine.nodes > 1 else None
            placement = placing.solve(profile, machine.n_devices, solver=spec.solver, seed=scenario.seed,
                                      devices_per_node=nodes, bound=False)
    except ValueError as error:
        raise scenario.error("placement", str(error)) from None
    found, wanted = ((len(sizes), _in_words(sizes), n) for sizes, n in (
        (placement.sizes, placement.n_devices), (model.experts_per_layer, machine.n_devices)))
    if found != wanted:
        raise scenario.error("placement.path", f"the placement is for {found} layers, experts and devices; "
                                               f"the scenario has {wanted}; solve it again for this machine")
    return placement


def _join(scenario: Scenario, trace: RoutingTrace, requests: pd.DataFrame) -> tuple[pd.DataFrame, TokenRows]:
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
