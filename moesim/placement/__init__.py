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

import numpy as np

from moesim import registry, units
from moesim.placement.counts import read_counts
from moesim.placement.evaluation import evaluate, evaluate_layers
from moesim.placement.exchange import read_placement, write_placement
from moesim.placement.objective import INTER_NODE_WEIGHT, Problem, Profile
from moesim.placement.placement import CapacityError, Placement, PlacementError
from moesim.trace import RoutingTrace

__all__ = ["INTER_NODE_WEIGHT", "CapacityError", "Placement", "PlacementError", "Problem", "Profile", "evaluate",
           "evaluate_layers", "read_counts", "read_placement", "solve", "write_placement"]

_MACHINE = ("devices_per_node", "inter_node_weight", "capacity", "distances", "previous")


def solve(trace: RoutingTrace | Profile, n_devices: int, solver: Any = "joint", seed: int = 0,
          **options: Any) -> Placement:
    """Place the experts of *trace* on *n_devices* devices.

    *solver* is a part, its name, or a mapping with its name and parameters; *options* are its parameters too,
    besides those that describe the machine, see ``Problem``: ``devices_per_node``, ``inter_node_weight``,
    ``capacity`` (experts of a layer per device) or ``capacity_bytes`` per device with ``expert_bytes`` (one number or
    one per layer), ``distances`` and ``previous``. The solver sees the whole trace it is given. Do not peek: give it
    ``trace.profile()`` and judge the answer on ``trace.evaluation()``.

    ``info`` of the answer says solver, seed, seconds, profile tokens, and what the solver claims: what it
    minimises, the objective on the profile, its status, and a bound if it has one; of a trace that says which
    layers of the model it is from also ``moe_layer_indices``.
    Raises ``PlacementError`` (``CapacityError`` if there is too little room) or ``registry.UnknownPart``.
    """
    profile = trace if isinstance(trace, Profile) else Profile.of(trace)
    machine = {key: options.pop(key) for key in _MACHINE if key in options}
    if "capacity_bytes" in options or "expert_bytes" in options:
        machine["capacity"] = _capacity(profile, machine, options)
    problem = Problem(profile.n_experts, n_devices, **machine)
    part = _part(solver, options)
    start = time.perf_counter()
    placement = part.solve(profile, problem, seed)
    seconds = time.perf_counter() - start
    layers = None if isinstance(trace, Profile) else trace.meta["moe_layer_indices"]
    known = {} if layers is None else {"moe_layer_indices": layers}
    return placement.with_info(solver=registry.dump(part), seed=seed, seconds=seconds,
                               profile_tokens=profile.n_tokens, n_devices=n_devices,
                               **{key: machine[key] for key in machine if key not in ("distances", "previous")},
                               **known)


def _capacity(profile: Profile, machine: dict[str, Any], options: dict[str, Any]) -> int:
    """Return the experts of every layer that fit into the bytes of a device, and take the bytes out of *options*."""
    if "capacity" in machine or not {"capacity_bytes", "expert_bytes"} <= options.keys():
        raise PlacementError("give capacity (experts of a layer per device), or capacity_bytes and expert_bytes")
    room, one = options.pop("capacity_bytes"), np.asarray(options.pop("expert_bytes"), dtype=np.float64)
    if one.ndim > 1 or one.size not in (1, profile.n_layers) or not (one > 0).all():
        raise PlacementError(f"expert_bytes must be above 0, one number or one per layer ({profile.n_layers})")
    numbers = np.arange(1, profile.n_experts + 1)[:, None]  # of experts of a layer on a device
    needed = np.minimum(numbers, profile.sizes) @ np.broadcast_to(one, profile.n_layers)
    if room < needed[0]:
        raise CapacityError(f"a device has {units.pretty(room, 'byte', 4)} for experts, but one of every layer takes "
                            f"{units.pretty(needed[0], 'byte', 4)}; use a smaller dtype, or offload experts")
    return int((needed <= room).sum())


def _part(solver: Any, options: dict[str, Any]) -> Any:
    if isinstance(solver, str):
        return registry.make("solver", {"name": solver} | options)
    if isinstance(solver, dict) and not options.keys() & solver.keys():
        return registry.make("solver", solver | options)
    if options:
        raise PlacementError(f"{', '.join(sorted(options))}: given beside a solver that has its parameters already; "
                             "give them in one place")
    return registry.make("solver", solver)
