"""The operators that kernel models know: shape names, checks, and the work (FLOP, bytes) they cannot avoid.

Shapes are numbers or arrays that broadcast against each other; one call predicts all rows.

========================  ==============================================================  ==========================
operator                  shapes                                                          optional
========================  ==============================================================  ==========================
``gemm``                  m, n, k: [m, k] x [k, n]                                        weight_bytes
``moe``                   tokens_per_expert [..., experts of the device], hidden, inter   weight_bytes, matrices, rows
``attention_prefill``     batch, q_len, kv_len, heads_q, heads_kv, head_dim               head_dim_v
``attention_decode``      batch, kv_len, heads_q, heads_kv, head_dim                      head_dim_v, kv_values
``elementwise``           bytes (read and written)
``gate``                  tokens, hidden, experts, top_k
========================  ==============================================================  ==========================

``kv_len`` counts cached and new tokens; in decode it is the mean over the batch and may be fractional.
``matrices`` is 3 for gated experts (gate, up, down), 2 for plain ones. ``rows`` are the token copies that
the expert kernel moves, if more than the tokens of its own experts. ``kv_values`` are cached values per
token, by default heads_kv * (head_dim + head_dim_v); in latent attention one latent is key and value.
``moe`` sorts tokens by expert itself; ``gate`` is projection, softmax and top-k.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.kernels.rates import Rates
from moesim.registry import suggest

Shapes = dict[str, np.ndarray]


class Op(NamedTuple):
    """Shape names of one operator."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


_HEADS = ("heads_q", "heads_kv", "head_dim")
OPS = {
    "gemm": Op(("m", "n", "k"), ("weight_bytes",)),
    "moe": Op(("tokens_per_expert", "hidden", "inter"), ("weight_bytes", "matrices", "rows")),
    "attention_prefill": Op(("batch", "q_len", "kv_len", *_HEADS), ("head_dim_v",)),
    "attention_decode": Op(("batch", "kv_len", *_HEADS), ("head_dim_v", "kv_values")),
    "elementwise": Op(("bytes",)),
    "gate": Op(("tokens", "hidden", "experts", "top_k")),
}


def shapes(op: str, given: dict[str, object], rates: Rates) -> Shapes:
    """Return the shapes of *op* as float64 arrays, optional ones filled in.

    Raises ``ValueError`` for an unknown operator or shape, a missing one, and numbers that are negative or not finite.
    """
    if op not in OPS:
        raise ValueError(f"unknown operator {op!r}{suggest(op, OPS)}")
    known = OPS[op].required + OPS[op].optional
    for name in given:
        if name not in known:
            raise ValueError(f"{op} has no shape {name!r}{suggest(name, known)}")
    missing = [name for name in OPS[op].required if name not in given]
    if missing:
        raise ValueError(f"{op} needs {', '.join(missing)}; add what is missing")
    found = {name: np.asarray(value, dtype=np.float64) for name, value in given.items()}
    for name, value in found.items():
        if value.size and not (value.min() >= 0 and value.max() < np.inf):  # a NaN fails both
            raise ValueError(f"{op}: {name} has the value {_worst(value)}; give finite numbers >= 0")
    return _filled(op, found, rates)


def _worst(value: np.ndarray) -> float:
    return float(value.flat[np.argmin(np.isfinite(value) & (value >= 0))])


def _filled(op: str, s: Shapes, rates: Rates) -> Shapes:
    """Return *s* with the defaults of optional shapes; for ``moe`` also the tokens, and the experts that have some."""
    if op in ("gemm", "moe"):
        s.setdefault("weight_bytes", np.asarray(rates.weight_bytes))
    if op == "moe":
        s.setdefault("matrices", np.asarray(3.0))
        counts = s["tokens_per_expert"]
        s["tokens"] = counts @ np.ones(counts.shape[-1])  # a sum, four times as fast
        s["active"] = np.asarray(np.count_nonzero(counts, axis=-1))
        s.setdefault("rows", s["tokens"])
    if op.startswith("attention"):
        s.setdefault("head_dim_v", s["head_dim"])
    if op == "attention_decode":
        s.setdefault("kv_values", s["heads_kv"] * (s["head_dim"] + s["head_dim_v"]))
    return s


def flop(op: str, s: Shapes) -> np.ndarray | float:
    """Return the FLOP of *op* (a multiply-accumulate is 2; causal attention counts what it attends to)."""
    if op == "gemm":
        return 2 * s["m"] * s["n"] * s["k"]
    if op == "moe":
        return 2 * s["tokens"] * s["hidden"] * s["inter"] * s["matrices"]
    if op == "gate":
        return 2 * s["tokens"] * s["hidden"] * s["experts"]
    if op == "elementwise":
        return 0.0
    per_pair = 2 * s["heads_q"] * (s["head_dim"] + s["head_dim_v"]) * s["batch"]
    if op == "attention_decode":
        return per_pair * s["kv_len"]
    return per_pair * s["q_len"] * (s["kv_len"] - (s["q_len"] - 1) / 2)


def moved(op: str, s: Shapes, rates: Rates) -> np.ndarray | float:
    """Return the bytes that *op* must at least read and write; expert weights count once per expert that has tokens."""
    value = rates.value_bytes
    if op == "gemm":
        return value * s["m"] * (s["n"] + s["k"]) + s["weight_bytes"] * s["n"] * s["k"]
    if op == "moe":
        return s["hidden"] * (s["active"] * s["matrices"] * s["inter"] * s["weight_bytes"] + 2 * s["tokens"] * value)
    if op == "gate":
        return value * (s["tokens"] * (s["hidden"] + 2 * s["experts"] + s["top_k"]) + s["hidden"] * s["experts"])
    if op == "elementwise":
        return s["bytes"]
    widths = s["head_dim"] + s["head_dim_v"]
    if op == "attention_decode":
        return value * s["batch"] * (s["kv_len"] * s["kv_values"] + s["heads_q"] * widths)
    return value * s["batch"] * widths * (s["kv_len"] * s["heads_kv"] + s["q_len"] * s["heads_q"])


def idle(op: str, s: Shapes) -> np.ndarray:
    """Return where *op* has nothing to do and is not launched."""
    if op == "moe":
        return s["tokens"] * s["hidden"] * s["inter"] == 0
    if op == "elementwise":
        return s["bytes"] == 0
    return np.asarray(flop(op, s)) == 0


def ranged(op: str, s: Shapes) -> Shapes:
    """Return the shapes by which a measured domain is described; for ``moe`` counts, not each expert's tokens."""
    if op != "moe":
        return s
    experts = np.asarray(float(s["tokens_per_expert"].shape[-1]))
    return {"tokens": s["tokens"], "experts": experts, "hidden": s["hidden"], "inter": s["inter"]}
