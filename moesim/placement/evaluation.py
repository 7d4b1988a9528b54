"""How good a placement is on a trace: what tokens cross, how far they spread, how uneven the load is.

Letters: T tokens, L MoE layers, K = top-k, E experts, D devices.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moesim.placement.objective import Problem, device_load, load_max_over_mean
from moesim.placement.placement import Placement, PlacementError
from moesim.registry import expect
from moesim.trace import RoutingTrace


def evaluate(placement: Placement, trace: RoutingTrace, devices_per_node: int | None = None) -> pd.Series:
    """Return the four numbers of a placement on *trace*; with *devices_per_node* the same between nodes as well.

    cross_top1          fraction of steps to the next MoE layer at which the first choice is on another device
    cross_all           the same over all K x K pairs of chosen experts of neighbouring layers
    fanout              distinct devices that a token's chosen experts are on, mean over tokens and layers
    load_max_over_mean  most loaded device over the mean device, mean over layers
    cross_node_top1, node_fanout   the first and the third with nodes for devices

    A token is at the device of its first choice. Of a replicated expert it uses the replica on its device, if there is
    one, else one of its node, else any, in turns: what tokens that stay do in the simulation. Load is that of tokens
    that come from all devices alike, split evenly over replicas; see ``stay_load``. With one MoE layer there are no
    transitions and the cross fractions are NaN. Raises ``PlacementError`` if the two do not fit.
    """
    return evaluate_layers(placement, trace, devices_per_node).mean().rename("value")


def evaluate_layers(placement: Placement, trace: RoutingTrace, devices_per_node: int | None = None) -> pd.DataFrame:
    """Return what ``evaluate`` averages, one row per layer; row l of a cross fraction is the step from l to l+1."""
    from moesim.placement.loops import CROSS_ALL, CROSS_TOP1, FANOUT  # numba: half a second, only when needed

    expect(placement, Placement, "placement", "give evaluate(placement, trace), with what solve returns")
    expect(trace, RoutingTrace, "trace", "give what moesim.read_trace(path) returns")
    problem = _problem(placement, trace, devices_per_node)
    found, _ = _route(placement, trace, problem.node_of, np.arange(placement.n_devices))
    tokens = trace.n_tokens
    columns = {"cross_top1": _steps(found[CROSS_TOP1] / tokens),
               "cross_all": _steps(found[CROSS_ALL] / (tokens * trace.top_k**2)),
               "fanout": found[FANOUT] / tokens,
               "load_max_over_mean": load_max_over_mean(device_load(trace.counts(), placement.replicas))}
    if devices_per_node is not None:
        found, _ = _route(placement, trace, problem.node_of, problem.node_of)
        columns |= {"cross_node_top1": _steps(found[CROSS_TOP1] / tokens), "node_fanout": found[FANOUT] / tokens}
    return pd.DataFrame(columns).rename_axis("layer")


def stay_load(placement: Placement, trace: RoutingTrace, devices_per_node: int | None = None) -> float:
    """Return ``load_max_over_mean`` of tokens that stay: they use the replica on their device, so not all evenly.

    Without replicas it is that of ``evaluate``. Raises ``PlacementError`` if the two do not fit.
    """
    problem = _problem(placement, trace, devices_per_node)
    return float(load_max_over_mean(_route(placement, trace, problem.node_of, problem.node_of)[1]).mean())


def _problem(placement: Placement, trace: RoutingTrace, devices_per_node: int | None) -> Problem:
    check_fit(placement, trace)
    return Problem(placement.n_experts, placement.n_devices, devices_per_node)


def check_fit(placement: Placement, trace: RoutingTrace) -> None:
    """Raise ``PlacementError`` unless *placement* and *trace* have the same layers and experts."""
    ours, theirs = placement.sizes.tolist(), trace.sizes.tolist()
    if ours != theirs:
        raise PlacementError(f"the placement has {_layers(ours)} but the trace has {_layers(theirs)}; use a placement "
                             f"that was made for this model")


def _layers(sizes: list[int]) -> str:
    experts = str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)} ({sizes})"
    return f"{len(sizes)} layers of {experts} experts"


def _route(placement: Placement, trace: RoutingTrace, node_of: np.ndarray,
           group_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from moesim.placement.loops import route

    return route(trace.experts, trace.top_k, placement.replicas, node_of, group_of)


def _steps(fraction: np.ndarray) -> np.ndarray:
    """Return *fraction* [L] with NaN at the last layer, which no step leaves."""
    return np.append(fraction[:-1], np.nan)
