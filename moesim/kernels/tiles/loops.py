"""Hot loops over rows and tile shapes. Numba is imported with this module, so import it inside functions.

All rates in SI; arrays are float64 and C-contiguous, one entry per row. Tests compare with plain numpy twins.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np
from numba import njit

# Output tiles (rows of m, columns of n) of the kernels in use: cuBLAS and CUTLASS on Hopper choose among these; a
# product with few rows is computed transposed, so that either side may be the short one.
TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (64, 256), (256, 64), (128, 256), (256, 128))
SPLITS = (1, 2, 4, 8, 16)             # parts that the inner dimension is cut into
EXPERT_ROWS = (16, 32, 64, 128)       # rows per block of fused expert kernels (Triton configurations of vLLM)
EXPERT_COLUMNS = (64, 128)


class Speeds(NamedTuple):
    """What tiles reach: multiprocessors, FLOP/s and loaded bytes/s of each, bytes/s of memory, prologue in steps."""

    multiprocessors: float
    flop_per_s_each: float
    load_each: float
    stream: float
    prologue: float


class Product(NamedTuple):
    """The inner shape of a matrix product: n columns, k steps, bytes of a weight and of an activation."""

    n: float
    k: float
    weight_bytes: float
    value_bytes: float


@njit(cache=True, nogil=True, error_model="numpy")
def _overlapped(a: float, b: float) -> float:
    a, b = a * a, b * b
    return sqrt(sqrt(a * a + b * b))


@njit(cache=True, nogil=True, error_model="numpy")
def _step(rows: int, columns: int, p: Product, speeds: Speeds) -> float:
    """Return the seconds of one inner step of a tile: its arithmetic or its loads."""
    return max(2.0 * rows * columns / speeds.flop_per_s_each,
               (rows * p.value_bytes + columns * p.weight_bytes) / speeds.load_each)


@njit(cache=True, nogil=True, error_model="numpy")
def gemm(shapes: np.ndarray, value_bytes: float, speeds: Speeds, split_s: float, reduce: float,
         out: np.ndarray) -> None:
    """Fill *out* with seconds of [m, k] x [k, n], without the launch: the best of all tile shapes and splits.

    ``shapes`` [rows, 4]: m, n, k, bytes of a weight. A split costs ``split_s`` and its partial sums, written and read
    in fp32 at ``reduce`` bytes/s.
    """
    for r in range(out.size):
        m = shapes[r, 0]
        p = Product(shapes[r, 1], shapes[r, 2], shapes[r, 3], value_bytes)
        memory = (m * (p.n + p.k) * value_bytes + p.n * p.k * p.weight_bytes) / speeds.stream
        best = np.inf
        for rows, columns in TILES:
            tiles = np.ceil(m / rows) * np.ceil(p.n / columns)
            step = _step(rows, columns, p, speeds)
            for split in SPLITS:
                waves = max(tiles * split / speeds.multiprocessors, 1.0)
                seconds = _overlapped(waves * step * (p.k / split + speeds.prologue), memory)
                if split > 1:
                    seconds += split_s + split * m * p.n * 8.0 / reduce
                best = min(best, seconds)
        out[r] = best


@njit(cache=True, nogil=True, error_model="numpy")
def _price(p: Product, speeds: Speeds, price: np.ndarray) -> None:
    """Fill *price*: [0] tiles that a block of rows needs, [1] seconds of one; each [EXPERT_ROWS, EXPERT_COLUMNS]."""
    for i in range(len(EXPERT_ROWS)):
        for j in range(len(EXPERT_COLUMNS)):
            price[0, i, j] = np.ceil(p.n / EXPERT_COLUMNS[j])
            price[1, i, j] = _step(EXPERT_ROWS[i], EXPERT_COLUMNS[j], p, speeds) * (p.k + speeds.prologue)


@njit(cache=True, nogil=True, error_model="numpy")
def _grouped(blocks: tuple[int, int, int, int], active: int, tokens: int, p: Product, speeds: Speeds,
             price: np.ndarray) -> float:
    """Return seconds of one matrix product of every active expert with its own tokens (blocks: per EXPERT_ROWS)."""
    tiled = np.inf
    for i in range(len(EXPERT_ROWS)):
        for j in range(len(EXPERT_COLUMNS)):
            waves = np.ceil(blocks[i] * price[0, i, j] / speeds.multiprocessors)
            tiled = min(tiled, waves * price[1, i, j])
    moved = active * p.n * p.k * p.weight_bytes + tokens * (p.n + p.k) * p.value_bytes
    return _overlapped(tiled, moved / speeds.stream)


@njit(cache=True, nogil=True, error_model="numpy")
def experts(counts: np.ndarray, shapes: np.ndarray, value_bytes: float, speeds: Speeds, unaligned: float,
            out: np.ndarray) -> None:
    """Fill *out* with seconds of both products of a fused expert layer: hidden -> wide * inter -> hidden.

    ``counts`` [rows, experts]: tokens of each expert; only experts with tokens stream weights, each has its own blocks.
    ``shapes`` [rows, 4]: hidden, inter, wide, bytes of a weight; rows with the shape of the row before are cheap.
    ``unaligned``: share of all rates that is left when rows of inter values straddle 32-byte sectors.
    """
    prices = np.empty((2, 2, 4, 2))  # of up and down
    up = down = Product(-1.0, -1.0, -1.0, -1.0)
    for r in range(out.size):
        hidden, inter, wide, weight_bytes = shapes[r]
        if hidden != down.n or inter != down.k or wide * inter != up.n or weight_bytes != up.weight_bytes:
            up = Product(wide * inter, hidden, weight_bytes, value_bytes)
            down = Product(hidden, inter, weight_bytes, value_bytes)
            _price(up, speeds, prices[0])
            _price(down, speeds, prices[1])
        active = tokens = int(np.int64(0))  # not the constant 0, which would be compiled apart
        of16 = of32 = of64 = of128 = int(np.int64(0))  # blocks, by EXPERT_ROWS
        for e in range(counts.shape[1]):
            t = int(np.ceil(counts[r, e]))
            if t > 0:
                active += 1
                tokens += t
                of16 += (t + 15) >> 4
                of32 += (t + 31) >> 5
                of64 += (t + 63) >> 6
                of128 += (t + 127) >> 7
        blocks = (of16, of32, of64, of128)
        both = (_grouped(blocks, active, tokens, up, speeds, prices[0])
                + _grouped(blocks, active, tokens, down, speeds, prices[1]))
        out[r] = both if down.k * value_bytes % 32 == 0 else both / unaligned


@njit(cache=True, nogil=True)
def loads(counts: np.ndarray, out: np.ndarray) -> None:
    """Fill *out* [4, rows] with the most tokens of an expert, and with its blocks of 16, 64 and 128 rows."""
    for r in range(counts.shape[0]):
        largest = of16 = of64 = of128 = 0
        for e in range(counts.shape[1]):
            t = int(np.ceil(counts[r, e]))
            largest = max(largest, t)
            of16 += (t + 15) >> 4
            of64 += (t + 63) >> 6
            of128 += (t + 127) >> 7
        out[0, r], out[1, r], out[2, r], out[3, r] = largest, of16, of64, of128
