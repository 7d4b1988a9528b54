"""The four forms of cost that local search works with; every objective is a sum of them.

Letters: L MoE layers, E experts, D devices, N distinct sets of experts that tokens of a layer chose
together, K experts in a set (top-k), F kinds of groups (devices, nodes).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

Levels = list[tuple[np.ndarray, float]]


class Flows(NamedTuple):
    """A cost between neighbouring layers: *share* [L-1, E, E] times the *distance* [D, D] of the two devices.

    levels  the same distance as a tree, as in ``Problem.levels``; None if it is none
    """

    share: np.ndarray
    distance: np.ndarray
    levels: Levels | None


class Spread(NamedTuple):
    """A cost per token of a layer: *price* for every group ([D] -> group) that one of its experts is in."""

    group_of: np.ndarray
    price: float


class Costs(NamedTuple):
    """What an objective adds to the cost of a placement; all float64, whatever is None or empty adds nothing.

    table   [L, E, D]: an expert on a device, wherever the others are
    flows   between the experts of neighbouring layers
    loads   [L, E]: the largest sum on a device, per layer
    spread  of the tokens of a layer (Profile.sets), mean over the tokens and the layers
    """

    table: np.ndarray | None = None
    flows: tuple[Flows, ...] = ()
    loads: np.ndarray | None = None
    spread: tuple[Spread, ...] = ()


class Together(NamedTuple):
    """What spreading costs in a layer: *price*[f] for every group of kind f that a token's experts are in.

    members  int32 [N, K], the experts of each set, all different;  tokens  float64 [N], whole numbers
    group_of int64 [F, D];  price  float64 [F]. Without sets, or with F = 0, spreading costs nothing.
    """

    members: np.ndarray
    tokens: np.ndarray
    group_of: np.ndarray
    price: np.ndarray


ALONE = Together(np.zeros((0, 1), np.int32), np.zeros(0), np.zeros((0, 1), np.int64), np.zeros(0))


def total(costs: Iterable[Costs]) -> Costs:
    """Return the sum of *costs*."""
    table = loads = None
    flows: tuple[Flows, ...] = ()
    spread: tuple[Spread, ...] = ()
    for cost in costs:
        table = cost.table if table is None else table if cost.table is None else table + cost.table
        loads = cost.loads if loads is None else loads if cost.loads is None else loads + cost.loads
        flows, spread = flows + cost.flows, spread + cost.spread
    return Costs(table, flows, loads, spread)
