"""Rows of a transformer's layers, as profilers name them, in the columns of ``moesim.kernels.measurements``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd


class Layer(NamedTuple):
    """Widths of one device's slice of a layer, in values: of the model, queries, keys, feed-forward, vocabulary."""

    hidden: float
    query: float
    key: float
    inter: float
    vocab: float
    gated: bool
    value_bytes: float


def gemm(tokens: pd.Series, n: float, k: float) -> pd.DataFrame:
    """Return the rows of a product of *tokens* rows."""
    return pd.DataFrame({"op": "gemm", "m": tokens.astype(float), "n": float(n), "k": float(k)})


def elementwise(tokens: pd.Series, values: float, value_bytes: float) -> pd.DataFrame:
    """Return the rows of a kernel that reads and writes *values* of each token."""
    return pd.DataFrame({"op": "elementwise", "bytes": tokens.astype(float) * values * value_bytes})


def matrix(name: str, layer: Layer) -> tuple[float, float] | None:
    """Return columns and inner size of the product called *name*, None if it is none."""
    up = (2 if layer.gated else 1) * layer.inter
    return {"qkv_proj": (layer.query + 2 * layer.key, layer.hidden), "o_proj": (layer.hidden, layer.query),
            "up_proj": (up, layer.hidden), "down_proj": (layer.hidden, layer.inter),
            "lm_head": (layer.vocab, layer.hidden)}.get(name)


def moved_values(name: str, layer: Layer) -> float | None:
    """Return the values per token that the kernel called *name* reads and writes, None if it is not known.

    Norms add the residual: two values read and two written per unit. Lookups and additions as they must.
    """
    rotated = 2 * (layer.query + layer.key)
    return {"embedding": 2 * layer.hidden, "norm": 4 * layer.hidden, "first_norm": 2 * layer.hidden,
            "rope": rotated, "qk_norm": rotated, "act": (3 if layer.gated else 2) * layer.inter,
            "add": 3 * layer.hidden}.get(name)


def repeated(rows: pd.DataFrame) -> pd.Series:
    """Return which *rows* time one shape and kernel more than once."""
    names = [c for c in rows if c not in ("time_s", "time_p10_s", "time_p90_s", "sentinel") and not c.startswith("x_")]
    keys = rows[names].assign(**{n: rows[n].map(str) for n in names if rows[n].dtype == object})
    return keys.duplicated(keep=False)


def spread(tokens: int, n_active: int, n_experts: int) -> list[int]:
    """Return *tokens* (copies) over *n_active* of *n_experts* experts, as evenly as they go.

    >>> spread(7, 3, 5)
    [3, 2, 2, 0, 0]
    """
    counts = np.zeros(n_experts, dtype=int)
    counts[:n_active] = tokens // n_active
    counts[:tokens % n_active] += 1
    return [int(count) for count in counts]
