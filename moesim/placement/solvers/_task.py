"""What an integer program decides: experts of neighbouring layers into places, each place with room for so many.

A place is a device, a node or half of the devices. Letters: L layers, N experts of a layer (any number), P places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from moesim.placement.costs import Levels


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Say what goes where at what price.

    start   place of every expert, int64 [N] per layer; keeps to the rooms
    rooms   most experts of a layer in a place, int64 [L, P]
    flows   per pair of neighbouring layers what leaving a group costs, [N, N'], not negative, times the level's weight
    levels  as ``Problem.levels``, of places; the finest first
    table   what an expert costs in a place, float64 [N, P] per layer; None: nothing
    loads   an expert's load, float64 [N] per layer: the highest sum in a place is added to the cost; None: nothing
    floor   the highest sum in places that are not in question, float64 [L]; None: there are none
    alike   places may change names, and so may groups: nothing else tells them apart
    """

    start: list[np.ndarray]
    rooms: np.ndarray
    flows: list[np.ndarray]
    levels: Levels
    table: list[np.ndarray] | None = None
    loads: list[np.ndarray] | None = None
    floor: np.ndarray | None = None
    alike: bool = False

    @cached_property
    def distance(self) -> np.ndarray:
        """Return the levels as one matrix, float64 [P, P]."""
        return sum((weight * (group[:, None] != group) for group, weight in self.levels),
                   np.zeros((self.rooms.shape[1],) * 2))

    def cost(self, places: list[np.ndarray]) -> float:
        """Return what is minimised."""
        found = sum(float((flow * self.distance[np.ix_(a, b)]).sum())
                    for flow, a, b in zip(self.flows, places, places[1:], strict=False))
        if self.table is not None:
            found += sum(float(row[np.arange(len(at)), at].sum()) for row, at in zip(self.table, places, strict=True))
        if self.loads is not None:
            found += sum(self.highest(layer, at) for layer, at in enumerate(places))
        return found

    def highest(self, layer: int, places: np.ndarray) -> float:
        """Return the highest load of a place of *layer*; raises ``TypeError`` if there are no loads."""
        sums = np.bincount(places, self.loads[layer], minlength=1)  # type: ignore[index]
        return max(float(sums.max()), self.lowest(layer))

    def lowest(self, layer: int) -> float:
        """Return what the highest load of *layer* is at least."""
        return 0.0 if self.floor is None else float(self.floor[layer])


def constraints(flows: Iterable[np.ndarray], levels: Levels) -> int:
    """Return how many constraints tell whether pairs of experts are apart: nearly all that a program has."""
    return sum(int((flow > 0).sum()) for flow in flows) * sum(int(group_of.max()) + 1 for group_of, _ in levels)


def canonical(first: np.ndarray, levels: Levels) -> np.ndarray:
    """Return new names of the places, int64 [P]: by first appearance in *first*, in groups of the coarsest level.

    Groups are named likewise. With places that are alike costs do not change. Expert e is then in no place with
    more than e groups, and places of its group, before it: see ``ranks``.
    """
    group_of = levels[-1][0]
    order = list(dict.fromkeys(first.tolist() + list(range(len(group_of)))))
    groups = list(dict.fromkeys(group_of[order].tolist()))
    order.sort(key=lambda place: groups.index(group_of[place]))  # stable: keeps the order inside a group
    return np.argsort(order)


def ranks(levels: Levels) -> np.ndarray:
    """Return how many groups of the coarsest level, and places of its own group, are before each place, int64 [P]."""
    group_of = levels[-1][0]
    return group_of + np.arange(len(group_of)) - np.searchsorted(group_of, group_of)


def assigned(cost: np.ndarray, rooms: np.ndarray) -> np.ndarray:
    """Return the places of the experts of a layer with the least sum of *cost* [N, P] within *rooms* [P]."""
    from scipy.optimize import linear_sum_assignment  # half a second to import: only when needed

    slots = np.repeat(np.arange(len(rooms)), rooms)
    return slots[linear_sum_assignment(cost[:, slots])[1]]
