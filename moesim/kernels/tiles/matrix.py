"""Dense and expert matrix products as tiles, and kernels that only move bytes."""

from __future__ import annotations

import numpy as np

from moesim.kernels.ops import Shapes
from moesim.kernels.rates import Rates
from moesim.registry import part
from moesim.units import Seconds


def _columns(shape: tuple[int, ...], *arrays: np.ndarray) -> np.ndarray:
    """Return *arrays* broadcast to *shape*, side by side: float64 [rows, arrays], C-contiguous."""
    return np.stack([np.broadcast_to(a, shape).reshape(-1) for a in arrays], axis=-1)


def _speeds(rates: Rates, constants: GemmTiles | ExpertTiles) -> tuple[float, ...]:
    """Return the fields of ``loops.Speeds``: what tiles reach on this processor."""
    return (float(rates.multiprocessors), float(rates.flop_per_s_each * constants.compute),
            float(rates.bandwidth_each * constants.load), float(rates.bandwidth * constants.stream),
            float(constants.prologue))


@part
class StreamTiles:
    """Constants of a kernel that only reads and writes: ``launch``, ``stream``: reached share of the memory bandwidth.

    Defaults: launch of a product in the same tables; 0.86-0.89 measured for weights streamed by a one-row product, H200
    (assumed the same here).
    """

    launch: Seconds = 2.4e-6
    stream: float = 0.87

    def time_s(self, rates: Rates, moved: np.ndarray) -> np.ndarray:
        """Return seconds of *moved* bytes."""
        return self.launch + moved / (rates.bandwidth * self.stream)


@part
class GemmTiles:
    """Constants of one dense product. Defaults: cuBLAS, bf16, H200 (``hw_configs/kernels/h200-tile.yaml``).

    ``compute``: reachable share of the peak inside a tile. ``stream``: reachable share of the memory bandwidth.
    ``load``: what one multiprocessor can load (mostly from L2), in even shares of the memory bandwidth.
    ``prologue``: inner steps that filling a tile's pipeline costs. ``split``: extra seconds when the inner dimension
    is split. ``reduce``: rate of partial sums, in memory bandwidths.
    """

    launch: Seconds = 2.4e-6
    compute: float = 0.825
    stream: float = 0.832
    load: float = 4.38
    prologue: float = 161.0
    split: Seconds = 2.4e-6
    reduce: float = 1.93

    def time_s(self, rates: Rates, s: Shapes) -> np.ndarray:
        """Return seconds of ``gemm``."""
        from moesim.kernels.tiles import loops  # numba

        columns = (s["m"], s["n"], s["k"], s["weight_bytes"])
        shape = np.broadcast_shapes(*(c.shape for c in columns))
        shapes = _columns(shape, *columns)
        out = np.empty(len(shapes))
        loops.gemm(shapes, float(rates.value_bytes), loops.Speeds(*_speeds(rates, self)), float(self.split),
                   float(rates.bandwidth * self.reduce), out)
        return self.launch + out.reshape(shape)


@part
class ExpertTiles:
    """Constants of one fused expert layer. Defaults: Triton kernels of vLLM 0.24, bf16, H200, EP = 1, balanced.

    ``launch``: all that does not scale: the graph of align, two products, activation and sum. ``compute``,
    ``stream``, ``load``, ``prologue``: as for a dense product. ``elementwise``: share of the memory bandwidth that
    activation and sum reach. ``unaligned``: share of the rates left when inter is no multiple of 32 bytes (slices of
    odd widths). ``unpack``: the same when weights of less than a byte are unpacked to 16 bit (mxfp4 kernels of
    vLLM 0.18, gpt-oss, H200). ``remote``: rate, in memory bandwidths, at which zeros are written for rows of other
    devices' experts (vLLM's EP > 1 path). Sorting tokens by expert is included.
    """

    launch: Seconds = 28.1e-6
    compute: float = 1.0
    stream: float = 0.9
    load: float = 2.42
    prologue: float = 413.0
    elementwise: float = 0.415
    unaligned: float = 0.33
    remote: float = 1.82
    unpack: float = 0.6

    def time_s(self, rates: Rates, s: Shapes) -> np.ndarray:
        """Return seconds of ``moe``."""
        from moesim.kernels.tiles import loops  # numba

        counts = s["tokens_per_expert"]
        columns = (s["hidden"], s["inter"], s["matrices"] - 1, s["weight_bytes"])
        shape = np.broadcast_shapes(counts.shape[:-1], s["rows"].shape, *(c.shape for c in columns))
        counts = np.ascontiguousarray(np.broadcast_to(counts, shape + counts.shape[-1:])).reshape(-1, counts.shape[-1])
        out = np.empty(len(counts))
        loops.experts(counts, _columns(shape, *columns), float(rates.value_bytes), loops.Speeds(*_speeds(rates, self)),
                      float(self.unaligned), out)
        products = out.reshape(shape) / np.where(s["weight_bytes"] < 1, self.unpack, 1.0)
        # Activation reads (matrices - 1) * inter and writes inter per row; the sum reads hidden.
        values = s["rows"] * (s["matrices"] * s["inter"] + s["hidden"]) / self.elementwise
        zeros = np.maximum(s["rows"] - s["tokens"], 0) * ((s["matrices"] - 1) * s["inter"] + s["hidden"]) / self.remote
        return self.launch + products + (values + zeros) * rates.value_bytes / rates.bandwidth
