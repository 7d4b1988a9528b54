"""The two kinds of attention: grouped queries (multi-head is a special case) and DeepSeek's latent attention.

tp is the number of devices that share the heads of a layer.

>>> attention = GroupedQuery(kind="gqa", heads=32, kv_heads=8, head_dim=128)
>>> [(g.name, g.n, g.k) for g in attention.gemms(hidden=4096, tp=1, dtype="bf16")]
[('qkv', 6144, 4096), ('out', 4096, 4096)]
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import PositiveInt, model_validator

from moesim.config import Spec
from moesim.layers import Gemm, Gemms, LayerSet, share

Phase = Literal["prefill", "decode"]


class AttentionShape(NamedTuple):
    """What one device's attention kernel sees: query heads, key/value heads, widths of a key and a value."""

    heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int


class GroupedQuery(Spec):
    """Attention in which groups of query heads share a key/value head (multi-head: kv_heads = heads)."""

    kind: Literal["gqa"] = "gqa"
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    bias: Literal["none", "qkv", "all"] = "none"       # qkv: input projections only; all: output too
    qk_norm: Literal["none", "head", "all"] = "none"   # norm weights for one head (Qwen3) or for all (OLMoE)
    sinks: bool = False                                # one learned logit per head (gpt-oss)
    window: PositiveInt | None = None                  # tokens that a sliding-window layer looks back
    window_layers: LayerSet = "all"                    # which layers have the window, if there is one

    @model_validator(mode="after")
    def _check(self) -> GroupedQuery:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} does not divide heads {self.heads}; take a divisor")
        return self

    def _local_kv_heads(self, tp: int) -> int:
        """Return the key/value heads of one device: copies when there are more devices than heads."""
        if max(tp, self.kv_heads) % min(tp, self.kv_heads):
            raise ValueError(f"{self.kv_heads} key/value heads cannot be shared or copied evenly by {tp} devices; "
                             f"take a divisor or a multiple of {self.kv_heads}")
        return max(1, self.kv_heads // tp)

    def gemms(self, hidden: int, tp: int, dtype: str) -> Gemms:
        """Return one device's matrices: the fused query/key/value projection and the output projection."""
        heads = share(self.heads, tp, "query heads")
        qkv = (heads + 2 * self._local_kv_heads(tp)) * self.head_dim
        return Gemms((Gemm("qkv", qkv, hidden, dtype, self.bias != "none"),
                      Gemm("out", hidden, heads * self.head_dim, dtype, self.bias == "all")))

    @property
    def vector_parameters(self) -> int:
        """Count the weights of a layer's query and key norms and of its sinks."""
        norms = {"none": 0, "head": 2, "all": self.heads + self.kv_heads}[self.qk_norm] * self.head_dim
        return norms + self.heads * self.sinks

    def shape(self, tp: int, phase: Phase) -> AttentionShape:
        """Return what one device sees; the same in both phases."""
        return AttentionShape(share(self.heads, tp, "query heads"), self._local_kv_heads(tp),
                              self.head_dim, self.head_dim)

    def kv_values(self, tp: int) -> int:
        """Count the cached values per token and layer on one device."""
        return 2 * self._local_kv_heads(tp) * self.head_dim


class LatentAttention(Spec):
    """Attention over one compressed key/value per token (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    The up-projection ``kv_b`` has heads x (nope + value) x kv_rank weights. In prefill it expands the
    latent of each new token into keys and values; in decode it is absorbed into queries and outputs,
    with the same weights and the same FLOP per token. One ``Gemm`` stands for both; ``shape`` differs.
    """

    kind: Literal["mla"] = "mla"
    heads: PositiveInt
    q_rank: PositiveInt | None = None   # null: queries are not compressed
    kv_rank: PositiveInt
    nope_dim: PositiveInt
    rope_dim: PositiveInt
    value_dim: PositiveInt

    def gemms(self, hidden: int, tp: int, dtype: str) -> Gemms:
        """Return one device's matrices: down-projections (whole), up-projections and output (by heads).

        With compressed queries both down-projections are one matrix, as serving engines run them.
        """
        heads, latent = share(self.heads, tp, "query heads"), self.kv_rank + self.rope_dim
        queries = heads * (self.nope_dim + self.rope_dim)
        if self.q_rank is None:
            first = Gemm("q", queries, hidden, dtype), Gemm("kv_a", latent, hidden, dtype)
        else:
            first = Gemm("qkv_a", self.q_rank + latent, hidden, dtype), Gemm("q_b", queries, self.q_rank, dtype)
        return Gemms((*first, Gemm("kv_b", heads * (self.nope_dim + self.value_dim), self.kv_rank, dtype),
                      Gemm("out", hidden, heads * self.value_dim, dtype)))

    @property
    def vector_parameters(self) -> int:
        """Count the weights of a layer's norms of compressed queries and keys/values."""
        return (self.q_rank or 0) + self.kv_rank

    def shape(self, tp: int, phase: Phase) -> AttentionShape:
        """Return what one device sees: expanded heads in prefill, one latent for all heads in decode."""
        heads = share(self.heads, tp, "query heads")
        if phase == "prefill":
            return AttentionShape(heads, heads, self.nope_dim + self.rope_dim, self.value_dim)
        return AttentionShape(heads, 1, self.kv_rank + self.rope_dim, self.kv_rank)

    def kv_values(self, tp: int) -> int:
        """Count the cached values per token and layer on one device: each keeps the whole latent."""
        return self.kv_rank + self.rope_dim
