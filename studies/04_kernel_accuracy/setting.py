"""The tables, operators and models of this study, and how a model is fitted to some rows of a table."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from moesim.kernels import KernelModel, bind, fitting, read
from moesim.kernels.accuracy import accuracy
from moesim.kernels.measurements import Points
from moesim.kernels.models.residual import Residual
from moesim.kernels.models.table import Table
from moesim.kernels.models.tile import GROUPS, Tile
from moesim.kernels.rates import Setting
from moesim.kernels.tiles.fit import FIXED, LIMITS, SECONDS
from moesim.units import text

DEVICE, DTYPE = "h200", "bf16"
MODELS = ("roofline", "tile", "table", "residual")
STARTS = 3     # strangers' starts tried, the one nearest to the fitted rows is kept: a search can get stuck
_SPREAD = 1.0  # of the logarithms of a stranger's constants: typically wrong by a factor of e


class Operator(NamedTuple):
    """What it is called, its file at aiconfigurator, the end of the name of its extract, its kernel, what is small."""

    words: str
    file: str
    extract: str
    impl: str
    small: str


OPERATORS = {
    "gemm": Operator("GEMM", "gemm_perf", "gemm", "torch.nn.functional.linear", "m <= 1024, n and k <= 8192"),
    "moe": Operator("fused MoE", "moe_perf", "moe", "vllm_unquantizedfusedmoe_triton_tritonexperts", "tokens <= 1024"),
    "attention_prefill": Operator("attention prefill", "context_attention_perf", "attention_context",
                                  "vllm_flash_attn_fa3", "4096 tokens, 32768 with all of the batch"),
    "attention_decode": Operator("attention decode", "generation_attention_perf", "attention_generation",
                                 "vllm_flash_attn_fa3", "context <= 8192, batch <= 64")}
OLD_IMPL = "vllm_flash_attn"  # of attention in vLLM 0.18.0: the same library before its kernels had numbers


def find(folder: str, op: str, version: str) -> Path | None:
    """Return the table of *op* by vLLM *version* in or below *folder*, None if it is not there."""
    known, short = OPERATORS[op], version.removesuffix(".0")
    files = [p for p in sorted(Path(folder).rglob("*.parquet")) if p.stem == known.file
             or f"vllm{short}_{DTYPE}_{known.extract}" in p.stem]
    found = [p for p in files if (pd.read_parquet(p, columns=["version"])["version"] == version).all()]
    if len(found) > 1:
        raise SystemExit(f"{folder}: has several tables of {op} by vLLM {version}: {found[0]}, {found[1]}; keep one")
    return found[0] if found else None


@cache
def points(folder: str, op: str, version: str = "0.24.0") -> Points:
    """Return the measured points of *op*; heads 512 wide, which run another kernel, are left out."""
    path = find(folder, op, version)
    if path is None:
        raise SystemExit(f"{folder}: no {OPERATORS[op].file}.parquet of vLLM {version}; the README says where it is")
    impl = OPERATORS[op].impl if version == "0.24.0" else OLD_IMPL
    return read(path).only(impl=[impl], dtype=DTYPE).of(op)


@cache
def setting() -> Setting:
    """Return what the measurements were made on."""
    device, processor = fitting.device_of(DEVICE)
    return Setting(bind(processor, "roofline", DTYPE).rates, device.name if device else DEVICE, DTYPE)


def bound(part: Any) -> KernelModel:
    """Return the kernel model *part* on the processor that was measured."""
    return KernelModel(setting().rates, part, DTYPE)


def stranger(op: str, draw: int) -> Tile:
    """Return a tile model that knows nothing of this GPU: every constant of *op* off by a random factor.

    The constants that ship were fitted to these very tables. A search that begins with them, and is pulled towards
    them where points say nothing, would know what it is asked to predict.
    """
    rng, group = np.random.default_rng([draw, 4]), getattr(Tile(), GROUPS[op])
    values = {f.name: getattr(group, f.name) * float(np.exp(rng.normal(0, _SPREAD)))
              for f in dataclasses.fields(group) if f.name not in FIXED}
    limited = {n: min(v, LIMITS.get(n, v)) for n, v in values.items()}
    return dataclasses.replace(Tile(), **{GROUPS[op]: dataclasses.replace(
        group, **{n: text(v, "second") if n in SECONDS else v for n, v in limited.items()})})


def start_of(rows: Points, seed: int) -> Tile:
    """Return where the search for constants begins: the best, on the fitted *rows*, of some fits by strangers."""
    fits = [stranger(rows.op, STARTS * seed + i).fitted({rows.op: rows}, setting(), seed) for i in range(STARTS)]
    return min(fits, key=lambda tile: error(bound(tile), rows)["mean"])


def fitted(rows: Points, seed: int = 0, shipped: bool = False) -> dict[str, KernelModel]:
    """Return tile and residual fitted to *rows*: from strangers' constants, or, if *shipped*, from those that ship."""
    start = Tile() if shipped else start_of(rows, seed)
    residual = Residual(tile=start).fitted({rows.op: rows}, setting(), seed)
    return {"tile": bound(residual.tile), "residual": bound(residual)}


