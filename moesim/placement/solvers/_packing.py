"""Greedy packing of weighted items with a limit on the items per pack (shared by lpt and eplb)."""

from __future__ import annotations

import heapq

import numpy as np


def pack(weights: np.ndarray, n_packs: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pack of each item and its rank in the pack, int64 [n] each.

    Longest processing time first (Graham, SIAM J. Appl. Math. 17, 1969): items by falling *weights* [n], each
    into the lightest pack that holds fewer than *capacity*; ties go to the lower item and the lower pack.
    """
    packs, ranks = np.empty(len(weights), dtype=np.int64), np.empty(len(weights), dtype=np.int64)
    heap = [(weights.dtype.type(0), p, 0) for p in range(n_packs)]  # (weight, pack, items), lightest first
    for item in np.argsort(-weights, kind="stable"):
        weight, p, items = heapq.heappop(heap)
        packs[item], ranks[item] = p, items
        if items + 1 < capacity:
            heapq.heappush(heap, (weight + weights[item], p, items + 1))
    return packs, ranks
