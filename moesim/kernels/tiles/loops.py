"""Hot loops over rows and tile shapes. Numba is imported with this module, so import it inside functions.

All rates in SI; arrays are float64 and C-contiguous, one entry per row. Tests compare with plain numpy twins.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numba import njit

# Output tiles (rows of m, columns of n) of the kernels in use: cuBLAS and CUTLASS on Hopper choose among these; a GEMM
# with few rows is computed transposed, so that either side may be the short one.
TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (64, 256), (256, 64), (128, 256), (256, 128))
SPLITS = (1, 2, 4, 8, 16)             # parts that the inner dimension is cut into
EXPERT_ROWS = (16, 32, 64, 128)       # rows per block of fused expert kernels (Triton configurations of vLLM)
EXPERT_COLUMNS = (64, 128)


@njit(cache=True, nogil=True, error_model="numpy")
def _overlapped(a: float, b: float) -> float:
    a, b = a * a, b * b
    return sqrt(sqrt(a * a + b * b))


@njit(cache=True, nogil=True, error_model="numpy")
def gemm(m, n, k, weight_bytes, value_bytes, sms, flop_each, load_each, stream, prologue, split_s, reduce, out):  # type: ignore[no-untyped-def]
    """Fill *out* with seconds of [m, k] x [k, n], without the launch: the best of all tile shapes and splits.

    ``flop_each``, ``load_each``: reachable FLOP/s and bytes/s of one multiprocessor. ``stream``, ``reduce``: bytes/s of
    memory for operands, and for partial sums of a split. ``prologue``: inner steps that filling the pipeline costs.
    """
    for r in range(out.size):
        memory = (m[r] * (n[r] + k[r]) * value_bytes + n[r] * k[r] * weight_bytes[r]) / stream
        best = np.inf
        for rows, columns in TILES:
            tiles = np.ceil(m[r] / rows) * np.ceil(n[r] / columns)
            step = max(2.0 * rows * columns / flop_each, (rows * value_bytes + columns * weight_bytes[r]) / load_each)
            for split in SPLITS:
                waves = max(tiles * split / sms, 1.0)
                seconds = _overlapped(waves * step * (k[r] / split + prologue), memory)
                if split > 1:  # partial sums in fp32, written and read, and the kernel that adds them
                    seconds += split_s + split * m[r] * n[r] * 8.0 / reduce
                best = min(best, seconds)
        out[r] = best


@njit(cache=True, nogil=True, error_model="numpy")
def _grouped_gemm(blocks, active, tokens, n, k, weight_bytes, value_bytes, sms, flop_each, load_each, stream, prologue):  # type: ignore[no-untyped-def]
    """Return seconds of one matrix product of every active expert with its own tokens (blocks: per EXPERT_ROWS)."""
    tiled = np.inf
    for i in range(len(EXPERT_ROWS)):
        rows = EXPERT_ROWS[i]
        for columns in EXPERT_COLUMNS:
            waves = np.ceil(blocks[i] * np.ceil(n / columns) / sms)
            step = max(2.0 * rows * columns / flop_each, (rows * value_bytes + columns * weight_bytes) / load_each)
            tiled = min(tiled, waves * step * (k + prologue))
    return _overlapped(tiled, (active * n * k * weight_bytes + tokens * (n + k) * value_bytes) / stream)


@njit(cache=True, nogil=True, error_model="numpy")
def experts(counts, hidden, inter, wide, weight_bytes, value_bytes, sms, flop_each, load_each, stream, prologue, out):  # type: ignore[no-untyped-def]
    """Fill *out* with seconds of both products of a fused expert layer: hidden -> wide * inter -> hidden.

    ``counts`` [rows, experts]: tokens of each expert. Only experts with tokens stream weights; each has its own blocks.
    """
    blocks = np.zeros(len(EXPERT_ROWS))
    for r in range(out.size):
        blocks[:] = 0.0
        active = 0
        tokens = 0
        for e in range(counts.shape[1]):
            t = int(np.ceil(counts[r, e]))
            if t > 0:
                active += 1
                tokens += t
                for i in range(len(EXPERT_ROWS)):
                    blocks[i] += (t + EXPERT_ROWS[i] - 1) // EXPERT_ROWS[i]
        up = _grouped_gemm(blocks, active, tokens, wide[r] * inter[r], hidden[r], weight_bytes[r], value_bytes,
                           sms, flop_each, load_each, stream, prologue)
        down = _grouped_gemm(blocks, active, tokens, hidden[r], inter[r], weight_bytes[r], value_bytes,
                             sms, flop_each, load_each, stream, prologue)
        out[r] = up + down
