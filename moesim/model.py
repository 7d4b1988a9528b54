"""What a model, with a Mixture of Experts or without, is made of: widths, experts, data types; parameters, bytes, FLOP.

Letters: L layers, Lmoe of them with experts, E experts in a layer; tp devices share every tensor that
is not a routed expert. All counts come from the list of matrices (``Gemm``) of each part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from moesim.attention import AttentionShape, GroupedQuery, LatentAttention, Phase
from moesim.config import Spec
from moesim.layers import DTYPE_BYTES, VECTOR_BYTES, Dtypes, Experts, Gemm, Gemms, Published, layer_indices, share

__all__ = ["DTYPE_BYTES", "AttentionShape", "Dtypes", "Experts", "Gemm", "Gemms", "GroupedQuery",
           "LatentAttention", "ModelSpec", "Published"]


class ModelSpec(Spec):
    """A decoder-only transformer in which some layers' feed-forward is a choice of experts (``moe``; null: in none)."""

    name: str
    source: str
    hidden: PositiveInt
    layers: PositiveInt
    vocabulary: PositiveInt
    tied_embeddings: bool = False
    context: PositiveInt
    attention: Annotated[GroupedQuery | LatentAttention, Field(discriminator="kind")]
    dense_ffn: NonNegativeInt = 0     # width of the feed-forward of layers without experts
    gated_ffn: bool = True            # three matrices (SwiGLU); false: two (ReLU, GELU)
    moe: Experts | None = None
    dtype: Dtypes
    published: Published | None = None

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        if self.moe is not None:
            self.moe.counts(self.layers)  # raises
        n_dense = self.layers - self.n_moe_layers
        if (self.dense_ffn == 0) != (n_dense == 0):
            raise ValueError(f"{n_dense} layers have no experts and dense_ffn is {self.dense_ffn}; "
                             "give the width if there are such layers, and only then")
        if isinstance(self.attention, GroupedQuery):
            layer_indices(self.attention.window_layers, self.layers, "attention.window_layers")
        return self

    def scaled(self, **changes: Any) -> ModelSpec:
        """Return this model with other sizes (``scaled(hidden=4096, moe={"ffn": 1536})``), checked again.

        The published counts are dropped, and the name says so: they are not those of the new model.
        """
        data = self.model_dump() | {"name": f"{self.name}-scaled", "published": None}
        for key, value in changes.items():
            data[key] = data[key] | dict(value) if isinstance(value, Mapping) else value
        return type(self).model_validate(data)

    @property
    def moe_layer_indices(self) -> tuple[int, ...]:
        """Return the numbers of the layers with experts, ascending."""
        return layer_indices(self.moe.layers, self.layers) if self.moe is not None else ()

    @property
    def _experts(self) -> Experts:
        if self.moe is None:
            raise ValueError(f"model {self.name} has no experts")
        return self.moe

    @property
    def n_moe_layers(self) -> int:
        """Return Lmoe."""
        return len(self.moe_layer_indices)

    @property
    def experts_per_layer(self) -> np.ndarray:
        """Return the number of experts of each layer that has some: int64 [Lmoe]."""
        return np.array(self.moe.counts(self.layers) if self.moe is not None else (), dtype=np.int64)

    @property
    def n_experts(self) -> int:
        """Return E, the largest number of experts in a layer; 0 if no layer has some."""
        return int(self.experts_per_layer.max(initial=0))

    @property
    def top_k(self) -> int:
        """Return how many experts a token uses in a layer; 0 if there are none."""
        return self.moe.top_k if self.moe is not None else 0

    @property
    def _table_dtype(self) -> str:
        return self.dtype.embeddings or self.dtype.weights

    def _ffn(self, name: str, width: int, dtype: str, bias: bool = False) -> Gemms:
        return Gemms((Gemm(f"{name}_up", (2 if self.gated_ffn else 1) * width, self.hidden, dtype, bias),
                      Gemm(f"{name}_down", self.hidden, width, dtype, bias)))

    def attention_gemms(self, tp: int = 1) -> Gemms:
        """Return one device's projections of one attention layer, in the order they run."""
        return self.attention.gemms(self.hidden, tp, self.dtype.weights)

    @property
    def gate_gemm(self) -> Gemm:
        """Return the gate's matrix in a layer with E experts; every device has the whole."""
        bias = self._experts.bias or self._experts.gate_bias
        return Gemm("gate", self.n_experts, self.hidden, self._table_dtype, bias)

    def expert_gemms(self, tp: int = 1) -> Gemms:
        """Return the matrices of one routed expert, gate and up projection fused (one device's of *tp*)."""
        width = share(self._experts.ffn, tp, "columns of an expert")
        return self._ffn("expert", width, self.dtype.experts, self._experts.bias)

    def shared_gemms(self, tp: int = 1) -> Gemms:
        """Return one device's matrices of all shared experts of a layer; empty if there are none."""
        if self.moe is None or not self.moe.shared_ffn:
            return Gemms()
        gate = (Gemm("shared_gate", 1, self.hidden, self._table_dtype),) if self.moe.shared_gate else ()
        width = share(self.moe.shared_ffn, tp, "columns of the shared experts")
        return Gemms((*gate, *self._ffn("shared", width, self.dtype.weights)))

    def dense_gemms(self, tp: int = 1) -> Gemms:
        """Return one device's feed-forward matrices of a layer without experts; empty if there is none."""
        if not self.dense_ffn:
            return Gemms()
        return self._ffn("dense", share(self.dense_ffn, tp, "columns of a dense layer"), self.dtype.weights)

    def head_gemm(self, tp: int = 1) -> Gemm:
        """Return one device's part of the output head; engines pad the vocabulary to a multiple of *tp*."""
        return Gemm("head", -(-self.vocabulary // tp), self.hidden, self._table_dtype)

    def attention_shape(self, tp: int = 1, phase: Phase = "decode") -> AttentionShape:
        """Return what the attention kernel of one device sees."""
        return self.attention.shape(tp, phase)

    @property
    def attention_windows(self) -> np.ndarray:
        """Return how many tokens each layer looks back: int64 [L], 0 where it sees all."""
        windows = np.zeros(self.layers, dtype=np.int64)
        if isinstance(self.attention, GroupedQuery) and self.attention.window:
            windows[list(layer_indices(self.attention.window_layers, self.layers))] = self.attention.window
        return windows

    @property
    def attention_parameters(self) -> int:
        """Count the weights of one layer's attention, with its query/key norms and sinks."""
        return self.attention_gemms().parameters + self.attention.vector_parameters

    @property
    def dense_parameters(self) -> int:
        """Count the weights of the feed-forward of one layer without experts."""
        return self.dense_gemms().parameters

    @property
    def expert_parameters(self) -> int:
        """Count the weights of one routed expert."""
        return self.expert_gemms().parameters

    @property
    def expert_bytes(self) -> float:
        """Return the bytes of one routed expert."""
        return self.expert_gemms().bytes

    @property
    def expert_flop_per_token(self) -> float:
        """Return the FLOP of one token in one routed expert."""
        return self.expert_gemms().flop_per_token

    @property
    def shared_expert_parameters(self) -> int:
        """Count the weights of all shared experts of one layer."""
        return self.shared_gemms().parameters

    @property
    def shared_expert_bytes(self) -> float:
        """Return the bytes of all shared experts of one layer."""
        return self.shared_gemms().bytes

    @property
    def shared_expert_flop_per_token(self) -> float:
        """Return the FLOP of one token in all shared experts of one layer."""
        return self.shared_gemms().flop_per_token

    @property
    def norm_parameters(self) -> int:
        """Count the weights of all norms outside attention: two in a layer, one at the end."""
        return (2 * self.layers + 1) * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Count the weights of the embedding table; the output head has as many, or is the same table."""
        return self.vocabulary * self.hidden

    @property
    def total_parameters(self) -> int:
        """Count all weights (extra heads that predict further tokens are not part of the model here)."""
        return round(self._outside_experts(1, "parameters", range(self.layers))) + self._routed_parameters

    @property
    def _routed_parameters(self) -> int:
        return self._n_all_experts * self.expert_parameters if self.moe is not None else 0

    @property
    def active_parameters(self) -> int:
        """Count the weights that one token meets, embedding table and output head included."""
        return self.count_active(("embedding", "head"))

    def count_active(self, tables: Sequence[str]) -> int:
        """Count the weights that one token meets, with those *tables* ("embedding", "head") of the two."""
        chosen = self.n_moe_layers * self.top_k * self.expert_parameters if self.moe is not None else 0
        present = 1 if self.tied_embeddings else 2
        counted = min(present, len(set(tables) & {"embedding", "head"}))
        return self.total_parameters - self._routed_parameters + chosen \
            - (present - counted) * self.embedding_parameters

    @property
    def total_bytes(self) -> float:
        """Return the bytes of all weights."""
        return self.non_expert_bytes() + (self._n_all_experts * self.expert_bytes if self.moe is not None else 0.0)

    def non_expert_bytes(self, tp: int = 1, layers: range | None = None) -> float:
        """Return the bytes of all weights but the routed experts on one of *tp* devices (norms and gates whole).

        *layers*: of those alone, the first with the embedding, the last with the last norm and the output head.
        """
        return self._outside_experts(tp, "bytes", layers or range(self.layers))

    def moe_rows(self, layers: range) -> slice:
        """Return which of the layers with experts are among *layers*."""
        first, last = np.searchsorted(self.moe_layer_indices, (layers.start, layers.stop)).tolist()
        return slice(first, last)

    @property
    def _n_all_experts(self) -> int:
        return int(self.experts_per_layer.sum())

    def _outside_experts(self, tp: int, measure: Literal["parameters", "bytes"], layers: range) -> float:
        """Sum *measure* over everything of *layers* but the routed experts, on one of *tp* devices.

        A table that is embedding and head lies on both sides of a pipeline.
        """
        def of(part: Gemm | Gemms) -> float:
            return float(getattr(part, measure))

        first, last, experts = 0 in layers, self.layers - 1 in layers, self.experts_per_layer[self.moe_rows(layers)]
        vectors = (2 * len(layers) + last) * self.hidden + len(layers) * self.attention.vector_parameters
        tables = first + (last and not (first and self.tied_embeddings))
        return (tables * of(self.head_gemm(tp)) + len(layers) * of(self.attention_gemms(tp))
                + (len(layers) - len(experts)) * of(self.dense_gemms(tp))
                + len(experts) * of(self.shared_gemms())  # whole: each device runs them on its own tokens
                + (int(experts.sum()) / self.n_experts * of(self.gate_gemm) if self.moe is not None else 0.0)
                + vectors * (1.0 if measure == "parameters" else max(VECTOR_BYTES, DTYPE_BYTES[self._table_dtype])))

    @property
    def kv_bytes_per_token_per_layer(self) -> float:
        """Return the bytes of one token's keys and values in one layer, kept once."""
        return self.attention.kv_values(1) * DTYPE_BYTES[self.dtype.kv]

    @property
    def kv_bytes_per_token(self) -> float:
        """Return the bytes of one token's keys and values in all layers, kept once."""
        return self.layers * self.kv_bytes_per_token_per_layer

    def kv_bytes_per_token_on_device(self, tp: int, layers: range | None = None) -> float:
        """Return the bytes of a token's keys and values in *layers* (None: all) on one of *tp* devices.

        Heads may be copied.
        """
        return len(layers or range(self.layers)) * self.attention.kv_values(tp) * DTYPE_BYTES[self.dtype.kv]

    @property
    def activation_bytes_per_token(self) -> float:
        """Return the bytes of one token's hidden state."""
        return self.hidden * DTYPE_BYTES[self.dtype.activations]
