"""Dense and expert matrix products as tiles."""

from __future__ import annotations

import numpy as np

from moesim.kernels.ops import Shapes
from moesim.kernels.rates import Rates
from moesim.registry import part
from moesim.units import Seconds


def _rows(*arrays: np.ndarray) -> tuple[list[np.ndarray], tuple[int, ...]]:
    """Return *arrays* broadcast against each other as flat contiguous float64, and their common shape."""
    wide = np.broadcast_arrays(*arrays)
    return [np.ascontiguousarray(a, dtype=np.float64).reshape(-1) for a in wide], wide[0].shape


@part
class GemmTiles:
    """Constants of one dense product. Defaults: fitted to cuBLAS bf16 on H200 (``hw_configs/kernels/h200-tile.yaml``).

    ``compute``: reachable share of the peak inside a tile. ``stream``: reachable share of the memory bandwidth. ``load``:
    what one multiprocessor can load (mostly from L2), in even shares of the memory bandwidth. ``prologue``: inner steps
    that filling a tile's pipeline costs. ``split``: extra seconds when the inner dimension is split. ``reduce``: rate of
    partial sums, in memory bandwidths.
    """

    launch: Seconds = 2.5e-6
    compute: float = 0.82
    stream: float = 0.84
    load: float = 4.0
    prologue: float = 165.0
    split: Seconds = 2.3e-6
    reduce: float = 1.5

    def time_s(self, rates: Rates, s: Shapes) -> np.ndarray:
        """Return seconds of ``gemm``."""
        from moesim.kernels.tiles import loops  # numba

        (m, n, k, weight_bytes), shape = _rows(s["m"], s["n"], s["k"], s["weight_bytes"])
        out = np.empty(m.size)
        loops.gemm(m, n, k, weight_bytes, rates.value_bytes, rates.multiprocessors, rates.flop_per_s_each * self.compute,
                   rates.bandwidth_each * self.load, rates.bandwidth * self.stream, self.prologue, self.split,
                   rates.bandwidth * self.reduce, out)
        return self.launch + out.reshape(shape)


@part
class ExpertTiles:
    """Constants of one fused expert layer. Defaults: fitted to vLLM's Triton kernels, bf16, H200, EP = 1, balanced.

    ``launch``: all that does not scale: the graph of align, two products, activation and sum. ``compute``, ``stream``,
    ``load``, ``prologue``: as for a dense product. ``elementwise``: share of the memory bandwidth that activation and sum
    reach. Sorting tokens by expert is included.
    """

    launch: Seconds = 30e-6
    compute: float = 1.0
    stream: float = 0.91
    load: float = 2.4
    prologue: float = 400.0
    elementwise: float = 0.37

    def time_s(self, rates: Rates, s: Shapes) -> np.ndarray:
        """Return seconds of ``moe``."""
        from moesim.kernels.tiles import loops  # numba

        counts = s["tokens_per_expert"]
        names = ("hidden", "inter", "matrices", "weight_bytes", "rows")
        shape = np.broadcast_shapes(counts.shape[:-1], *(s[name].shape for name in names))
        counts = np.ascontiguousarray(np.broadcast_to(counts, shape + counts.shape[-1:])).reshape(-1, counts.shape[-1])
        hidden, inter, matrices, weight_bytes = (
            np.ascontiguousarray(np.broadcast_to(s[name], shape)).reshape(-1) for name in names[:-1])
        out = np.empty(counts.shape[0])
        loops.experts(counts, hidden, inter, matrices - 1, weight_bytes, rates.value_bytes, rates.multiprocessors,
                      rates.flop_per_s_each * self.compute, rates.bandwidth_each * self.load,
                      rates.bandwidth * self.stream, self.prologue, out)
        # Activation reads (matrices - 1) * inter and writes inter per row; the sum reads hidden.
        values = s["rows"] * (s["matrices"] * s["inter"] + s["hidden"])
        return self.launch + out.reshape(shape) + values * rates.value_bytes / (rates.bandwidth * self.elementwise)
