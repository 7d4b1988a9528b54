"""Dense products as a model runs them (``F.linear``), weights streamed, from one row to many.

Weights come from a ring, activations stay where the last kernel left them:

>>> from moesim.measure.target import Target
>>> points = DenseGemm().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> sorted({p.op for p in points}), all(p.cold for p in points)
(['gemm'], True)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moesim.measure import shapes
from moesim.measure.point import Point, Work
from moesim.measure.target import Target
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench

# (columns, inner size). GPU: Mixtral, Qwen3-30B, DeepSeek-V3, gpt-oss, and slices of tensor parallelism.
SITES = {
    "cuda": ((6144, 4096), (4096, 4096), (8, 4096), (32000, 4096), (5120, 2048), (2048, 4096), (128, 2048),
             (151936, 2048), (2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048),
             (256, 7168), (5120, 2880), (2880, 4096), (3072, 4096), (1536, 4096), (4096, 1024)),
    "cpu": ((256, 256), (512, 256), (1024, 256), (256, 1024), (768, 512), (512, 512), (2048, 512), (512, 2048),
            (1536, 1024), (1024, 1024), (4096, 1024), (1024, 4096), (3072, 2048), (2048, 2048), (8192, 1024)),
}
ROWS = {
    "cuda": (1, 2, 4, 8, 16, 17, 32, 48, 64, 96, 128, 129, 192, 256, 257, 384, 512, 768, 1024, 1536, 2048, 4096, 8192,
             16384),
    "cpu": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512),
}
RANDOM = 80      # shapes off the grid
LARGEST = {"cuda": (16384, 32768, 16384), "cpu": (512, 8192, 4096)}  # of those: rows, columns, inner size
CPU_FLOP = 4e9   # of one call: more takes too long on a CPU


@part
class DenseGemm:
    """Measure ``gemm``."""

    def points(self, target: Target) -> list[Point]:
        """Return sites x rows, and shapes off the grid."""
        rows = ROWS[target.kind]
        found = [self._point(m, n, k, shapes.at_ends(m, rows)) for n, k in SITES[target.kind] for m in rows]
        rng = np.random.default_rng(1)
        top_m, top_n, top_k = LARGEST[target.kind]
        drawn = zip(shapes.log_uniform(rng, 1, top_m, RANDOM), shapes.log_uniform(rng, 128, top_n, RANDOM, 32),
                    shapes.log_uniform(rng, 128, top_k, RANDOM, 32), strict=True)
        found += [self._point(int(m), int(n), int(k), False) for m, n, k in drawn]
        return [p for p in found if self._bearable(p, target)]

    @staticmethod
    def _point(m: int, n: int, k: int, anchor: bool) -> Point:
        return Point("gemm", {"m": m, "n": n, "k": k}, "linear", anchor=anchor)

    @staticmethod
    def _bearable(point: Point, target: Target) -> bool:
        m, n, k = (point.shapes[name] for name in "mnk")
        return (target.kind == "cuda" or 2 * m * n * k <= CPU_FLOP) and shapes.fits(target, m * (n + k) + n * k)

    def work(self, point: Point, bench: Bench) -> Work:
        """Return a product for every weight of the ring."""
        import torch.nn.functional as F

        m, n, k = (point.shapes[name] for name in "mnk")
        (x,), weights = bench.pool.ring([(n, k)], bench.target.ring_bytes, shared=[(m, k)])
        return Work([partial(F.linear, x, w) for (w,) in weights])
