"""Search with replicas: which experts get some, and where, while the search moves them like experts of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.placement.costs import Costs, total
from moesim.placement.objective import Problem, Profile
from moesim.placement.placement import CapacityError, Placement
from moesim.placement.replicas import Replicas, even, shares, ways
from moesim.placement.solvers._chain import Chain, swap
from moesim.placement.solvers._search import descend, search

ROUNDS = 4  # of filling and searching; chosen: on the real traces what comes later gains less than a percent


def check_room(sizes: np.ndarray, redundant: int, problem: Problem) -> None:
    """Raise ``CapacityError`` if *redundant* more replicas than experts of each layer do not fit."""
    places, size = problem.capacity * problem.n_devices, int(sizes.max())
    if problem.capacity and places < size + redundant:
        raise CapacityError(f"{problem.n_devices} devices with room for {problem.capacity} experts of a layer do not "
                            f"hold {size} experts and {redundant} redundant ones; they need room for "
                            f"{-(-(size + redundant) // problem.n_devices)}, or use {places - size} redundant ones")


def place(objectives: Sequence[Any], profile: Profile, problem: Problem, redundant: int, effort: tuple[int, int],
          rng: np.random.Generator) -> Placement:
    """Return a placement with up to *redundant* more replicas per layer than experts; *effort* is restarts, turns.

    Two starts: without more replicas, and with those that EPLB's rule gives, which take turns; what ends up on one
    device is one. From the better one on, free places get the replicas that save tokens that stay the most crossing,
    the search goes on with each replica's own tokens, and so on; the best of all is returned. Of the turns a quarter is
    for each start.
    """
    check_room(profile.sizes, redundant, problem)
    costs = total(o.costs(profile, problem) for o in objectives if o.weight)
    (restarts, turns), sizes, found = effort, profile.sizes + redundant, []
    for more in (0, redundant):
        replicas = Replicas.heaviest(profile, sizes, more, problem.n_devices)
        chain = _chain(objectives, replicas, profile, problem, None)
        devices = search(chain, descend(chain, swap, restarts, rng), turns // 4, rng)
        found.append(replicas.placement(devices, problem, profile))

    def worth(placement: Placement) -> float:
        return float(sum(o.weight * o.value(placement, profile, problem) for o in objectives if o.weight))

    now = min(found, key=worth)
    for _ in range(ROUNDS):
        replicas = Replicas.of(_filled(now.replicas, costs, problem, sizes), problem.rooms(sizes), sizes)
        # The larger of the two loads that a replica may get: with its own tokens alone, which change when others
        # move, the search fits to chance.
        share = np.maximum(replicas.even, replicas.flows(profile.top1, problem)[1]) if costs.flows else None
        chain = _chain(objectives, replicas, profile, problem, share)
        devices = search(chain, replicas.device.copy(), turns // 2 // ROUNDS, rng)
        now = replicas.placement(devices, problem, profile)
        found.append(now)
    return min(found, key=worth)


def _chain(objectives: Sequence[Any], replicas: Replicas, profile: Profile, problem: Problem,
           share: np.ndarray | None) -> Chain:
    theirs, here = replicas.profile(profile, problem, share), replicas.problem(problem)
    return Chain(total(o.costs(theirs, here) for o in objectives if o.weight), theirs, here)


def _filled(replicas: np.ndarray, costs: Costs, problem: Problem, sizes: np.ndarray) -> np.ndarray:
    """Return *replicas* [L, E, D] with more of them, up to *sizes* [L], where tokens that come cross the most.

    Nothing is added to the first layer, where none come, and nothing at all if no tokens stay.
    """
    filled, rooms, devices = replicas.copy(), problem.rooms(sizes), np.arange(problem.n_devices)
    expert, device = np.nonzero(filled[0])
    share = even(expert)
    for layer in range(1, len(filled) if costs.flows else 0):
        held = filled[layer]
        leaving = [np.zeros((problem.n_devices, len(held))) for _ in costs.flows]
        for tokens, flow in zip(leaving, costs.flows, strict=True):
            np.add.at(tokens, device, flow.share[layer - 1][expert] * share[:, None])
        saved = [a * b for a, b in zip(leaving, _distances(held, costs, problem), strict=True)]
        _fill(held, np.sum(saved, axis=0), int(rooms[layer]), int(sizes[layer]))
        expert, device = np.nonzero(held)
        arriving = np.sum(leaving, axis=0)[:, expert] * ways(devices, expert, device, problem)
        share = shares(arriving.sum(axis=0), expert)
    return filled


def _fill(held: np.ndarray, saved: np.ndarray, room: int, size: int) -> None:
    """Add to *held* [E, D] what *saved* [D, E] most, up to *size* in all and *room* per device."""
    free = np.arange(len(held)) < (room - held.sum(axis=0))[:, None]
    order, gains = np.argsort(-saved, axis=1, kind="stable"), np.zeros(saved.shape)
    np.put_along_axis(gains, order, np.where(free, np.take_along_axis(saved, order, axis=1), 0.0), axis=1)
    chosen = np.argsort(-gains, axis=None, kind="stable")[:size - held.sum()]
    chosen = chosen[gains.flat[chosen] > 0]
    held[chosen % len(held), chosen // len(held)] = True


def _distances(held: np.ndarray, costs: Costs, problem: Problem) -> list[np.ndarray]:
    """Return, for each of the flows, how far tokens on a device go to each expert of *held* [E, D]: float64 [D, E]."""
    expert, device = np.nonzero(held)
    used = ways(np.arange(problem.n_devices), expert, device, problem)
    there, first = np.unique(expert, return_index=True)
    found = [np.zeros((problem.n_devices, len(held))) for _ in costs.flows]
    for far, flow in zip(found, costs.flows, strict=True):
        far[:, there] = np.add.reduceat(used * flow.distance[:, device], first, axis=1)
    return found
