"""Groups of four and eight members add up their vectors: every round of every all-reduce on paper."""

from __future__ import annotations

import pytest

from moesim import registry
from moesim.network.stages import Round


def rounds(name: str, n: int, per_node: int) -> tuple[list[Round], list[Round]]:
    return registry.make("all_reduce", name).rounds(n, per_node)


def written(half: list[Round]) -> list[tuple[dict[tuple[int, int], float], int, bool, int]]:
    """Return ({(from, to): share}, repeat, launch, latencies) of each round."""
    return [({(int(s), int(d)): float(v) for s, d, v in zip(r.src, r.dst, r.share, strict=True)},
             r.repeat, r.launch, r.latencies) for r in half]


def pairs(text: str, share: float) -> dict[tuple[int, int], float]:
    """Return the messages of ``"01 12"``: from 0 to 1 and from 1 to 2."""
    return {(int(p[0]), int(p[1])): share for p in text.split()}


def test_ring() -> None:
    for n, around in ((4, "01 12 23 30"), (8, "01 12 23 34 45 56 67 70")):
        first, second = rounds("ring", n, 2)
        assert written(first) == [(pairs(around, 1 / n), n - 1, True, 1)]
        assert written(second) == [(pairs(around, 1 / n), n - 1, False, 1)]


def test_halving_doubling() -> None:
    first, second = rounds("halving_doubling", 4, 2)
    assert written(first) == [(pairs("02 13 20 31", 1 / 2), 1, True, 1), (pairs("01 10 23 32", 1 / 4), 1, False, 1)]
    assert written(second) == [(pairs("01 10 23 32", 1 / 4), 1, False, 1), (pairs("02 13 20 31", 1 / 2), 1, False, 1)]
    far, middle, near = "04 15 26 37 40 51 62 73", "02 13 20 31 46 57 64 75", "01 10 23 32 45 54 67 76"
    first, second = rounds("halving_doubling", 8, 8)
    assert written(first) == [(pairs(far, 1 / 2), 1, True, 1), (pairs(middle, 1 / 4), 1, False, 1),
                              (pairs(near, 1 / 8), 1, False, 1)]
    assert written(second) == [(pairs(near, 1 / 8), 1, False, 1), (pairs(middle, 1 / 4), 1, False, 1),
                               (pairs(far, 1 / 2), 1, False, 1)]


def test_direct() -> None:
    first, second = rounds("direct", 4, 2)
    everybody = "01 02 03 10 12 13 20 21 23 30 31 32"
    assert written(first) == [(pairs(everybody, 1 / 4), 1, True, 1)]
    assert written(second) == [(pairs(everybody, 1 / 4), 1, False, 1)]
    eight = {(i, j): 1 / 8 for i in range(8) for j in range(8) if i != j}
    assert [written(half)[0][0] for half in rounds("direct", 8, 2)] == [eight, eight]


def test_hierarchical_ring() -> None:
    first, second = rounds("hierarchical_ring", 4, 2)
    near, far = pairs("01 10 23 32", 1 / 2), pairs("02 13 20 31", 1 / 4)
    assert written(first) == [(near, 1, True, 1), (far, 1, True, 1)]
    assert written(second) == [(far, 1, False, 1), (near, 1, True, 1)]
    first, second = rounds("hierarchical_ring", 8, 4)
    near, far = pairs("01 12 23 30 45 56 67 74", 1 / 4), pairs("04 15 26 37 40 51 62 73", 1 / 8)
    assert written(first) == [(near, 3, True, 1), (far, 1, True, 1)]
    assert written(second) == [(far, 1, False, 1), (near, 3, True, 1)]
    # Four nodes of two: rings 0-2-4-6 and 1-3-5-7.
    around = pairs("02 24 46 60 13 35 57 71", 1 / 8)
    assert written(rounds("hierarchical_ring", 8, 2)[0]) == [
        (pairs("01 10 23 32 45 54 67 76", 1 / 2), 1, True, 1), (around, 3, True, 1)]
    for n, per_node in ((4, 4), (4, 8), (8, 1)):  # one node, part of one, and nodes of one: a plain ring
        assert [written(h) for h in rounds("hierarchical_ring", n, per_node)] == [
            written(h) for h in rounds("ring", n, per_node)]


