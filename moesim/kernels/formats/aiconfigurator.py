"""Tables of NVIDIA's aiconfigurator: products, fused experts, prefill and decode attention, one Parquet file each.

>>> import tempfile, pathlib, pandas as pd
>>> path = pathlib.Path(tempfile.mkdtemp()) / "moe_perf.parquet"
>>> common = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H200", "op_name": "moe"}
>>> shape = {"num_tokens": 4, "hidden_size": 64, "inter_size": 64, "topk": 2, "num_experts": 8}
>>> pd.DataFrame([common | shape | {"kernel_source": "triton", "moe_dtype": "bfloat16", "moe_tp_size": 1,
...     "moe_ep_size": 2, "distribution": "balanced", "latency": 0.041}]).to_parquet(path)
>>> row = AiConfigurator().read(path).iloc[0]
>>> print(row.op, row.tokens_per_expert, row.rows, f"{row.time_s * 1e6:.0f} us")
moe [1, 1, 1, 1] 8.0 41 us
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from moesim.kernels.formats import _rows
from moesim.registry import part

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "fp8": "fp8", "w4a16_mxfp4": "mxfp4"}
_OPS = {"gemm": "gemm", "moe": "moe", "context_attention": "attention_prefill",
        "generation_attention": "attention_decode"}
_NEED = {"gemm": ("gemm_dtype", "m", "n", "k"),
         "moe": ("moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size",
                 "moe_ep_size", "distribution"),
         "attention": ("attn_dtype", "batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "step",
                       "window_size")}
# hidden and inter size of the models whose experts have no gate matrix (squared ReLU): Nemotron 3. The table does not
# say so; two matrices instead of three explain 1.32 x at compute-bound sizes.
_PLAIN_EXPERTS = {(2048, 5120), (2688, 1856)}
# Balanced rows of 512 experts at these token counts imply more than the H200's bandwidth: the collector's strides do
# not divide evenly, so that it hit fewer experts than it meant to.
_MISSED = (512, 33, 63)


@part
class AiConfigurator:
    """Read ``*_perf.parquet`` of ai-dynamo/aiconfigurator (Apache-2.0), systems/data/<gpu>/<op>/<library>/<version>.

    ``latency`` is in milliseconds, the mean of replays of a CUDA graph whose weights may be in L2 (not cold). Expert
    rows are the timed rank, rows of other ranks' experts included (``rows``); loads of power laws are expectations.
    Windowed attention and data types that moesim does not know are left out, as are expert rows known to be wrong.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)

    def matches(self, path: Path) -> bool:
        """Say whether *path* is a Parquet file with this tool's columns."""
        path = Path(path)
        return path.suffix == ".parquet" and path.is_file() and {"op_name", "kernel_source", "latency"} <= set(
            pq.read_schema(path).names)

    def read(self, path: str | Path) -> pd.DataFrame:
        """Return the rows. Raises ``ValueError`` for an operator that moesim does not know, or missing columns."""
        table = pd.read_parquet(path)
        names = sorted(table["op_name"].unique())
        if len(names) != 1 or names[0] not in _OPS:
            raise ValueError(f"{path}: operator {', '.join(names)}; moesim reads {', '.join(_OPS)}, one per file")
        op = _OPS[names[0]]
        need = _NEED[op if op in _NEED else "attention"]
        missing = [name for name in need if name not in table]
        if missing:
            raise ValueError(f"{path}: has no column {', '.join(missing)}; give the table as aiconfigurator wrote it")
        table = table[table[need[0]].isin(_DTYPES)]
        shapes = {"gemm": _gemm, "moe": _experts}.get(op, _attention)(table, op)
        common = pd.DataFrame({
            "op": op, "dtype": table[need[0]].map(_DTYPES), "time_s": table["latency"] * 1e-3,
            "impl": table["kernel_source"], "cold": False, "device": table["device"], "routing": "",
            "source": "aiconfigurator " + table["framework"] + " " + table["version"], "status": "ok"})
        rows = common.assign(**shapes).loc[next(iter(shapes.values())).index]
        rows = rows.assign(sentinel=_rows.repeated(rows))  # one rank's slice can be that of several models
        return rows.reset_index(drop=True)


def _gemm(table: pd.DataFrame, op: str) -> dict[str, pd.Series]:
    return {name: table[name].astype(float) for name in ("m", "n", "k")}


def _attention(table: pd.DataFrame, op: str) -> dict[str, pd.Series]:
    """Return shapes without window; what was cached and what is new make up the context."""
    table = table[table["window_size"] == 0]
    names = {"batch": "batch_size", "heads_q": "num_heads", "heads_kv": "num_key_value_heads", "head_dim": "head_dim"}
    shapes = {ours: table[theirs].astype(float) for ours, theirs in names.items()}
    shapes["kv_len"] = (table["isl"] + table["step"]).astype(float)
    return shapes | ({"q_len": table["isl"].astype(float)} if op == "attention_prefill" else {})


def _experts(table: pd.DataFrame, op: str) -> dict[str, pd.Series]:
    from moesim.kernels.formats import _draws  # numba

    experts, first, last = _MISSED
    table = table[(table["num_experts"] != experts) | ~table["num_tokens"].between(first, last)]
    keys = table[["num_tokens", "num_experts", "topk", "moe_ep_size", "distribution"]]
    loads = {}
    for row in keys.drop_duplicates().itertuples(index=False):
        kind, _, alpha = row.distribution.rpartition("_")
        point = (int(row.num_tokens), int(row.num_experts), int(row.topk), int(row.moe_ep_size))
        loads[tuple(row)] = (_draws.power_law(*point, float(alpha)) if kind == "power_law"
                             else _draws.balanced(*point)).tolist()
    plain = [pair in _PLAIN_EXPERTS for pair in zip(table["hidden_size"], table["inter_size"], strict=True)]
    return {"tokens_per_expert": pd.Series([loads[tuple(row)] for row in keys.itertuples(index=False)],
                                           index=table.index, dtype=object),
            "hidden": table["hidden_size"].astype(float), "inter": table["inter_size"] / table["moe_tp_size"],
            "matrices": pd.Series(np.where(plain, 2.0, 3.0), index=table.index),
            "rows": (table["num_tokens"] * table["topk"]).astype(float),
            "routing": table["distribution"],
            "x_model": table["hidden_size"].astype(str) + "/" + table["inter_size"].astype(str) + "/"
            + table["topk"].astype(str) + "/" + table["num_experts"].astype(str),
            "x_tp": table["moe_tp_size"], "x_ep": table["moe_ep_size"], "x_tokens": table["num_tokens"]}