def all_models(rows: Points, seed: int = 0, shipped: bool = False) -> dict[str, KernelModel]:
    """Return every model, fitted to *rows*."""
    more = fitted(rows, seed, shipped)
    table = bound(Table().fitted({rows.op: rows}, setting(), seed))
    return {"roofline": bind(fitting.device_of(DEVICE)[1], "roofline", DTYPE), "tile": more["tile"], "table": table,
            "residual": more["residual"]}


def error(kernels: KernelModel, rows: Points) -> dict[str, Any]:
    """Return median, mean, p90 of the absolute error, bias (all percent), and the number of *rows*."""
    return accuracy(kernels.time_s(rows.op, **rows.shapes), rows.seconds).model_dump()


def is_small(rows: Points) -> np.ndarray:
    """Return which *rows* are small in what grows with the load (``Operator.small``)."""
    s = rows.shapes
    if rows.op == "gemm":
        return (s["m"] <= 1024) & (np.maximum(s["n"], s["k"]) <= 8192)
    if rows.op == "moe":
        return rows.table["x_tokens"].to_numpy() <= 1024
    if rows.op == "attention_prefill":
        return (s["q_len"] <= 4096) & (s["batch"] * s["q_len"] <= 32768)
    return (s["kv_len"] <= 8192) & (s["batch"] <= 64)


def is_extreme(rows: Points) -> np.ndarray:
    """Return which *rows* are in the last octave of a size that grows with the load."""
    s = rows.shapes
    if rows.op == "gemm":
        return (s["m"] >= 16384) | (np.maximum(s["n"], s["k"]) >= 32768)
    if rows.op == "moe":
        return rows.table["x_tokens"].to_numpy() >= 8192
    if rows.op == "attention_prefill":
        return (s["q_len"] >= 8192) | (s["batch"] * s["q_len"] >= 65536)
    return (s["kv_len"] >= 65536) | (s["batch"] >= 1024)


def among(rows: np.ndarray, count: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return a mask of *count* of the *rows* (a mask), drawn at random; of all of them if *count* is None."""
    if count is None:
        return rows.copy()
    out = np.zeros_like(rows)
    out[rng.choice(np.flatnonzero(rows), count, replace=False)] = True
    return out


class Pair(NamedTuple):
    """Two collections of the same shapes: how far they are apart, percent."""

    words: str
    median: float
    mean: float
    p90: float


# What separates two collections of one table (bf16, H200, kernels of the same family): aiconfigurator's own, in other
# folders of its repository at the commit that the README names, compared shape by shape with another script. None of
# these models was involved, and this study does not compute them again (but for the one pair that says so).
NOISE = {
    "gemm": (Pair("TensorRT-LLM rc20, rc10", 1.1, 1.9, 4.3), Pair("vLLM 0.24, 0.18", 1.3, 2.8, 7.1),
             Pair("vLLM 0.24, TensorRT-LLM rc20", 2.6, 3.8, 8.7), Pair("vLLM 0.24, 0.22", 4.3, 7.1, 18.7),
             Pair("vLLM 0.24, SGLang 0.5.14", 4.4, 8.9, 24), Pair("vLLM 0.24, SGLang 0.5.9", 7.8, 12.3, 31)),
    "moe": (Pair("vLLM 0.19, 0.18 (balanced)", 0.4, 1.1, 2.6),
            Pair("vLLM 0.24 and itself (16 repeats)", 1.1, 2.1, 5.9),  # fitting.noise of the table that is fitted here
            Pair("vLLM 0.24, 0.22 (one device, TP <= 4)", 6.1, 13.8, 42)),
    "attention_prefill": (Pair("SGLang 0.5.14, 0.5.10", 1.7, 3.3, 8.9), Pair("vLLM 0.22, 0.18", 3.1, 4.4, 9.9),
                          Pair("vLLM 0.18, SGLang 0.5.10", 5.5, 9.0, 21)),
    "attention_decode": (Pair("vLLM 0.22, 0.18 (above 50 us)", 1.4, 1.9, 3.0),
                         Pair("vLLM 0.18, SGLang 0.5.10", 4.0, 6.0, 13.6))}


def noise(op: str) -> tuple[float, float]:
    """Return the least and the largest median difference of two collections of *op*, percent."""
    medians = [pair.median for pair in NOISE[op]]
    return min(medians), max(medians)
