"""Which points fit into a budget, and in which order: ends of the domain first to choose, random to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from moesim.measure.point import Point

SENTINELS = 24        # points that are measured three times
SENTINEL_SHARE = 0.1  # of the budget, at most, for all their turns
TURNS = 3             # start, middle, end


class Item(NamedTuple):
    """A point, the block it belongs to and about how long measuring it takes."""

    block: str
    point: Point
    cost_s: float


class Plan(NamedTuple):
    """What to measure: ``items`` in random order, in so many ``rounds``; ``sentinels`` among them three times more."""

    items: list[Item]
    sentinels: list[Item]
    left_out: dict[str, int]
    rounds: int = 1

    def seconds(self) -> dict[str, float]:
        """Return the estimate of every block, and of the sentinels."""
        found: dict[str, float] = {}
        for item in self.items:
            found[item.block] = found.get(item.block, 0.0) + self.rounds * item.cost_s
        if self.sentinels:
            found["sentinels"] = TURNS * sum(item.cost_s for item in self.sentinels)
        return found


def plan(points: Mapping[str, Sequence[Item]], budget_s: float, seed: int = 0, rounds: int = 1) -> Plan:
    """Choose from *points* (items of each block) what takes about *budget_s* in all *rounds*; infinite takes all.

    Every block gets the same share of what all its points would take. In a block, anchors come first (the ends of the
    domain: without them a fit has to extrapolate), then the others by their ``after``, and at random. With several
    rounds every point is measured again anyway, and there are no sentinels.
    """
    rng = np.random.default_rng(seed)
    total = sum(item.cost_s for items in points.values() for item in items)
    again = SENTINEL_SHARE if rounds == 1 and any(_kernel(item) for items in points.values() for item in items) else 0.0
    share = min(1.0, (1 - again) * budget_s / rounds / total) if total else 1.0
    chosen: list[Item] = []
    left_out = {}
    for block in sorted(points):
        items = list(points[block])
        taken = _taken(items, share * sum(item.cost_s for item in items), rng)
        left_out[block] = len(items) - len(taken)
        chosen += taken
    order = _together([chosen[i] for i in rng.permutation(len(chosen))])
    return Plan(order, _sentinels(order, again * budget_s / TURNS) if again else [], left_out, rounds)


def _together(items: list[Item]) -> list[Item]:
    """Return *items* with the points of a group behind the first of them, its anchors first: time may run out.

    Those that come ``after`` others come after those of all groups, the last group's first, as it is still there.
    """
    place: dict[str, int] = {}
    for i, item in enumerate(items):
        place.setdefault(item.point.group or item.point.key, i)

    def turn(item: Item) -> tuple[bool, int, bool, int]:
        at, late = place[item.point.group or item.point.key], item.point.after > 0
        return late, -at if late else at, bool(item.point.group) and not item.point.anchor, item.point.after

    return sorted(items, key=turn)


def _taken(items: list[Item], budget_s: float, rng: np.random.Generator) -> list[Item]:
    """Return the *items* that fit, at least one: half of the budget is the anchors', at most."""
    anchors = [items[i] for i in rng.permutation(len(items)) if items[i].point.anchor]
    others = [items[i] for i in rng.permutation(len(items)) if not items[i].point.anchor]
    first, used = _fitting(anchors, budget_s / 2 if others else budget_s)
    second, _ = _fitting(sorted(others, key=lambda item: item.point.after), budget_s - used)
    return first + second or items[:1]


def _fitting(items: list[Item], budget_s: float) -> tuple[list[Item], float]:
    taken, used = [], 0.0
    for item in items:
        if used + item.cost_s <= budget_s * (1 + 1e-9):
            taken.append(item)
            used += item.cost_s
    return taken, used


def _sentinels(items: list[Item], budget_s: float) -> list[Item]:
    """Return up to ``SENTINELS`` of *items* by their keys: the same ones whenever the same points are measured."""
    ordinary = sorted(filter(_kernel, items), key=lambda item: item.point.key)
    return _fitting(ordinary, budget_s)[0][:SENTINELS]


def _kernel(item: Item) -> bool:
    """Tell whether *item* is an ordinary call, which may be a sentinel."""
    return not (item.point.guess_s or item.point.whole_s)
