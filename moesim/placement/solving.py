"""Place experts: a solver by its name, the machine in numbers or bytes, and what the answer says of itself."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from moesim import registry, units
from moesim.placement.objective import Problem, Profile
from moesim.placement.placement import CapacityError, Placement, PlacementError
from moesim.trace import RoutingTrace

# What of the options of ``solve`` is no parameter of the solver.
MACHINE = ("devices_per_node", "inter_node_weight", "capacity", "capacity_bytes", "expert_bytes", "distances",
           "previous", "bound")
_SAID = ("devices_per_node", "inter_node_weight", "capacity")  # in info


def solve(trace: RoutingTrace | Profile, n_devices: int, solver: Any = "joint", seed: int = 0,
          **options: Any) -> Placement:
    """Place the experts of *trace* on *n_devices* devices.

    *solver* is a part, its name, or a mapping with its name and parameters; *options* are its parameters too,
    besides those that describe the machine, see ``Problem``: ``devices_per_node``, ``inter_node_weight``,
    ``capacity`` (experts of a layer per device) or ``capacity_bytes`` per device with ``expert_bytes`` (one number or
    one per layer), ``distances``, ``previous`` and ``bound``. The solver sees the whole trace it is given. Do not peek:
    give it ``trace.profile()`` and judge the answer on ``trace.evaluation()``, or let ``judge`` do both.

    ``info`` of the answer says solver, seed, seconds, profile tokens, and what the solver claims: what it
    minimises, the objective on the profile, its status, and a bound if it has one; of a trace that says which
    layers of the model it is from also ``moe_layer_indices``.
    Raises ``PlacementError`` (``CapacityError`` if there is too little room) or ``registry.UnknownPart``.
    """
    registry.expect(trace, (RoutingTrace, Profile), "trace", "give what moesim.read_trace(path) returns")
    registry.expect(n_devices, (int, np.integer), "n_devices", "give a whole number")
    profile = trace if isinstance(trace, Profile) else Profile.of(trace)
    machine = {key: options.pop(key) for key in MACHINE if key in options}
    if "capacity_bytes" in machine or "expert_bytes" in machine:
        machine["capacity"] = _capacity(profile, machine)
    problem = Problem(profile.n_experts, n_devices, **machine)
    part = _part(solver, options)
    start = time.perf_counter()
    placement = part.solve(profile, problem, seed)
    seconds = time.perf_counter() - start
    layers = None if isinstance(trace, Profile) else trace.meta["moe_layer_indices"]
    known = {} if layers is None else {"moe_layer_indices": layers}
    return placement.with_info(solver=registry.dump(part), seed=seed, seconds=seconds,
                               profile_tokens=profile.n_tokens, n_devices=n_devices,
                               **{key: machine[key] for key in _SAID if key in machine}, **known)


def _capacity(profile: Profile, machine: dict[str, Any]) -> int:
    """Return the experts of every layer that fit into the bytes of a device, and take the bytes out of *machine*."""
    if "capacity" in machine or not {"capacity_bytes", "expert_bytes"} <= machine.keys():
        raise PlacementError("give capacity (experts of a layer per device), or capacity_bytes and expert_bytes")
    room, one = machine.pop("capacity_bytes"), np.asarray(machine.pop("expert_bytes"), dtype=np.float64)
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
