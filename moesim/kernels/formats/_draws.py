"""Token loads of the synthetic routings with which aiconfigurator's collector times expert layers.

The tables give the name of a routing, not the tokens of each expert. Balanced routing is deterministic; of power laws
the distribution is known (collector/helper.py, 2026-08), so that loads are expectations over draws of our own. A rank
that holds E / ep experts is timed: of power laws the most loaded one.
"""

from __future__ import annotations

import zlib

import numpy as np
from numba import njit

DRAWS = 32  # of our own, per point; the collector times 5


def balanced(tokens: int, n_experts: int, top_k: int, ep: int) -> np.ndarray:
    """Return the tokens of the first n_experts / ep experts: a token's choices lie a stride apart."""
    stride = -(-n_experts // top_k)
    shift = np.arange(tokens)[:, None] * (1.0 if tokens >= stride else stride / tokens)
    chosen = np.floor(shift + np.arange(top_k) * stride).astype(int) % n_experts
    return np.bincount(chosen.reshape(-1), minlength=n_experts)[:max(1, n_experts // ep)]


def power_law(tokens: int, n_experts: int, top_k: int, ep: int, alpha: float) -> np.ndarray:
    """Return the expected tokens of the experts of the most loaded rank, descending, as whole numbers.

    The draw with the expected number of active experts and tokens: the mean of sorted draws, rounded so that both stay.
    """
    seed = zlib.crc32(f"{tokens} {n_experts} {top_k} {ep} {alpha}".encode())
    u = np.random.default_rng(seed).random((DRAWS, n_experts))
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > n_experts else (0.01, 2.0)
    low, high = low ** (1 - alpha), high ** (1 - alpha)
    weights = ((high - low) * u + low) ** (1 / (1 - alpha))
    share = weights / weights.sum(axis=1, keepdims=True) * (tokens * top_k)
    counts = np.minimum(np.rint(share), tokens).astype(np.int64).reshape(DRAWS, ep, n_experts // ep)
    for draw in counts:
        _settle(draw, tokens * top_k, tokens)
    rank = counts.sum(axis=2).argmax(axis=1)
    return _typical(counts[np.arange(DRAWS), rank])


def _typical(counts: np.ndarray) -> np.ndarray:
    """Return one row of whole numbers that stands for the *counts* [draws, experts]."""
    mean = -np.sort(-counts, axis=1).mean(axis=0)
    active = min(round(float(np.count_nonzero(counts, axis=1).mean())), round(float(mean.sum())))
    out = np.zeros(len(mean), dtype=np.int64)
    if active:
        more = np.maximum(mean[:active] - 1, 0)
        left = round(float(mean.sum())) - active
        scaled = np.cumsum(more) * (left / more.sum()) if more.sum() else np.linspace(0, left, active + 1)[1:]
        out[:active] = 1 + np.diff(np.rint(scaled), prepend=0)
    return out


@njit(cache=True, nogil=True)
def _settle(counts: np.ndarray, total: int, most: int) -> None:
    """Make the tokens of all ranks, *counts* [ranks, experts], add up to *total*, none above *most*.

    Ranks take turns: the least loaded expert of each gets one more, or the most loaded one less.
    """
    missing = total - counts.sum()
    while missing != 0:
        moved = False
        for rank in range(counts.shape[0]):
            if missing > 0:
                expert = counts[rank].argmin()
                step = 1 if counts[rank, expert] < most else 0
            elif missing < 0:
                expert = counts[rank].argmax()
                step = -1 if counts[rank, expert] > 0 else 0
            else:
                break
            counts[rank, expert] += step
            missing -= step
            moved = moved or step != 0
        if not moved:
            break
