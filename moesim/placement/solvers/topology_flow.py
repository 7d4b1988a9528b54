"""Busy experts near their hosts on any matrix of distances: a transportation problem, solved to its optimum.

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> profile = Profile(np.array([[9, 1, 5], [2, 7, 3]]), 9, lambda top1: np.zeros((1, 3, 3), dtype=int))
>>> hops = np.array([[0, 2, 4], [2, 0, 4], [4, 4, 0]])
>>> answer = TopologyFlow(hosts=(0, 2)).solve(profile, Problem(n_experts=3, n_devices=3, distances=hops), seed=0)
>>> answer.device_of.tolist(), answer.info["status"]  # layer 0 starts at device 0, layer 1 at device 2
([[0, 2, 1], [1, 2, 0]], 'optimal')
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field
from scipy import sparse
from scipy.optimize import linprog

from moesim.placement.objective import Problem, Profile
from moesim.placement.placement import CapacityError, Placement, PlacementError
from moesim.placement.solvers._claims import gap
from moesim.registry import part
from moesim.units import Seconds

Hosts = Literal["all", "round_robin"] | tuple[int, ...]

# Measured at 58 layers x 256 experts x 32 devices with totals 464 and 480 on a busy machine of two cores: 9 to 17 s
# (random or hops, hosts apart or all alike), with NEAR = 2 2 to 23 s, with 4 2 to 23 s; the whole program at once 47 s.
BINS = 32           # of experts per layer in the first program
NEAR = 3            # cheapest devices per expert that the second program starts with
MEAN_COST = 100.0   # costs are scaled to this mean: far above the 1e-7 by which HiGHS lets reduced costs be wrong
TOLERANCE = 1e-7    # HiGHS's own dual feasibility tolerance: a column that helps by less is left out
PROVED = 1e-9       # gap, as a share of the objective, below which the answer is called optimal: rounding


@part
class TopologyFlow:
    """Minimise the mean distance of a copy from the host that dispatches to the expert and to the one that collects.

    Each layer has *hosts* (devices): "all" devices alike often, the default, as devices send their own tokens;
    "round_robin", device l mod D; one device for all layers, ``(3,)``; or one per layer. *collectors* likewise,
    left out the same. A device holds at most ``capacity`` experts of a layer and *total* of all layers (0: what the
    layers allow). Blind to load: busy experts gather where it is near. Only among devices of a layer that are
    exactly as far is load spread. Source: "ILPLoad" of arXiv 2508.09229, distances instead of hops.

    The limits are nested, so the linear program has whole vertices and needs no branching. Where *total* does not
    bind, sorting solves it. ``bound`` comes from the dual values, apart from the solver's word. ``status`` is
    "feasible" only if *time_limit* ended it first.
    """

    hosts: Hosts = "all"
    collectors: Hosts | None = None
    total: int = Field(default=0, ge=0)
    time_limit: Seconds = 60.0

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; *seed* plays no part. Raises ``CapacityError``, ``PlacementError`` for wrong hosts."""
        if (profile.sizes < profile.n_experts).any():
            raise PlacementError("layers have different numbers of experts, which topology_flow cannot place yet; use "
                                 "joint with objectives: [{name: link_bytes, mode: dispatch_combine}]")
        room = int(problem.rooms(profile.sizes)[0])
        total = min(self.total or profile.n_layers * room, profile.n_layers * room)
        if total * problem.n_devices < profile.counts.size:
            need = -(-profile.counts.size // problem.n_devices)
            raise CapacityError(f"{problem.n_devices} devices with room for {total} experts of all layers do not hold "
                                f"{profile.counts.size}; give total = {need} or more, or use "
                                f"{-(-profile.counts.size // total)} devices")
        way = self.ways(problem, profile.n_layers)
        found = transport(Transport(profile.counts.astype(np.float64), way, room, total), self.time_limit)
        device_of = _level(found.device_of, profile.counts, way, free=total == profile.n_layers * room)
        copies = max(float(profile.counts.sum()), 1.0)
        objective = float((profile.counts * np.take_along_axis(way, device_of, axis=1)).sum()) / copies
        proof = gap(objective, found.bound / copies)
        status = "optimal" if proof["gap"] <= PROVED else "feasible"
        return Placement.from_device_of(device_of, problem.n_devices, minimises="distance_dispatch",
                                        objective=objective, status=status, **proof, programs=found.programs,
                                        columns=found.columns, fraction=found.fraction)

    def ways(self, problem: Problem, n_layers: int) -> np.ndarray:
        """Return half of the way from a layer's host to each device and on to its collector, float64 [L, D].

        Half of both, as ``link_bytes`` counts. Without distances those of the problem's nodes (0 to 1) are taken.
        """
        distances = problem.distance if problem.distances is None else problem.distances
        start = _share(self.hosts, "hosts", n_layers, problem.n_devices)
        end = start if self.collectors is None else _share(self.collectors, "collectors", n_layers, problem.n_devices)
        way = (start @ distances + end @ distances.T) / 2
        unit = float(way.max()) or 1.0
        return np.round(way / unit, 12) * unit  # sums in another order must not tell equal devices apart


def _share(hosts: Hosts, name: str, n_layers: int, n_devices: int) -> np.ndarray:
    """Return the share of a layer's copies that each device sends, float64 [L, D]."""
    if hosts == "all":
        return np.full((n_layers, n_devices), 1 / n_devices)
    if hosts == "round_robin":
        return np.eye(n_devices)[np.arange(n_layers) % n_devices]
    if len(hosts) not in (1, n_layers) or not all(0 <= int(host) < n_devices for host in hosts):
        raise PlacementError(f"{name} is {list(hosts)}; give one device, or one per layer ({n_layers}), "
                             f"each in 0..{n_devices - 1}")
    return np.eye(n_devices)[np.resize(np.array(hosts, dtype=np.int64), n_layers)]


@dataclasses.dataclass(frozen=True, eq=False)
class Transport:
    """Say what goes where at what price: expert (l, e) on device d costs counts[l, e] * way[l, d].

    counts  float64 [L, E], not negative;  way  float64 [L, D], not negative
    capacity, total  most experts on a device of one layer, and of all layers
    """

    counts: np.ndarray
    way: np.ndarray
    capacity: int
    total: int

    def cost(self, device_of: np.ndarray) -> float:
        """Return the cost of a placement."""
        return float((self.counts * np.take_along_axis(self.way, device_of, axis=1)).sum())


class Answer(NamedTuple):
    """What ``transport`` found: *bound* is below every placement's cost, *fraction* the largest distance of a
    program's value from a whole number, *programs* how many were solved, *columns* the largest one's variables."""

    device_of: np.ndarray
    bound: float
    fraction: float = 0.0
    programs: int = 0
    columns: int = 0


def transport(task: Transport, time_limit_s: float) -> Answer:
    """Return the optimum, or what was found within *time_limit_s*.

    If the totals bind: a small program with bins of similar experts gives prices of places; a second one has every
    expert, but only the devices that are cheap at these prices; more are added until the prices prove that none
    helps (column generation: the optimum of the whole program, in a tenth of its time).
    """
    nearest = _nearest(task)
    if np.bincount(nearest.ravel()).max() <= task.total:
        return Answer(nearest, task.cost(nearest))
    deadline = time.monotonic() + time_limit_s
    n_layers, n_experts = task.counts.shape
    device_of = np.arange(n_layers * n_experts).reshape(n_layers, n_experts) % task.way.shape[1]  # keeps all limits
    costs = task.counts[:, :, None] * task.way[:, None, :]
    costs *= (unit := MEAN_COST / (float(costs.mean()) or 1.0))
    if (binned := _binned(task, costs, deadline)) is None:
        return Answer(device_of, 0.0)
    device_of, prices = binned
    reduced = costs - (prices[:-1] + prices[-1])[:, None]
    keep = np.zeros(costs.shape, dtype=bool)
    np.put_along_axis(keep, np.argsort(reduced, axis=2, kind="stable")[:, :, :NEAR], True, axis=2)
    np.put_along_axis(keep, device_of[:, :, None], True, axis=2)
    best = Answer(device_of, _dual(task, reduced, prices) / unit, programs=1)
    while (solved := _program(task, costs, keep, np.ones(task.counts.shape), deadline)) is not None:
        values, prices, gains = solved
        reduced = costs - (prices[:-1] + prices[-1])[:, None]
        bound = max(best.bound, _dual(task, reduced, prices) / unit)
        fraction = max(best.fraction, float(np.abs(values - np.round(values)).max()))
        best = Answer(values.argmax(axis=2), bound, fraction, best.programs + 1, int(keep.sum()))
        better = np.where(keep, np.inf, reduced - gains[:, :, None])
        missing = np.argwhere(better.min(axis=2) < -TOLERANCE)
        if not len(missing) or task.cost(best.device_of) - bound <= PROVED * bound:
            break
        keep[(*missing.T, better.argmin(axis=2)[tuple(missing.T)])] = True
    return best


def _nearest(task: Transport) -> np.ndarray:
    """Return the optimum without totals: in each layer the busiest expert in the nearest place, and so on."""
    n_layers, n_experts = task.counts.shape
    places = np.repeat(np.argsort(task.way, axis=1, kind="stable"), task.capacity, axis=1)[:, :n_experts]
    device_of = np.empty((n_layers, n_experts), dtype=np.int64)
    np.put_along_axis(device_of, np.argsort(-task.counts, axis=1, kind="stable"), places, axis=1)
    return device_of


def _binned(task: Transport, costs: np.ndarray, deadline: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a placement and prices from the program of bins of neighbours in the order of counts."""
    order = np.argsort(-task.counts, axis=1, kind="stable")
    first = np.arange(0, order.shape[1], -(-order.shape[1] // BINS))
    supply = np.diff(np.append(first, order.shape[1]))
    ordered = np.take_along_axis(costs, order[:, :, None], axis=1)
    means = np.add.reduceat(ordered, first, axis=1) / supply[:, None]
    supplies = np.broadcast_to(supply, (len(order), len(supply)))
    # Interior point, then crossover: 1 to 2 s where all columns are open; dual simplex took 1 to 15 s there, but it
    # is the better one for the few columns that follow (prices that prove more when many are equal).
    solved = _program(task, means, np.ones(means.shape, dtype=bool), supplies, deadline, "highs-ipm")
    if solved is None:
        return None
    number = np.round(solved[0]).astype(np.int64).ravel()
    devices = np.repeat(np.tile(np.arange(costs.shape[2]), supplies.size), number).reshape(order.shape)
    device_of = np.empty(order.shape, dtype=np.int64)
    np.put_along_axis(device_of, order, devices, axis=1)
    return device_of, solved[1]


def _program(task: Transport, costs: np.ndarray, keep: np.ndarray, supply: np.ndarray,
             deadline: float, method: str = "highs-ds") -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Solve the linear program with the columns *keep* [L, N, D] at a vertex; None if the time is over.

    Returns the values [L, N, D], the prices of places [L + 1, D], none above 0 (the last row: of totals), and what
    one more of each supply would cost, [L, N].
    """
    (n_layers, _, n_devices), (layer, item, device) = costs.shape, np.nonzero(keep)
    column, ones = np.arange(len(layer)), np.ones(len(layer))
    rows = np.concatenate([layer * n_devices + device, n_layers * n_devices + device])
    room = np.append(np.full(n_layers * n_devices, task.capacity), np.full(n_devices, task.total))
    held = sparse.csr_matrix((np.tile(ones, 2), (rows, np.tile(column, 2))), shape=(len(room), len(column)))
    placed = sparse.csr_matrix((ones, (layer * supply.shape[1] + item, column)), shape=(supply.size, len(column)))
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        return None
    found: Any = linprog(costs[keep], held, room, placed, supply.ravel(), (0, None), method,
                         options={"time_limit": left_s})
    if found.status == 1:
        return None
    if found.status != 0:
        raise RuntimeError(f"the linear program ended with: {found.message}; yet it has a solution: a bug in HiGHS "
                           "or in topology_flow")
    values = np.zeros(costs.shape)
    values[keep] = found.x
    prices = np.minimum(found.ineqlin.marginals, 0.0).reshape(n_layers + 1, n_devices)
    return values, prices, found.eqlin.marginals.reshape(supply.shape)


def _dual(task: Transport, reduced: np.ndarray, prices: np.ndarray) -> float:
    """Return the lower bound that *prices* prove (weak duality): true whatever the prices, if none is above 0."""
    return float(reduced.min(axis=2).sum() + task.capacity * prices[:-1].sum() + task.total * prices[-1].sum())


def _level(device_of: np.ndarray, counts: np.ndarray, way: np.ndarray, free: bool) -> np.ndarray:
    """Return the placement with experts changed about among devices that are exactly as far: heaviest first, each
    to the lightest. How many each device holds stays, or is evened out if *free*."""
    levelled = device_of.copy()
    for layer, devices in enumerate(device_of):
        for distance in np.unique(way[layer]):
            group = np.flatnonzero(way[layer] == distance)
            experts = np.flatnonzero(np.isin(devices, group))
            room = (devices[experts][:, None] == group).sum(axis=0)
            if free:
                room = np.full(len(group), -(-len(experts) // len(group)))
            load = np.zeros(len(group))
            for expert in experts[np.argsort(-counts[layer, experts], kind="stable")]:
                lightest = int(np.where(room > 0, load, np.inf).argmin())
                levelled[layer, expert] = group[lightest]
                load[lightest] += counts[layer, expert]
                room[lightest] -= 1
    return levelled
