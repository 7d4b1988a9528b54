"""Shapes that the blocks share: public models on a GPU, sizes that a CPU gets through on a CPU.

A row of ``EXPERTS`` is (experts on the device, hidden, expert width, top_k); model files in ``workloads/models`` name
the sources. Qwen3-235B, DeepSeek-V3 and Qwen3-Next appear as one device of 4, 8 and 4 has them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.measure.target import Target


class Heads(NamedTuple):
    """Heads of queries, of keys and values, and their width."""

    queries: int
    keys: int
    width: int

    @property
    def all_widths(self) -> int:
        """Columns of the fused query, key and value projection."""
        return (self.queries + 2 * self.keys) * self.width


EXPERTS = {
    "cuda": ((8, 4096, 14336, 2), (128, 2048, 768, 8), (32, 2880, 2880, 4), (64, 2048, 1408, 6), (64, 2048, 1024, 8),
             (32, 4096, 1536, 8), (32, 7168, 2048, 8), (128, 2048, 512, 10)),
    "cpu": ((8, 256, 512, 2), (32, 256, 256, 4), (8, 512, 1024, 2), (16, 512, 512, 4), (64, 512, 256, 4),
            (8, 1024, 2048, 2), (16, 1024, 1024, 2), (32, 1024, 512, 4),
            (12, 320, 448, 2), (20, 576, 352, 4), (10, 832, 1152, 2), (12, 1152, 1664, 2)),  # no powers of 2
}
TOKENS = {"cuda": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
          "cpu": (1, 2, 4, 8, 16, 32, 64, 128, 256)}
HEADS = {
    "cuda": (Heads(32, 8, 128), Heads(32, 4, 128), Heads(64, 8, 64), Heads(8, 2, 128), Heads(16, 16, 128)),
    "cpu": (Heads(4, 4, 64), Heads(8, 2, 64), Heads(8, 8, 64), Heads(16, 4, 64), Heads(8, 2, 128), Heads(16, 16, 64)),
}


def log_uniform(rng: np.random.Generator, low: float, high: float, size: int, step: int = 1) -> np.ndarray:
    """Return *size* whole multiples of *step* whose logarithms are even between *low* and *high*: int64."""
    drawn = np.exp(rng.uniform(np.log(low), np.log(high), size))
    return np.maximum(np.rint(drawn / step), 1).astype(np.int64) * step


def at_ends(value: float, values: tuple[int, ...]) -> bool:
    """Tell whether *value* is the first, the second largest or the largest of *values*: an end of the domain."""
    return value in (values[0], *values[-2:])


def fits(target: Target, values: float) -> bool:
    """Tell whether so many *values*, and a ring, fit into what buffers may use."""
    return values * target.value_bytes + target.ring_bytes <= target.memory_bytes
