"""A dense model kernel by kernel: each operator launched by itself, or layers fused into one kernel.

>>> from moesim import config
>>> from moesim.model import ModelSpec
>>> llama = config.load(ModelSpec, "workloads/models/llama-2-7b.yaml")
>>> layer = operators(llama, tp=8, sequences=1, new=1, context=4096)
>>> len(layer), int(layer["communicates"].sum())
(23, 2)
>>> machine = Rates(flop_per_s=638e12, bytes_per_s=0.85 * 1.8e12)
>>> [round(1e6 * layer_s(layer, machine, how)) for how in (Fused(), Fused(launch_s=1e-4), Unfused(launch_s=1e-4))]
[39, 139, 2339]
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd

from moesim.attention import GroupedQuery
from moesim.memory.terms import CacheError
from moesim.model import DTYPE_BYTES, ModelSpec

Row = tuple[str, float, float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Rates:
    """Say what one device reaches: FLOP/s and bytes/s of its memory; ``sync_s``: of one exchange between devices."""

    flop_per_s: float
    bytes_per_s: float
    sync_s: float = 0.0

    def __post_init__(self) -> None:
        rates = (self.flop_per_s, self.bytes_per_s)
        if not all(0 < rate < math.inf for rate in rates) or not 0 <= self.sync_s < math.inf:
            raise CacheError(f"{self} must have rates above 0 and sync_s from 0")


@dataclasses.dataclass(frozen=True)
class Unfused:
    """Every operator is a kernel: its inputs come from memory, its outputs go there, the host launches it.

    ``ahead``: the host launches a kernel while the one before runs; else when it has ended.
    """

    launch_s: float = 0.0
    ahead: bool = False


@dataclasses.dataclass(frozen=True)
class Fused:
    """A layer is ``kernels`` kernels: what passes between its operators stays on the chip.

    ``launch_s`` is 0 where the device's own hardware launches kernels in a fixed order.
    """

    launch_s: float = 0.0
    kernels: int = 1


def operators(model: ModelSpec, tp: int, sequences: int, new: int, context: int) -> pd.DataFrame:
    """Return the operators of one layer on one of *tp* devices: flop, weight_bytes, cache_bytes, in_bytes, out_bytes.

    *sequences* of *new* tokens each, which see *context* tokens, their own included. ``communicates``: an all-reduce
    between devices. Operators are those of Llama's forward pass (Touvron et al., 2023): a norm, a projection, a product
    of attention or one elementwise step each. Raises ``CacheError`` for a model that is not dense with grouped heads.
    """
    shape = model.attention
    if model.moe is not None or not isinstance(shape, GroupedQuery):
        raise CacheError(f"{model.name} has experts or latent attention; give a dense model with grouped heads")
    if min(tp, sequences, new) < 1 or context < new or shape.kv_heads % tp or shape.heads % tp:
        raise CacheError(f"tp {tp}, {sequences} sequences of {new} new tokens, context {context}: give counts from 1, "
                         f"a context from new, and a tp that divides {shape.kv_heads} heads")
    tokens, h = sequences * new, sequences * new * model.hidden
    q, kv = (heads * shape.head_dim // tp for heads in (shape.heads, shape.kv_heads))
    pairs, ffn = tokens * context * shape.heads / tp, model.dense_ffn / tp
    cache = sequences * context * kv * DTYPE_BYTES[model.dtype.kv]
    end = [("all_reduce", h, h, 0, 0, 0), ("add", 2 * h, h, h, 0, 0)]
    rows: list[Row] = [("norm", h, h, 4 * h, 0, 0)]
    rows += [_product(name, tokens, model.hidden, out) for name, out in (("q", q), ("k", kv), ("v", kv))]
    rows += [(f"rope_{n}", tokens * w, tokens * w, 6 * tokens * w, 0, 0) for n, w in (("q", q), ("k", kv))]
    rows += [(f"store_{n}", tokens * kv, tokens * kv, 0, 0, 0) for n in "kv"]
    look = 2 * pairs * shape.head_dim
    rows += [("scores", tokens * q, pairs, look, 0, cache), ("mask", pairs, pairs, 2 * pairs, 0, 0),
             ("softmax", pairs, pairs, 5 * pairs, 0, 0), ("values", pairs, tokens * q, look, 0, cache)]
    rows += [_product("output", tokens, q, model.hidden), *end, ("norm", h, h, 4 * h, 0, 0)]
    rows += [_product(name, tokens, model.hidden, ffn) for name in (("gate", "up") if model.gated_ffn else ("up",))]
    wide = tokens * ffn
    rows += [("activation", wide, wide, 4 * wide, 0, 0), *[("multiply", 2 * wide, wide, wide, 0, 0)] * model.gated_ffn]
    rows += [_product("down", tokens, ffn, model.hidden), *end]
    table = pd.DataFrame(rows, columns=["operator", "in_bytes", "out_bytes", "flop", "weight_bytes", "cache_bytes"])
    table[["in_bytes", "out_bytes"]] *= DTYPE_BYTES[model.dtype.activations]
    table["weight_bytes"] *= DTYPE_BYTES[model.dtype.weights]
    return table.assign(communicates=table["operator"] == "all_reduce")


def _product(name: str, tokens: float, width: float, out: float) -> Row:
    return name, tokens * width, tokens * out, 2 * tokens * width * out, width * out, 0.0


def layer_s(layer: pd.DataFrame, rates: Rates, how: Unfused | Fused) -> float:
    """Return the seconds of one layer: bytes or FLOP, whichever take longer, of every kernel; launches; exchanges."""
    if how.launch_s < 0 or getattr(how, "kernels", 1) < 1:
        raise CacheError(f"{how} must have launch_s from 0 and at least one kernel")
    own = layer[~layer["communicates"]]
    exchanges = float(layer["communicates"].sum()) * rates.sync_s
    moved = own["weight_bytes"] + own["cache_bytes"]
    if isinstance(how, Unfused):
        moved = moved + own["in_bytes"] + own["out_bytes"]
        busy = np.maximum(moved / rates.bytes_per_s, own["flop"] / rates.flop_per_s)
        if how.ahead:
            return float(np.maximum(busy, how.launch_s).sum()) + layer["communicates"].sum() * how.launch_s + exchanges
        return float(busy.sum()) + len(layer) * how.launch_s + exchanges
    ends = how.kernels * (layer["in_bytes"].iloc[0] + layer["out_bytes"].iloc[-1])  # what kernels hand on
    all_moved = moved.sum() + ends + own.loc[own["operator"].str.startswith("store"), "out_bytes"].sum()
    busy_s = float(max(all_moved / rates.bytes_per_s, own["flop"].sum() / rates.flop_per_s))
    return busy_s + how.kernels * how.launch_s + exchanges


def pass_s(model: ModelSpec, layer: pd.DataFrame, rates: Rates, how: Unfused | Fused, tp: int) -> float:
    """Return the seconds of one pass of *model*: its layers, then the output head as a kernel of its own."""
    return model.layers * layer_s(layer, rates, how) + model.head_gemm(tp).bytes / rates.bytes_per_s + how.launch_s
