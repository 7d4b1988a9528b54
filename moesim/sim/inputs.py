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
from moesim.sim.joining import TokenRows, join
from moesim.trace import RoutingTrace, read_trace


class Routing(NamedTuple):
    """Which experts tokens choose, and where these are as a run begins."""

    trace: RoutingTrace
    placement: Placement
    profile: RoutingTrace | None = None  # other requests, from which placement and caches learn


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
    def profile(self) -> RoutingTrace | None:
        """Return the routing of other requests, if there is any."""
        return None if self.routing is None else self.routing.profile

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

    def demand(self, requests: np.ndarray, past: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return how many of *tokens* of each of *requests*, after its first *past*, choose each expert of each layer.

        int64 [requests, layers with experts x experts].
        """
        assert isinstance(self.rows, TokenRows), "balanced tokens choose experts by the step that they run in"
        rows = self.rows.span(requests, self.requests["prompt_tokens"].to_numpy(np.int64)[requests], past, tokens)
        n_layers, n_experts = self.trace.n_layers, self.trace.n_experts
        place = np.repeat(np.arange(len(requests)), tokens)[:, None] * n_layers + np.arange(n_layers)
        chosen = place[:, :, None] * n_experts + self.trace.chosen[rows]
        shape = len(requests), n_layers * n_experts
        return np.bincount(chosen.ravel(), minlength=shape[0] * shape[1]).reshape(shape)

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
        return Inputs(scenario, Routing(evaluation, placements[-1], profile), requests, Decks.of(evaluation), prefill)
    requests, rows = join(scenario, evaluation, requests)
    return Inputs(scenario, Routing(evaluation, placements[-1], profile), requests, rows, prefill)


def check(scenario: Scenario) -> None:
    """Raise ``ConfigError`` if the requests, the trace or the placement that *scenario* reads do not fit it."""
    _requests(scenario, None)
    if scenario.trace is None:
        return
    trace = read(scenario)
    for name, pool in scenario.pools.items():
        if pool.placed.path is not None:
            with naming(name):
                _placement(pool.of_stage, trace)


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
            nodes = machine.devices_per_node // scenario.parallelism.expert_tp if machine.nodes > 1 else None
            if 0 < scenario.parallelism.expert_devices <= machine.devices_per_node:
                nodes = None  # all of them in one node
            placement = placing.solve(profile, scenario.n_holders, solver=spec.solver, seed=scenario.seed,
                                      devices_per_node=nodes, bound=False)
    except ValueError as error:
        raise scenario.error("placement", str(error)) from None
    found, wanted = ((len(sizes), _in_words(sizes), n) for sizes, n in (
        (placement.sizes, placement.n_devices), (model.experts_per_layer, scenario.n_holders)))
    if found != wanted:
        raise scenario.error("placement.path", f"the placement is for {found} layers, experts and devices; "
                                               f"the scenario has {wanted}; solve it again for this machine")
    return placement
