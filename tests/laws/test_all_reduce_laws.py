"""What holds for every all-reduce: everybody has the sum in the end, and sends no more than it must."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import registry
from moesim.network.all_reduce.tree import depth, double_tree
from moesim.network.stages import Round

FEW = settings(deadline=None, max_examples=20)


def rounds(name: str, n: int, per_node: int) -> tuple[list[Round], list[Round]]:
    return registry.make("all_reduce", name).rounds(n, per_node)


def sent(half: list[Round], n: int, by: str = "src") -> np.ndarray:
    """Return the share of a vector that each member sends (or gets, *by* dst) in all rounds of *half*."""
    return sum((r.repeat * np.bincount(getattr(r, by), r.share, minlength=n) for r in half), np.zeros(n))


@st.composite
def groups(draw: st.DrawFn, name: str) -> tuple[int, int]:
    """Draw (members, per_node) that the all-reduce *name* can do."""
    if name == "halving_doubling":
        return 2 ** draw(st.integers(0, 6)), draw(st.integers(1, 8))
    per_node = draw(st.integers(1, 8))
    return draw(st.integers(1, 8)) * per_node if name != "nvls" else draw(st.integers(1, per_node)), per_node


@pytest.mark.parametrize("name", registry.names("all_reduce"))
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_bytes_of_every_all_reduce(name: str, data: st.DataObject) -> None:
    n, per_node = data.draw(groups(name))
    first, second = rounds(name, n, per_node)
    for one in first + second:
        assert (one.src != one.dst).all() and len(set(zip(one.src, one.dst, strict=True))) == len(one.src)
        assert one.src.dtype == one.dst.dtype == np.int64 and one.share.dtype == np.float64
        assert one.repeat >= 1 and one.latencies >= 1 and ((0 <= one.dst) & (one.dst < n)).all()
    assert [r.launch for r in first + second][:1] in ([], [True])
    best = (n - 1) / n
    if registry.make("all_reduce", name).halves_alone:
        for half in (first, second):
            np.testing.assert_allclose([sent(half, n), sent(half, n, "dst")], best, rtol=1e-12)
    elif name == "nvls":
        whole = (n + 1) / n if n > 2 else 2 * (n - 1) / n  # the switch is for three and more
        np.testing.assert_allclose([sent(first + second, n), sent(first + second, n, "dst")], whole, rtol=1e-12)
    else:
        for half in (first, second):  # all but the roots give away, in sum, what n - 1 members add
            assert sent(half, n).sum() == pytest.approx(n - 1)
            assert max(sent(half, n).max(), sent(half, n, "dst").max()) <= 1 + 1e-12


@pytest.mark.parametrize("name", ["hierarchical_ring", "tree"])
@FEW
@given(per_node=st.integers(1, 8), nodes=st.integers(2, 8))
def test_all_ports_of_a_node_share_the_work(name: str, per_node: int, nodes: int) -> None:
    first, second = rounds(name, nodes * per_node, per_node)
    port = np.zeros(nodes * per_node)
    for one in first + second:
        far = one.src // per_node != one.dst // per_node
        assert (one.src[far] % per_node == one.dst[far] % per_node).all(), "between equal positions only"
        port += one.repeat * np.bincount(one.src[far], one.share[far], minlength=len(port))
    by_node = port.reshape(nodes, per_node)
    np.testing.assert_allclose(by_node, by_node[:, :1] + 0 * by_node, rtol=1e-12)
    if name == "hierarchical_ring":  # an all-reduce among nodes, of one vector per node
        np.testing.assert_allclose(by_node.sum(axis=1), 2 * (nodes - 1) / nodes, rtol=1e-12)
    else:
        assert by_node.sum() == pytest.approx(2 * (nodes - 1))


def halving(half: int, one: Round, step: int, i: int, j: int, n: int, m: int) -> range:
    size = i ^ j
    start = (j if half == 0 else i) // size * size
    return range(start, start + size)


def around(half: int, one: Round, step: int, i: int, j: int, n: int, m: int) -> range:
    chunk = (i - step + half) % n
    return range(chunk, chunk + 1)


def at_once(half: int, one: Round, step: int, i: int, j: int, n: int, m: int) -> range:
    return range(j, j + 1) if half == 0 else range(i, i + 1)


def two_levels(half: int, one: Round, step: int, i: int, j: int, n: int, m: int) -> range:
    """Blocks of n / m chunks go around in nodes; member a of each has block a + 1, whose chunks go around the nodes."""
    node, a, nodes = i // m, i % m, n // m
    if j // m == node:
        block = (a - step + half) % m
        return range(block * nodes, (block + 1) * nodes)
    chunk = (a + 1) % m * nodes + (node - step + half) % nodes
    return range(chunk, chunk + 1)


WHICH: dict[str, Callable[..., range]] = {"ring": around, "halving_doubling": halving, "direct": at_once,
                                          "hierarchical_ring": two_levels}


@pytest.mark.parametrize("name", sorted(WHICH))
@FEW
@given(data=st.data())
def test_everybody_has_the_sum_in_the_end(name: str, data: st.DataObject) -> None:
    """Do the rounds on vectors of n chunks; which chunks a message carries is the textbook's, how many its share."""
    n, per_node = data.draw(groups(name))
    m = min(n, per_node)
    vectors = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).integers(1, 2**40, (n, n))
    total, now = vectors.sum(axis=0), vectors.copy()
    for half, todo in enumerate(rounds(name, n, per_node)):
        for one, step in [(r, k) for r in todo for k in range(r.repeat)]:
            before = now.copy()
            for i, j, share in zip(one.src, one.dst, one.share, strict=True):
                chunks = list(WHICH[name](half, one, step, int(i), int(j), n, m))
                assert len(chunks) == round(share * n, 9)
                now[j, chunks] = before[i, chunks] + (now[j, chunks] if half == 0 else 0)
        if half == 0 and n > 1:
            done = now == total
            assert (done.sum(axis=0) == 1).all() and (done.sum(axis=1) == 1).all(), "a reduce-scatter: one chunk each"
    assert (now == total).all()


