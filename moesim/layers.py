"""The pieces of a model's description: matrices with their bytes and FLOP, layer lists, experts, data types.

n x k is the shape of a weight (n outputs, k inputs). One multiply-accumulate is 2 FLOP.

>>> Gemm("down", n=4096, k=14336, dtype="bf16").bytes
117440512.0
>>> layer_indices("0, 3-5", n_layers=8)
(0, 3, 4, 5)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from moesim.config import Spec

Dtype = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "mxfp4"]

# Bytes per value, scales included.
DTYPE_BYTES: dict[str, float] = {
    "fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0,
    "fp8": 1.0,                 # one fp32 scale per 128 x 128 block (DeepSeek-V3) would add 0.02 %: left out
    "int4": 0.5 + 2 / 128,      # one fp16 scale per 128 values (the usual group of GPTQ and AWQ; assumed)
    "mxfp4": 0.5 + 1 / 32,      # one 8-bit scale per 32 values (OCP Microscaling Formats v1.0, table 1)
}
VECTOR_BYTES = 2.0  # biases and norms are bf16 also where matrices are narrower (gpt-oss, DeepSeek-V3 checkpoints)

LayerSet = str | tuple[NonNegativeInt, ...]  # "all", "1-26" (inclusive), "0, 3-5", or a list


@dataclass(frozen=True)
class Gemm:
    """One weight matrix: *m* tokens cost the product [m, k] x [k, n]."""

    name: str
    n: int
    k: int
    dtype: str
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Count weights and bias."""
        return self.n * self.k + self.n * self.bias

    @property
    def bytes(self) -> float:
        """Return the bytes of weights and bias."""
        return (self.n * self.k * DTYPE_BYTES[self.dtype]
                + self.n * self.bias * max(VECTOR_BYTES, DTYPE_BYTES[self.dtype]))

    @property
    def flop_per_token(self) -> float:
        """Return the FLOP of one token (adding the bias is not counted)."""
        return 2.0 * self.n * self.k


class Gemms(tuple[Gemm, ...]):
    """The matrices of one part of a layer, in the order they run, with their sums."""

    @property
    def parameters(self) -> int:
        """Count weights and biases."""
        return sum(g.parameters for g in self)

    @property
    def bytes(self) -> float:
        """Return the bytes of weights and biases."""
        return sum(g.bytes for g in self)

    @property
    def flop_per_token(self) -> float:
        """Return the FLOP of one token."""
        return sum(g.flop_per_token for g in self)


def layer_indices(layers: LayerSet, n_layers: int, what: str = "layers") -> tuple[int, ...]:
    """Return the layer numbers that *layers* names, ascending.

    Raises ``ValueError``, in which the field is called *what*, if they are unreadable or out of range.
    """
    if layers == "all":
        return tuple(range(n_layers))
    found: list[int] = []
    for item in layers.split(",") if isinstance(layers, str) else layers:
        item = str(item).replace(" ", "")
        if not re.fullmatch(r"\d+(-\d+)?", item):
            raise ValueError(f"{what} {layers!r} does not name layers; "
                             "write all, a range like 1-26, or a list like [0, 2]")
        first, _, last = item.partition("-")
        found += range(int(first), int(last or first) + 1)
    if not found or len(set(found)) != len(found) or max(found) >= n_layers:
        raise ValueError(f"{what} {layers!r} names no layer, one twice, or one outside 0-{n_layers - 1}; "
                         "name each layer once")
    return tuple(sorted(found))


def share(count: int, tp: int, what: str) -> int:
    """Return the part of *count* that one of *tp* devices holds. Raises ``ValueError`` if it does not divide."""
    if tp < 1 or count % tp:
        raise ValueError(f"{count} {what} cannot be shared by {tp} devices; take a divisor of {count}")
    return count // tp


class Dtypes(Spec):
    """How values are stored."""

    weights: Dtype                    # attention, dense layers, shared experts
    experts: Dtype                    # routed experts
    kv: Dtype
    activations: Dtype                # also what travels between devices
    embeddings: Dtype | None = None   # embedding, output head, gate; null: as the weights


class Experts(Spec):
    """Which layers have routed experts, and what one of them is."""

    layers: LayerSet = "all"
    experts: PositiveInt | tuple[PositiveInt, ...]   # one number, or one per layer with experts
    top_k: PositiveInt
    ffn: PositiveInt                                 # width of one expert
    shared_ffn: NonNegativeInt = 0                   # total width of the shared experts
    shared_gate: bool = False                        # a gate in front of the shared experts (Qwen2-MoE)
    bias: bool = False                               # biases in experts and gate (gpt-oss)
    gate_bias: bool = False                          # one bias per expert in the gate only (DeepSeek-V3)

    def counts(self, n_layers: int) -> tuple[int, ...]:
        """Return the number of experts of each layer that has some, in a model of *n_layers* layers."""
        n_moe = len(layer_indices(self.layers, n_layers, "moe.layers"))
        counts = (self.experts,) * n_moe if isinstance(self.experts, int) else self.experts
        if len(counts) != n_moe:
            raise ValueError(f"moe.experts lists {len(counts)} numbers for {n_moe} layers with experts; "
                             "give one number for all, or one per layer")
        if self.top_k > min(counts):
            raise ValueError(f"moe.top_k {self.top_k} exceeds the {min(counts)} experts of a layer; lower it")
        return counts


class Published(Spec):
    """Parameter counts as the publisher prints them, and which tables the active count includes."""

    total: PositiveFloat
    active: PositiveFloat | None = None
    active_counts: tuple[Literal["embedding", "head"], ...] = ("embedding", "head")
    checkpoint: PositiveInt | None = None   # exact number of weights, from the tensor shapes of the checkpoint
    source: str
