"""CSV files of Vidur's profiler: ``mlp.csv`` (products and elementwise kernels) and ``attention.csv``.

A row times all kernels of a layer at one number of tokens, in milliseconds:

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "mlp.csv"
>>> _ = path.write_text("time_stats.mlp_down_proj.median,n_head,n_kv_head,n_embd,n_expanded_embd,vocab_size,"
...     "use_gated_mlp,num_tokens,num_tensor_parallel_workers\\n1.604,32,32,4096,11008,32768,True,4096,2\\n")
>>> row = Vidur().read(path).iloc[0]
>>> print(row.op, row.m, row.n, row.k, f"{row.time_s * 1e3:.3f} ms")
gemm 4096.0 4096.0 5504.0 1.604 ms
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from moesim.kernels.formats import _rows
from moesim.registry import part

_MATRICES = {"attn_pre_proj": "qkv_proj", "attn_post_proj": "o_proj", "mlp_up_proj": "up_proj",
             "mlp_down_proj": "down_proj"}
_MOVES = {"emb": "embedding", "input_layernorm": "first_norm", "post_attention_layernorm": "first_norm",
          "attn_rope": "rope", "mlp_act": "act", "add": "add"}
_MLP = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd", "vocab_size", "use_gated_mlp", "num_tokens",
        "num_tensor_parallel_workers")
_ATTENTION = ("n_embd", "n_q_head", "n_kv_head", "num_tensor_parallel_workers", "batch_size", "prefill_chunk_size",
              "kv_cache_size", "is_prefill")
_SECONDS = 1e-3


@part
class Vidur:
    """Read ``data/profiling/compute/<gpu>/<model>/*.csv`` of microsoft/vidur (MIT). Weights are 16 bit.

    Norms there do not add the residual, ``add`` does. ``device``: the GPU, which the files do not name.
    """

    device: str = ""

    def matches(self, path: Path) -> bool:
        """Say whether *path* is a CSV file with this tool's columns."""
        path = Path(path)
        if path.suffix != ".csv" or not path.is_file():
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            return "time_stats." in file.readline()

    def read(self, path: str | Path) -> pd.DataFrame:
        """Return the rows. Raises ``ValueError`` for missing columns."""
        table = pd.read_csv(path)
        attention = "is_prefill" in table
        missing = [name for name in (_ATTENTION if attention else _MLP) if name not in table]
        if missing:
            raise ValueError(f"{path}: has no column {', '.join(missing)}; give the table as Vidur wrote it")
        frames = _attention(table) if attention else _layers(table)
        if not frames:
            raise ValueError(f"{path}: has no column time_stats.<kernel>.median; give the table as Vidur wrote it")
        rows = pd.concat(frames, ignore_index=True)
        rows = rows.assign(dtype="fp16", cold=False, device=self.device, source="Vidur", status="ok")
        return rows.assign(sentinel=_rows.repeated(rows))


def _layers(table: pd.DataFrame) -> list[pd.DataFrame]:
    frames = []
    widths = list(_MLP[:6]) + [_MLP[7]]
    for key, rows in table.groupby(widths):
        heads, kv_heads, hidden, inter, vocab, gated, tp = key
        layer = _rows.Layer(hidden, hidden / tp, hidden / heads * kv_heads / tp, inter / tp, vocab / tp, bool(gated), 2)
        for column in rows:
            name = column.removeprefix("time_stats.").removesuffix(".median")
            if not column.endswith(".median") or rows[column].isna().all():
                continue
            matrix = _rows.matrix(_MATRICES.get(name, ""), layer)
            values = _rows.moved_values(_MOVES.get(name, ""), layer)
            if matrix is not None:
                made = _rows.gemm(rows["num_tokens"], *matrix)
            elif values is not None:
                made = _rows.elementwise(rows["num_tokens"], values, layer.value_bytes)
            else:
                continue
            frames.append(made.assign(time_s=rows[column] * _SECONDS, impl=f"sarathi {name}"))
    return frames


def _attention(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Return prefill of one sequence and decode of a batch; ``kv_cache_size`` is what was cached before."""
    tp = table["num_tensor_parallel_workers"]
    common = pd.DataFrame({
        "heads_q": table["n_q_head"] / tp, "heads_kv": (table["n_kv_head"] / tp).clip(lower=1),
        "head_dim": table["n_embd"] / table["n_q_head"], "batch": table["batch_size"].astype(float)})
    frames = []
    for op, prefill in (("attention_prefill", True), ("attention_decode", False)):
        column = f"time_stats.{'attn_prefill' if prefill else 'attn_decode'}.median"
        rows = table["is_prefill"].astype(bool) == prefill
        if column not in table or not rows.any():
            continue
        new = table["prefill_chunk_size"].astype(float) if prefill else 1.0
        made = common.assign(op=op, kv_len=table["kv_cache_size"] + new, time_s=table[column] * _SECONDS,
                             impl="sarathi")
        frames.append((made.assign(q_len=new) if prefill else made)[rows])
    return frames