def test_tree_of_nodes_of_one() -> None:
    #  0           3
    #  └ 2         └ 1        Left tree and its mirror image, each for one half.
    #    ├ 1         ├ 0
    #    └ 3         └ 2
    up, down = rounds("tree", 4, 1)
    assert written(up) == [(pairs("12 32 20 01 21 13", 1 / 2), 1, True, 2)]
    assert written(down) == [(pairs("21 23 02 10 12 31", 1 / 2), 1, False, 2)]
    # Eight: 0 - 4 - (2 - (1, 3), 6 - (5, 7)), and 7 - 3 - (1 - (0, 2), 5 - (4, 6)).
    up, down = rounds("tree", 8, 1)
    assert written(up) == [(pairs("40 24 64 12 32 56 76", 1 / 2) | pairs("37 13 53 01 21 45 65", 1 / 2), 1, True, 3)]
    assert written(down) == [(pairs("04 42 46 21 23 65 67 73 31 35 10 12 54 56", 1 / 2), 1, False, 3)]
    # Three: 0 - 2 - 1, and, one on, 1 - 0 - 2. Both have 2 below 0: one message of both halves.
    assert written(rounds("tree", 3, 1)[0]) == [(pairs("12 01", 1 / 2) | pairs("20", 1.0), 1, True, 2)]


def test_tree_with_chains_in_nodes() -> None:
    # One node of four: chain a ends at member a and carries a quarter, so every member passes on three quarters.
    up, down = rounds("tree", 4, 4)
    assert written(up) == [(pairs("03 10 21 32", 3 / 4), 1, True, 3)]
    assert written(down) == [(pairs("30 01 12 23", 3 / 4), 1, False, 3)]
    # Two nodes of four: node 1 below node 0 in one tree, above it in the other, an eighth in each and every position.
    up, _ = rounds("tree", 8, 4)
    chains, trees = pairs("03 10 21 32 47 54 65 76", 3 / 4), pairs("40 51 62 73 04 15 26 37", 1 / 8)
    assert written(up) == [(chains | trees, 1, True, 1)]


def test_nvls() -> None:
    # Four members: out 4 parts and 1 sum to be multicast, in 1 sum and 4 results, of a quarter each.
    first, second = rounds("nvls", 4, 8)
    assert written(first) == [(pairs("01 12 23 30", 5 / 4), 1, True, 2)]
    assert second == []
    # Two nodes of two: no switch for two, 2 * 1/2; then a ring of each position on a half, both halves of it: 2 * 1/4.
    assert written(rounds("nvls", 4, 2)[0]) == [(pairs("01 10 23 32", 1), 1, True, 2),
                                                (pairs("02 13 20 31", 1 / 4), 2, True, 1)]
    assert written(rounds("nvls", 8, 8)[0]) == [(pairs("01 12 23 34 45 56 67 70", 9 / 8), 1, True, 2)]


def test_groups_that_do_not_fit() -> None:
    for name in registry.names("all_reduce"):
        assert rounds(name, 1, 4) == ([], [])
        for n, per_node in ((0, 1), (2, 0)):
            with pytest.raises(ValueError, match="both must be at least 1"):
                rounds(name, n, per_node)
    with pytest.raises(ValueError, match="power of two, got 6 members; take 4 or 8, or the collective 'ring'"):
        rounds("halving_doubling", 6, 6)
    for name in ("tree", "hierarchical_ring", "nvls"):
        with pytest.raises(ValueError, match="6 members does not fill nodes of 4; take a multiple of 4"):
            rounds(name, 6, 4)
