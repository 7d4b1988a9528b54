"""The hot loop of boosted trees. Numba is imported with this module, so import it inside functions."""

from __future__ import annotations

import numpy as np
from numba import njit, uint32

_BLOCK = 256  # rows whose features stay in the first-level cache while all trees see them


@njit(cache=True, nogil=True)
def add(features: np.ndarray, feature: np.ndarray, threshold: np.ndarray, value: np.ndarray, out: np.ndarray) -> None:
    """Add to *out* [rows] the value of the leaf that each row of *features* [features, rows] reaches in every tree.

    Trees are complete and walked level by level, all rows of a block at once, without a branch: unsigned numbers, as
    signed ones would be tested for being negative.
    """
    inner = feature.shape[1]
    depth = 0
    while (1 << depth) - 1 < inner:
        depth += 1
    node, block = np.empty(_BLOCK, np.uint32), np.empty(features.shape[0] * _BLOCK, np.float32)
    for first in range(0, out.size, _BLOCK):
        rows = min(_BLOCK, out.size - first)
        for f in range(features.shape[0]):
            for r in range(rows):
                block[f * _BLOCK + r] = features[f, first + r]
        for tree in range(feature.shape[0]):
            feature_of, threshold_of, value_of = feature[tree], threshold[tree], value[tree]
            node[:] = 0
            for _ in range(depth):
                for r in range(rows):
                    k = node[r]
                    right = block[uint32(feature_of[k]) * uint32(_BLOCK) + uint32(r)] > threshold_of[k]
                    node[r] = uint32(2) * k + uint32(1) + uint32(right)
            for r in range(rows):
                out[first + r] += value_of[node[r] - uint32(inner)]
