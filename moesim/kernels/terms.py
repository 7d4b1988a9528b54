"""What the time of an operator adds up from when its parts run one after the other, as on a CPU.

Every term is what that part would take at the peak rates (calls: a microsecond each), so that the factor in front of it
says how far from the peak the part is, and another processor with the same factors is as much faster as its peaks are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moesim.kernels import ops
from moesim.kernels.rates import Rates

Terms = dict[str, np.ndarray]
Product = Callable[..., np.ndarray]  # seconds of a product from m, n, k and weight_bytes
CALL = np.asarray(1e-6)


def terms(op: str, s: ops.Shapes, rates: Rates, product: Product) -> Terms:
    """Return seconds by term for the complete shapes *s* of *op*; arrays broadcast to one shape.

    *product* prices the products inside an expert layer.
    """
    return _TERMS[op](s, rates, product)


def _gemm(s: ops.Shapes, rates: Rates, product: Product) -> Terms:
    return {"call": CALL, "weights": s["weight_bytes"] * s["n"] * s["k"] / rates.bandwidth,
            "values": rates.value_bytes * s["m"] * (s["n"] + s["k"]) / rates.bandwidth, "flop": _flop("gemm", s, rates)}


def _moe(s: ops.Shapes, rates: Rates, product: Product) -> Terms:
    value_s = rates.value_bytes / rates.bandwidth
    return {"call": CALL, "experts": CALL * np.count_nonzero(s["tokens_per_expert"], axis=-1),
            "products": of_experts(s, product), "activation": s["tokens"] * s["matrices"] * s["inter"] * value_s,
            "values": np.maximum(s["rows"], s["tokens"]) * s["hidden"] * value_s}


def of_experts(s: ops.Shapes, product: Product) -> np.ndarray:
    """Return the seconds of the two products of every expert that has tokens, one after the other."""
    widths = np.broadcast_arrays(s["hidden"], s["inter"], s["matrices"], s["weight_bytes"])
    shape = np.broadcast_shapes(widths[0].shape, s["tokens"].shape)
    counts = np.ceil(s["tokens_per_expert"]).astype(np.int32)
    counts = np.broadcast_to(counts, shape + counts.shape[-1:]).reshape(-1, counts.shape[-1])
    layers, which = np.unique(np.stack([w.reshape(-1) for w in widths], axis=-1), axis=0, return_inverse=True)
    which = np.broadcast_to(which.reshape(widths[0].shape), shape).reshape(-1)
    out = np.zeros(len(counts))
    for i, (hidden, inter, matrices, weight_bytes) in enumerate(layers):
        rows: slice | np.ndarray = slice(None) if len(layers) == 1 else np.flatnonzero(which == i)
        each = np.zeros(int(counts[rows].max(initial=0)) + 1)  # seconds by tokens: the same few counts come again
        met = np.flatnonzero(np.bincount(counts[rows].reshape(-1), minlength=len(each)))
        met = met[met > 0]
        up, down = ({"m": met.astype(float), "n": np.asarray(n), "k": np.asarray(k),
                     "weight_bytes": np.asarray(weight_bytes)}
                    for n, k in (((matrices - 1) * inter, hidden), (hidden, inter)))
        each[met] = product(up) + product(down)
        out[rows] = each[counts[rows]].sum(axis=-1)
    return out.reshape(shape)


def _prefill(s: ops.Shapes, rates: Rates, product: Product) -> Terms:
    value_s = rates.value_bytes / rates.bandwidth
    pairs = s["batch"] * s["q_len"] * (s["kv_len"] - (s["q_len"] - 1) / 2)
    widths = s["head_dim"] + s["head_dim_v"]
    return {"call": CALL, "flop": _flop("attention_prefill", s, rates), "scores": pairs * s["heads_q"] * value_s,
            "queries": s["batch"] * s["q_len"] * s["heads_q"] * widths * value_s,
            "cached": s["batch"] * s["kv_len"] * s["heads_kv"] * widths * value_s}


def _decode(s: ops.Shapes, rates: Rates, product: Product) -> Terms:
    value_s = rates.value_bytes / rates.bandwidth
    return {"call": CALL, "heads": CALL * s["batch"] * s["heads_kv"], "flop": _flop("attention_decode", s, rates),
            "cached": s["batch"] * s["kv_len"] * s["kv_values"] * value_s,
            "queries": s["batch"] * s["heads_q"] * (s["head_dim"] + s["head_dim_v"]) * value_s}


def _elementwise(s: ops.Shapes, rates: Rates, product: Product) -> Terms:
    return {"call": CALL, "values": s["bytes"] / rates.bandwidth}


def _gate(s: ops.Shapes, rates: Rates, product: Product) -> Terms:
    value_s = rates.value_bytes / rates.bandwidth
    return {"call": CALL, "weights": s["hidden"] * s["experts"] * value_s,
            "values": s["tokens"] * s["hidden"] * value_s, "flop": _flop("gate", s, rates),
            "choices": s["tokens"] * (s["experts"] + s["top_k"]) * value_s}


def _flop(op: str, s: ops.Shapes, rates: Rates) -> np.ndarray:
    return np.asarray(ops.flop(op, s) / rates.flop_per_s)


_TERMS: dict[str, Callable[[ops.Shapes, Rates, Product], Terms]] = {
    "gemm": _gemm, "moe": _moe, "attention_prefill": _prefill, "attention_decode": _decode,
    "elementwise": _elementwise, "gate": _gate}
