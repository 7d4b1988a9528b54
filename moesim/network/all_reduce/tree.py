"""Double binary tree between nodes, chains inside them (NCCL): log N hops; each tree sums up and hands down one half.

Four nodes of one: each tree has a root, one member below it, and two leaves, which are the inner members of the other.

>>> up = Tree().rounds(4, per_node=1)[0][0]
>>> sorted(zip(up.src.tolist(), up.dst.tolist())), float(up.share[0]), up.latencies
([(0, 1), (1, 2), (1, 3), (2, 0), (2, 1), (3, 2)], 0.5, 2)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.network.all_reduce._groups import nodes_of
from moesim.network.stages import Round
from moesim.registry import part


@part
class Tree:
    """Stream the vector up both trees and down again: all their links at once, each direction in its half.

    Position a of every node carries 1 / m of the vector with trees of its own, gathered along a chain that ends at a
    (NCCL: "the tree is only between nodes", github.com/NVIDIA/nccl/issues/919). A binary tree alone would leave the
    links of its leaves half idle; a member that is inner in one is a leaf in the other (Sanders, Speck, Traff, Parallel
    Computing 2009). The shapes are those of ``ncclGetDtree``, where with an odd number of nodes the first root has one
    member below it in each tree.
    """

    halves_alone: ClassVar[bool] = False

    def rounds(self, n: int, per_node: int) -> tuple[list[Round], list[Round]]:
        """Return one round up and one down, in one kernel. Raises ``ValueError`` for part-filled nodes.

        The latencies are those of the slowest links: the depth of the trees, or of the chain when there is one node.
        """
        nodes, m = nodes_of(n, per_node)
        if n == 1:
            return [], []
        member = np.arange(n)
        before = member // m * m + (member - 1) % m  # a chain per position, ending there
        chains = [(member, before, (m - 1) / m)] if m > 1 else []
        trees = [(parents, np.flatnonzero(parents >= 0)) for parents in double_tree(nodes)]
        position = np.arange(m)[:, None]
        edges = [((child * m + position).ravel(), (parents[child] * m + position).ravel(), 1 / (2 * m))
                 for parents, child in trees if len(child)]
        up = _joined([*chains, *edges], max(depth(p) for p, _ in trees) if nodes > 1 else m - 1)
        return [up], [up._replace(src=up.dst, dst=up.src, launch=False)]


def double_tree(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the parents [n] in both trees of *n* members; -1 for the root.

    The first numbers its members from left to right (an inorder walk), so odd ones are leaves. The second is its mirror
    image when *n* is even, and shifted by one member when it is odd.
    """
    first, member = binary_tree(n), np.arange(n)
    if n % 2 == 0:
        return first, np.where(first[::-1] >= 0, n - 1 - first[::-1], -1)
    before = first[(member - 1) % n]
    return first, np.where(before >= 0, (before + 1) % n, -1)


def binary_tree(n: int) -> np.ndarray:
    """Return the parents [n] of a binary tree under member 0, which has one child, the largest power of two below *n*.

    A member whose lowest set bit is b hangs under the one at distance b whose lowest set bit is 2 b; where that would
    be *n* or more, under the one at distance b on its left.
    """
    member = np.arange(n)
    low = member & -member
    left, right = member - low, member + low
    parent = np.where(left & (2 * low) > 0, left, right)
    parent = np.where(parent < n, parent, left)
    return np.where(member > 0, parent, -1)


def depth(parents: np.ndarray) -> int:
    """Return the number of hops from the deepest member to the root."""
    at, hops = np.arange(len(parents)), 0
    while (parents[at] >= 0).any():
        at, hops = np.where(parents[at] >= 0, parents[at], at), hops + 1
    return hops


def _joined(edges: list[tuple[np.ndarray, np.ndarray, float]], latencies: int) -> Round:
    """Return one round of all *edges* (children, parents, share); pairs that are in several are one message."""
    src = np.concatenate([e[0] for e in edges])
    dst = np.concatenate([e[1] for e in edges])
    share = np.concatenate([np.full(len(e[0]), e[2]) for e in edges])
    pairs, which = np.unique(np.stack([src, dst]), axis=1, return_inverse=True)
    return Round(pairs[0], pairs[1], np.bincount(which.ravel(), share), latencies=latencies)
