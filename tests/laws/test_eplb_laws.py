"""EPLB against a second, plain program of its rules, and against every way of giving out replicas.

The twin works in fractions and gives up where two things that are compared are equal, or so near that single
precision may not tell them apart: there the original leaves the answer to its sort.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moesim.placement import PlacementError, Profile, solve
from moesim.placement.replicas import replicate
from moesim.placement.solvers.eplb import balance

NEAR = Fraction(1, 10**5)


class Tie(Exception):
    """Two that are compared are equal, or nearly."""


def largest(values: list[Fraction]) -> int:
    """Return where the largest of *values* is; ``Tie`` if a second is as large."""
    best = max(range(len(values)), key=values.__getitem__)
    if any(i != best and values[best] - value <= NEAR * values[best] for i, value in enumerate(values)):
        raise Tie
    return best


def packed(weights: list[Fraction], owners: list[int], n_packs: int) -> list[list[int]]:
    """Return the items of each pack, in the order they came; items of one owner may weigh the same."""
    each = len(weights) // n_packs
    if each == 1:
        return [[item] for item in range(n_packs)]
    order = sorted(range(len(weights)), key=lambda item: -weights[item])
    near = [(a, b) for a, b in zip(order, order[1:], strict=False) if weights[a] - weights[b] <= NEAR * weights[a]]
    if any(owners[a] != owners[b] for a, b in near):
        raise Tie
    packs: list[list[int]] = [[] for _ in range(n_packs)]
    for item in order:
        sums = {p: sum((weights[i] for i in packs[p]), Fraction(0)) for p in range(n_packs) if len(packs[p]) < each}
        least = min(sums.values())
        choice = [p for p, total in sums.items() if total - least <= NEAR * least]
        if len({tuple(owners[i] for i in packs[p]) for p in choice}) > 1:
            raise Tie  # of packs with the same in them (or nothing) the first is taken
        packs[choice[0]].append(item)
    return packs


def replicated(weights: list[Fraction], slots: int) -> list[int]:
    """Return the item of every slot: one each, then again and again the one with the most weight per replica."""
    items = list(range(len(weights)))
    while len(items) < slots:
        items.append(largest([weight / items.count(item) for item, weight in enumerate(weights)]))
    return items


def twin(weights: list[int], slots: int, groups: int, nodes: int, devices: int) -> list[int]:
    """Return the expert of every slot, device by device."""
    if groups % nodes:
        groups = nodes = 1
    size = len(weights) // groups
    of_group = [Fraction(sum(weights[g * size:(g + 1) * size])) for g in range(groups)]
    found = []
    for mine in packed(of_group, list(range(groups)), nodes):
        local = [g * size + i for g in mine for i in range(size)]
        own = [Fraction(weights[expert]) for expert in local]
        items = replicated(own, slots // nodes)
        loads = [own[item] / items.count(item) for item in items]
        for pack in packed(loads, items, devices // nodes):
            found += [local[items[slot]] for slot in pack]
    return found


def test_the_twin_equals_the_published_example() -> None:
    tokens = [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]
    assert twin(tokens, 16, 4, 2, 8) == [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2),
       st.integers(0, 2**32 - 1))
def test_slots_equal_the_twin(nodes: int, per_node: int, groups: int, size: int, more: int, seed: int) -> None:
    """Hierarchical where the nodes divide the groups, global elsewhere; as many slots as fill the devices, or more."""
    devices, n_experts = nodes * per_node, groups * size
    slots = -(-n_experts // devices) * devices + more * devices
    weights = np.random.default_rng(seed).integers(1, 2**20, n_experts)  # exact in single precision, and so are sums
    try:
        expected = twin(weights.tolist(), slots, groups, nodes, devices)
    except Tie:
        assume(False)
    expert, device, place = balance(weights, slots, groups, nodes, devices)
    assert expert[np.lexsort((place, device))].tolist() == expected
    assert (np.bincount(device, minlength=devices) == slots // devices).all()


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))
def test_placements_hold_what_the_twin_says(groups: int, seed: int) -> None:
    """The solver layer by layer: two nodes of two devices; two slots of one expert on a device are one replica."""
    counts = np.random.default_rng(seed).integers(1, 2**20, (3, 8))
    profile = Profile(counts, int(counts.max()), lambda top1: np.zeros((2, 8, 8), dtype=np.int64))
    answer = solve(profile, 4, {"name": "eplb", "redundant": 4, "groups": groups}, devices_per_node=2)
    for layer, weights in enumerate(counts.tolist()):
        try:
            slots = twin(weights, 12, groups, 2, 4)
        except Tie:
            assume(False)
        held = {(expert, slot // 3) for slot, expert in enumerate(slots)}
        assert {tuple(pair) for pair in np.argwhere(answer.replicas[layer]).tolist()} == held


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.integers(0, 5))
def test_replicas_make_the_heaviest_share_as_small_as_can_be(weights: list[int], extra: int) -> None:
    """Ties or not: no other way to give out the extra slots has a smaller largest weight per replica."""
    n = len(weights)
    item, load = replicate(np.array(weights, dtype=np.float32), n + extra)
    assert item[:n].tolist() == list(range(n)) and len(item) == n + extra
    assert load.tolist() == pytest.approx([weights[i] / item.tolist().count(i) for i in item])
    ways = combinations_with_replacement(range(n), extra)
    least = min(max(weight / (1 + way.count(i)) for i, weight in enumerate(weights)) for way in ways)
    assert load.max() == pytest.approx(least)


def test_what_does_not_divide_is_refused() -> None:
    profile = Profile(np.ones((1, 6), dtype=np.int64), 6, lambda top1: np.zeros((0, 6, 6), dtype=np.int64))
    with pytest.raises(PlacementError, match="6 experts and 1 redundant ones do not fill 2 devices evenly"):
        solve(profile, 2, "eplb", redundant=1)
