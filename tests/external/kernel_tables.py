"""H200 kernel tables (aiconfigurator 095f58a) as rows that a kernel model can predict, split by shape.

``read`` gives shapes and measured seconds; ``split`` divides them by a hash of the shape, so that no shape is in both
parts; ``errors`` sums up. ``fit_tile.py`` fits the constants of the ``tile`` model to the first part.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

# hidden and inter size of the models in the expert table whose experts have no gate matrix (squared ReLU): Nemotron 3.
# The table does not say so; two matrices instead of three explain 1.32 x at compute-bound sizes.
PLAIN_EXPERTS = {(2048, 5120), (2688, 1856)}


class Rows(NamedTuple):
    """Shapes of one operator (arrays, one entry per row), measured seconds, and the table they come from."""

    op: str
    shapes: dict[str, np.ndarray]
    seconds: np.ndarray
    table: pd.DataFrame

    def take(self, mask: np.ndarray) -> Rows:
        """Return the rows where *mask* holds."""
        return Rows(self.op, {k: v[mask] for k, v in self.shapes.items()}, self.seconds[mask], self.table[mask])


def read(folder: Path, op: str) -> Rows:
    """Return the bf16 rows of *op* on H200, vLLM 0.24.

    Left out: windowed attention, heads wider than 256, skewed routing, and 512 experts at 33-63 tokens (the collector
    hit fewer experts than meant: the times imply more than 4.8 TB/s).
    """
    name = {"gemm": "gemm", "moe": "moe", "attention_prefill": "attention_context",
            "attention_decode": "attention_generation"}[op]
    table = pd.read_parquet(folder / "kernels" / f"h200_vllm0.24_bf16_{name}.parquet")
    if op == "gemm":
        return _rows(op, table, {"m": "m", "n": "n", "k": "k"})
    if op == "moe":
        wrong = (table.num_experts == 512) & table.num_tokens.between(33, 63)
        return experts(table[(table.distribution == "balanced") & ~wrong])
    return attention(op, table[(table.window_size == 0) & (table.head_dim <= 256)])


def attention(op: str, table: pd.DataFrame) -> Rows:
    """Return the rows of an attention table; the context is what was cached and what is new."""
    names = {"batch": "batch_size", "kv_len": "kv_len", "heads_q": "num_heads", "heads_kv": "num_key_value_heads",
             "head_dim": "head_dim"}
    return _rows(op, table.assign(kv_len=table.isl + table.step),
                 names | ({"q_len": "isl"} if op == "attention_prefill" else {}))


def _rows(op: str, table: pd.DataFrame, names: dict[str, str]) -> Rows:
    return Rows(op, {shape: table[column].to_numpy(float) for shape, column in names.items()},
                table.latency.to_numpy() * 1e-3, table)


def experts(table: pd.DataFrame) -> Rows:
    """Return the rows of a fused-expert table with the tokens of rank 0's experts (the timed ones), balanced."""
    counts = np.zeros((len(table), int(table.num_experts.max())))
    for i, row in enumerate(table.itertuples()):
        local = max(1, row.num_experts // row.moe_ep_size)
        counts[i, :local] = balanced(row.num_tokens, row.num_experts, row.topk)[:local]
    plain = [pair in PLAIN_EXPERTS for pair in zip(table.hidden_size, table.inter_size, strict=True)]
    shapes = {"tokens_per_expert": counts, "hidden": table.hidden_size.to_numpy(float),
              "inter": (table.inter_size / table.moe_tp_size).to_numpy(float),
              "matrices": np.where(plain, 2.0, 3.0),
              "rows": (table.num_tokens * table.topk).to_numpy(float)}
    return Rows("moe", shapes, table.latency.to_numpy() * 1e-3, table)


def balanced(tokens: int, n_experts: int, top_k: int) -> np.ndarray:
    """Return the tokens of each expert in the collector's balanced routing: choices a stride apart."""
    stride = -(-n_experts // top_k)
    shift = np.arange(tokens)[:, None] * (1.0 if tokens >= stride else stride / tokens)
    chosen = np.floor(shift + np.arange(top_k) * stride).astype(int) % n_experts
    return np.bincount(chosen.reshape(-1), minlength=n_experts)


def split(rows: Rows, share: float = 0.65) -> tuple[Rows, Rows]:
    """Return (fit, test): rows whose shape hashes below *share*, and the others."""
    columns = [c for c in rows.table.columns if c not in ("latency", "kernel_source")]
    bucket = pd.util.hash_pandas_object(rows.table[columns], index=False).to_numpy() % 1000
    fit = bucket < 1000 * share
    return rows.take(fit), rows.take(~fit)


class Errors(NamedTuple):
    """Absolute relative error in percent, signed bias (median of predicted / measured - 1, percent), rows."""

    median: float
    mean: float
    p90: float
    bias: float
    rows: int


def errors(predicted_s: np.ndarray, measured_s: np.ndarray) -> Errors:
    """Compare times."""
    relative = 100 * (predicted_s / measured_s - 1)
    size = np.abs(relative)
    return Errors(*(round(float(v), 2) for v in (np.median(size), size.mean(), np.percentile(size, 90),
                                                 np.median(relative))), len(size))