@settings(deadline=None, max_examples=60)
@given(n=st.integers(2, 200))
def test_double_trees_add_up_and_share_the_work(n: int) -> None:
    parents = double_tree(n)
    below = np.array([np.bincount(p[p >= 0], minlength=n) for p in parents])
    assert (below.sum(axis=0) <= 2).all() and below.sum() == 2 * (n - 1)
    twice = np.flatnonzero((below > 0).all(axis=0))  # inner in both trees
    assert len(twice) == 0 if n % 2 == 0 else all(below[:, twice].ravel() == 1)
    for parent in parents:
        assert (parent < 0).sum() == 1
        assert 1 <= depth(parent) <= ceil(log2(n))
        values = np.arange(n) ** 2 + 1
        added, order = values.copy(), sorted(range(n), key=lambda i: -hops(parent, i))
        for member in order:  # from the leaves up
            if parent[member] >= 0:
                added[parent[member]] += added[member]
        assert added[order[-1]] == values.sum()
    # A round among nodes of one is both trees' links.
    up, down = (half[0] for half in rounds("tree", n, 1))
    links = sorted((c, int(p[c])) for p in parents for c in range(n) if p[c] >= 0)
    assert sorted(set(links)) == list(zip(up.src.tolist(), up.dst.tolist(), strict=True))
    assert up.share.sum() == len(links) / 2
    assert (down.src.tolist(), down.dst.tolist()) == (up.dst.tolist(), up.src.tolist())


def hops(parent: np.ndarray, member: int) -> int:
    """Return how many links *member* is from the root."""
    return 0 if parent[member] < 0 else 1 + hops(parent, int(parent[member]))
