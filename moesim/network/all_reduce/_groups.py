"""Members of a group in nodes, and rounds in which all of them send alike."""

from __future__ import annotations

import numpy as np

from moesim.network.stages import Round


def nodes_of(n: int, per_node: int) -> tuple[int, int]:
    """Return (nodes, members in each) of a group of *n*. Raises ``ValueError`` if it fills some nodes only in part."""
    positive(n, per_node)
    if n <= per_node:
        return 1, n
    if n % per_node:
        raise ValueError(f"a group of {n} members does not fill nodes of {per_node}; take a multiple of {per_node}, "
                         f"or the collective 'ring', which asks for no nodes")
    return n // per_node, per_node


def positive(n: int, per_node: int) -> None:
    """Raise ``ValueError`` unless both are at least 1."""
    if n < 1 or per_node < 1:
        raise ValueError(f"a group of {n} members in nodes of {per_node}; both must be at least 1")


def everyone(target: np.ndarray, share: float, repeat: int = 1, launch: bool = True, latencies: int = 1) -> Round:
    """Return the round in which each member i sends *share* to ``target[i]``."""
    return Round(np.arange(len(target)), target, np.full(len(target), share), repeat, launch, latencies)


def next_inside(n: int, per_node: int) -> np.ndarray:
    """Return for each of *n* members the next one of its node, the first after the last."""
    member = np.arange(n)
    return member // per_node * per_node + (member + 1) % per_node
