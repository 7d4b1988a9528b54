"""What a learned correction sees of an operator: logarithms of sizes, tiles, and of what bounds the time.

``axes`` are the few sizes that say how far a shape is from another; ``features`` adds what follows from them. All are
logarithms to base 2, so that a step of 1 is a factor of 2 everywhere.
"""

from __future__ import annotations

import numpy as np

from moesim.kernels import ops
from moesim.kernels.rates import Rates

_TINY = 1e-12  # what stands for a zero under a logarithm


def axes(op: str, s: ops.Shapes) -> dict[str, np.ndarray]:
    """Return the sizes that place the shapes *s* of *op* among others, base-2 logarithms that broadcast.

    Experts: tokens of an active expert, active experts, widths, and how many rows the kernel moves per own token.
    """
    if op == "moe":
        found = {"tokens_per_active": s["tokens"] / np.maximum(s["active"], 1), "active": s["active"],
                 "hidden": s["hidden"], "inter": s["inter"], "rows_per_token": s["rows"] / np.maximum(s["tokens"], 1)}
    elif op.startswith("attention"):
        found = {n: s[n] for n in ("batch", "q_len", "kv_len", "heads_kv", "head_dim", "head_dim_v") if n in s}
        found["group"] = s["heads_q"] / np.maximum(s["heads_kv"], 1)
    else:
        found = {n: s[n] for n in ops.OPS[op].required}
    return {name: _log(value) for name, value in found.items()}


def rows_of(sizes: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return *sizes* (``axes``) that broadcast to *shape* as float64 [rows, axes]."""
    out = np.empty((*shape, len(sizes)))
    for i, size in enumerate(sizes.values()):
        out[..., i] = size
    return out.reshape(-1, len(sizes))


def features(op: str, s: ops.Shapes, rates: Rates, tile_s: np.ndarray, sizes: dict[str, np.ndarray]) -> np.ndarray:
    """Return float32 [features, rows] for shapes that broadcast to the rows of *tile_s*, the tile model's seconds.

    *sizes* are their ``axes``. Experts without tokens change nothing: a device may list them or not.
    """
    memory = ops.moved(op, s, rates) / rates.bandwidth
    compute = ops.flop(op, s) / rates.flop_per_s
    found = [*sizes.values(), _log(tile_s), _log(memory / tile_s), _log(compute / tile_s)]
    found += _EXTRA.get(op, _none)(s, rates)
    out = np.empty((len(found), *tile_s.shape), dtype=np.float32)
    for i, column in enumerate(found):
        out[i] = column
    return out.reshape(len(found), -1)


def _log(value: np.ndarray | float) -> np.ndarray:
    return np.log2(np.maximum(value, _TINY))


def _aligned(width: np.ndarray) -> np.ndarray:
    """Return how many times 2 divides *width*: what tiles and vector loads of it are aligned to (10 at most)."""
    whole = np.maximum(width, 1).astype(np.int64)
    return np.minimum(_log((whole & -whole).astype(float)), 10)


def _none(s: ops.Shapes, rates: Rates) -> list[np.ndarray]:
    return []


def _gemm(s: ops.Shapes, rates: Rates) -> list[np.ndarray]:
    found = [_log(s["n"] * s["k"]), _aligned(s["n"]), _aligned(s["k"]), _aligned(s["m"])]
    for rows, columns in ((64, 64), (128, 128), (128, 256), (256, 128)):
        waves = np.ceil(s["m"] / rows) * np.ceil(s["n"] / columns) / rates.multiprocessors
        found += [_log(waves), waves / np.ceil(waves)]
    return found


def _moe(s: ops.Shapes, rates: Rates) -> list[np.ndarray]:
    from moesim.kernels.tiles import loops  # numba

    counts = s["tokens_per_expert"]
    flat = np.ascontiguousarray(counts.reshape(-1, counts.shape[-1]))
    sums = np.empty((4, len(flat)))
    loops.loads(flat, sums)
    largest, of16, of64, of128 = sums.reshape(4, *counts.shape[:-1])
    tokens = np.maximum(s["tokens"], 1)
    found = [_log(s["rows"]), _log(s["tokens"]), s["matrices"], _log(largest / tokens),
             _log(of16 / np.maximum(of64, 1)), _log(of64 * 64 / tokens), _aligned(s["inter"])]
    for blocks, columns in ((of16, 64), (of64, 64), (of128, 128)):
        for width in ((s["matrices"] - 1) * s["inter"], s["hidden"]):
            found.append(_log(blocks * np.ceil(width / columns) / rates.multiprocessors))
    return found


def _prefill(s: ops.Shapes, rates: Rates) -> list[np.ndarray]:
    group = s["heads_q"] / np.maximum(s["heads_kv"], 1)
    found = [_log(s["heads_q"]), _log(s["batch"] * s["q_len"]), _log(s["batch"] * s["heads_q"])]
    for tiles in (s["batch"] * s["heads_q"] * np.ceil(s["q_len"] / 128),
                  s["batch"] * s["heads_kv"] * np.ceil(s["q_len"] * group / 128)):
        waves = tiles / rates.multiprocessors
        found += [_log(waves), waves / np.ceil(waves)]
    return found


def _decode(s: ops.Shapes, rates: Rates) -> list[np.ndarray]:
    waves = s["batch"] * s["heads_kv"] / rates.multiprocessors
    blocks = np.ceil(s["kv_len"] / 128)
    return [_log(s["heads_q"]), _log(s["batch"] * s["kv_len"]), _log(s["batch"] * s["heads_q"]), _log(waves),
            waves / np.ceil(waves), _log(waves * blocks), _log(s["kv_values"])]


_EXTRA = {"gemm": _gemm, "moe": _moe, "attention_prefill": _prefill, "attention_decode": _decode}
