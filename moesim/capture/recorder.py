"""Record the expert choices of a PyTorch model by forward hooks, without touching what it computes.

A pass is one forward of the recorded module. A pass with an empty cache begins one request per row; a pass with
a filled cache continues the rows of the pass before. Letters: B rows, S new positions, R real tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from moesim.capture.gates import Site, check_capacity, checked_ranked, find_gates, rank
from moesim.capture.inputs import arguments, newly_done, past_length, real_tokens, stop_tokens, token_ids
from moesim.trace import DECODE, PREFILL, RoutingTrace


@contextmanager
def record(
    model: nn.Module, ranked: int | None = None, stop_ids: Iterable[int] | None = None
) -> Iterator[Recorder]:
    """Record every gate of *model* while the `with` block runs; the hooks are removed at its end.

    *ranked* candidates per layer are kept with their probabilities (top_k if None). *stop_ids* are the tokens
    after which a row of a running batch is finished (those of `model.generation_config` if None).
    Generation needs a cache (`use_cache=True`), sampling or greedy search; beam search reorders rows and is not
    supported. A decode step is a pass of one new position on a filled cache; longer ones are chunks of a prompt.
    Raises ValueError if the model has no known gate or *ranked* does not fit it.
    """
    sites = find_gates(model)
    recorder = Recorder(sites, checked_ranked(sites, ranked), stop_tokens(model, stop_ids), type(model).__name__)
    handles = [
        model.register_forward_pre_hook(recorder.begin, with_kwargs=True),
        model.register_forward_hook(recorder.finish),
    ]
    handles += [site.module.register_forward_hook(recorder.gate_hook(site)) for site in sites]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Rows:
    """The requests in the rows of the running batch: ids, tokens seen, finished or not, each [B]."""

    request: np.ndarray
    seen: np.ndarray
    done: np.ndarray
    cached: int = 0  # positions in the cache after the last pass, padding included
    last: np.ndarray | None = None  # token ids of the last prefill


@dataclass
class Pass:
    """One forward pass: which of its B*S rows are real tokens, and per layer what their gate chose."""

    real: np.ndarray
    columns: dict[str, Any]
    layers: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


@dataclass
class Recorder:
    """Collect passes and turn them into a RoutingTrace. Made by `record`."""

    sites: list[Site]
    n_ranked: int
    stop_and_fill: tuple[frozenset[int], frozenset[int]]
    model_name: str
    n_requests: int = 0
    n_passes: int = 0
    _rows: Rows | None = None
    _pass: Pass | None = None
    _tokens: list[pd.DataFrame] = field(default_factory=list)
    _experts: list[np.ndarray] = field(default_factory=list)
    _probs: list[np.ndarray] = field(default_factory=list)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which tokens this pass works on (a forward pre-hook of the recorded module)."""
        given = arguments(module, args, kwargs)
        ids = token_ids(given)
        past, real = past_length(given.get("past_key_values")), real_tokens(given.get("attention_mask"), ids.shape)
        rows = self._rows = self._continue(past, ids) if past else self._start(ids)
        decode = past > 0 and ids.shape[1] == 1
        if decode:
            rows.done = newly_done(ids[:, 0], rows.done, real[:, 0], *self.stop_and_fill)
        else:
            rows.done[:] = False
        real &= ~rows.done[:, None]
        position = rows.seen[:, None] + real.cumsum(1) - 1
        rows.seen, rows.cached = rows.seen + real.sum(1), past + ids.shape[1]
        columns = {
            "request": np.broadcast_to(rows.request[:, None], ids.shape)[real],
            "step": self.n_passes,
            "position": position[real],
            "phase": DECODE if decode else PREFILL,
            "token_id": ids[real],
        }
        self._pass = Pass(real.ravel(), columns)

    def _start(self, ids: np.ndarray) -> Rows:
        before = None if self._rows is None else self._rows.last
        if before is not None and ids.shape == (len(before), before.shape[1] + 1) and (ids[:, :-1] == before).all():
            raise ValueError(
                "each pass repeats the one before with one token more: this is generation without a cache, which "
                "would count every token many times; generate with use_cache=True"
            )
        requests = np.arange(self.n_requests, self.n_requests + len(ids))
        self.n_requests += len(ids)
        known = ids if (ids >= 0).all() else None
        return Rows(requests, np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool), last=known)

    def _continue(self, past: int, ids: np.ndarray) -> Rows:
        rows = self._rows
        if rows is None or rows.cached != past or len(rows.request) != len(ids):
            seen = "nothing" if rows is None else f"{len(rows.request)} rows of {rows.cached} positions"
            raise ValueError(
                f"this pass continues {len(ids)} rows of {past} cached positions, but the pass before left {seen}; "
                "start recording before the prompt and run one batch to its end before the next"
            )
        rows.last = None
        return rows

    def gate_hook(self, site: Site) -> Any:
        """Return the forward hook that reads the gate at *site*; the layer is fixed here, not by call order."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            running = self._pass
            if running is None or site.layer in running.layers:
                why = "outside a pass of the recorded module" if running is None else "twice in one pass"
                raise ValueError(f"{site.name}: called {why}; record the module that you call, without recomputation")
            with torch.no_grad():
                choice = site.family.choice(site, output)
                ids, probs = rank(site, choice, self.n_ranked)
            if len(ids) != len(running.real):
                raise ValueError(f"{site.name}: chose for {len(ids)} tokens in a pass of {len(running.real)}")
            check_capacity(site, choice.dropped, running.real)
            running.layers[site.layer] = (
                ids.cpu().numpy()[running.real].astype(np.uint16),
                probs.cpu().numpy()[running.real].astype(np.float16),
            )

        return hook

    def finish(self, module: nn.Module, args: Any, output: Any) -> None:
        """Keep the pass (a forward hook of the recorded module)."""
        running, self._pass = self._pass, None
        if running is None:
            return
        silent = [site.name for site in self.sites if site.layer not in running.layers]
        if silent:
            raise ValueError(f"{silent[0]} was not called in this pass ({len(silent)} gates silent); its layer was "
                             "skipped or compiled: record the eager model")
        if running.real.any():
            self._tokens.append(pd.DataFrame(running.columns))
            layers = [running.layers[site.layer] for site in self.sites]
            self._experts.append(np.stack([ids for ids, _ in layers], axis=1))
            self._probs.append(np.stack([probs for _, probs in layers], axis=1))
        self.n_passes += 1

    def trace(self, domain: str | Sequence[str] | None = None, **meta: Any) -> RoutingTrace:
        """Return all recorded passes as one trace, a request's rows together, in the order of its tokens.

        *domain* is one label for all, or one per request in the order they began. Facts in *meta* (model, revision,
        origin, licence, ...) are kept beside what the hooks know. Raises ValueError if nothing was recorded.
        """
        if not self._tokens:
            raise ValueError("nothing was recorded: call the model inside the `with record(model)` block")
        tokens = pd.concat(self._tokens, ignore_index=True)
        tokens["domain"] = self._domains(domain)[tokens["request"]]
        order = np.lexsort((tokens["position"], tokens["request"]))
        facts = {
            "model": self.model_name,
            "moe_layer_indices": [site.layer for site in self.sites],
            "renormalised": self.sites[0].renormalised,
            "score": self.sites[0].family.score,
            "synthetic": False,
        }
        experts, probs = np.concatenate(self._experts)[order], np.concatenate(self._probs)[order]
        sizes = [site.n_experts for site in self.sites]
        if len(set(sizes)) > 1:
            facts["experts_per_layer"] = sizes
        return RoutingTrace(tokens.iloc[order], experts, probs, max(sizes), self.sites[0].top_k, facts | meta)

    def _domains(self, domain: str | Sequence[str] | None) -> np.ndarray:
        labels = [domain or "unknown"] * self.n_requests if domain is None or isinstance(domain, str) else list(domain)
        if len(labels) != self.n_requests:
            raise ValueError(f"{len(labels)} domain labels for {self.n_requests} recorded requests; give one for each")
        return np.array(labels, dtype=object)
