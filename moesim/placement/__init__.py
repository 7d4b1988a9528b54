"""Experts to devices: solvers that place them, and what a placement is worth.

>>> import numpy as np
>>> from moesim.trace import RoutingTrace
>>> trace = RoutingTrace.from_arrays(np.array([[[0], [3]], [[1], [2]], [[2], [1]], [[3], [0]]]), n_experts=4, top_k=1)
>>> placement = solve(trace, n_devices=2)
>>> evaluate(placement, trace)[["cross_top1", "load_max_over_mean"]].tolist()
[0.0, 1.0]
"""

from __future__ import annotations

import time
from typing import Any

from moesim import registry
from moesim.placement.counts import read_counts
from moesim.placement.evaluation import evaluate, evaluate_layers
from moesim.placement.exchange import read_placement, write_placement
from moesim.placement.objective import INTER_NODE_WEIGHT, Problem, Profile
from moesim.placement.placement import CapacityError, Placement, PlacementError
from moesim.trace import RoutingTrace

__all__ = ["INTER_NODE_WEIGHT", "CapacityError", "Placement", "PlacementError", "Problem", "Profile", "evaluate",
           "evaluate_layers", "read_counts", "read_placement", "solve", "write_placement"]


def solve(trace: RoutingTrace | Profile, n_devices: int, solver: Any = "joint", seed: int = 0,
          **options: Any) -> Placement:
    """Place the experts of *trace* on *n_devices* devices.

    *solver* is a part, its name, or a mapping with its name and parameters; *options* are its parameters too,
    besides ``devices_per_node`` and ``inter_node_weight``, which describe the machine. The solver sees the whole
    trace it is given. Do not peek: give it ``trace.profile()`` and judge the answer on ``trace.evaluation()``.

    ``info`` of the answer says solver, seed, seconds, profile tokens, and what the solver claims: what it
    minimises, the objective on the profile, its status, and a bound if it has one; of a trace that says which
    layers of the model it is from also ``moe_layer_indices``.
    Raises ``PlacementError`` or ``registry.UnknownPart``.
    """
    profile = trace if isinstance(trace, Profile) else Profile.of(trace)
    machine = {key: options.pop(key) for key in ("devices_per_node", "inter_node_weight") if key in options}
    problem = Problem(profile.n_experts, n_devices, **machine)
    part = _part(solver, options)
    start = time.perf_counter()
    placement = part.solve(profile, problem, seed)
    seconds = time.perf_counter() - start
    layers = None if isinstance(trace, Profile) else trace.meta["moe_layer_indices"]
    known = {} if layers is None else {"moe_layer_indices": layers}
    return placement.with_info(solver=registry.dump(part), seed=seed, seconds=seconds,
                               profile_tokens=profile.n_tokens, n_devices=n_devices, **machine, **known)


def _part(solver: Any, options: dict[str, Any]) -> Any:
    if isinstance(solver, str):
        return registry.make("solver", {"name": solver} | options)
    if isinstance(solver, dict) and not options.keys() & solver.keys():
        return registry.make("solver", solver | options)
    if options:
        raise PlacementError(f"{', '.join(sorted(options))}: given beside a solver that has its parameters already; "
                             "give them in one place")
    return registry.make("solver", solver)
