"""A small Mixture-of-Experts language model in plain PyTorch, to have real routing without a download.

Letters: B batch, S new positions of this pass, N = B*S tokens, D model width, H expert width, E experts, K = top_k.
The block is Mixtral's (arXiv:2401.04088, section 2.1): pre-norm attention with rotary positions, then SwiGLU experts
chosen by a softmax gate whose K weights are renormalised; the load-balance loss is Switch's (arXiv:2101.03961, eq. 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ReferenceConfig:
    """Sizes of the reference model; the defaults are those of the trace that ships."""

    vocabulary: int = 1024
    n_layers: int = 12
    n_experts: int = 32
    top_k: int = 2
    width: int = 128
    n_heads: int = 4
    expert_width: int = 128
    context: int = 256  # longest sequence seen in training
    rope_base: float = 10_000.0  # arXiv:2104.09864, section 3.2.2
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.n_heads or (self.width // self.n_heads) % 2:
            raise ValueError(
                f"ReferenceConfig: width {self.width} over {self.n_heads} heads is not an even number; "
                "make width a multiple of 2*n_heads"
            )
        if not 1 <= self.top_k <= self.n_experts:
            raise ValueError(f"ReferenceConfig: top_k {self.top_k} of {self.n_experts} experts; choose 1..n_experts")


@dataclass
class Cache:
    """Hold the keys and values [B, heads, positions, head width] of every layer."""

    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def get_seq_length(self) -> int:
        """Return the number of positions held (the name is the one Hugging Face caches use)."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append this pass's keys and values to *layer* and return all of them."""
        if layer in self.layers:
            old_keys, old_values = self.layers[layer]
            keys, values = torch.cat((old_keys, keys), 2), torch.cat((old_values, values), 2)
        self.layers[layer] = (keys, values)
        return keys, values


class Output(NamedTuple):
    """Logits [B, S, vocabulary] and the load-balance loss averaged over layers (1 = perfectly balanced)."""

    logits: Tensor
    balance: Tensor


class ReferenceGate(nn.Module):
    """Choose *top_k* of the experts for every token.

    Several weights are renormalised. One alone is the expert's probability (Switch, arXiv:2101.03961, eq. 2): made to
    sum to 1 it would be 1 whatever the gate says, and no loss could teach it. Always in full precision, as ties and
    probabilities of a 16-bit gate would not be those of the trained one.
    """

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.top_k, self.n_experts = config.top_k, config.n_experts
        self.weight = nn.Parameter(torch.empty(config.n_experts, config.width))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [N, E], weights [N, K] and expert ids [N, K], for *hidden* [N, D]; several weights sum to 1."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = F.linear(hidden.to(self.weight.dtype), self.weight)
            weights, experts = logits.softmax(-1).topk(self.top_k, dim=-1)
            return logits, weights if self.top_k == 1 else weights / weights.sum(-1, keepdim=True), experts


class ReferenceExperts(nn.Module):
    """E SwiGLU feed-forward networks; tokens are sorted by expert so that each expert is one matrix product."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(config.n_experts, 2 * config.expert_width, config.width))
        self.down = nn.Parameter(torch.empty(config.n_experts, config.width, config.expert_width))

    def forward(self, hidden: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """Return the weighted sum [N, D] of the chosen experts' outputs."""
        order = experts.flatten().argsort(stable=True)
        token = order // experts.shape[1]
        counts = torch.bincount(experts.flatten(), minlength=len(self.up)).tolist()
        kind = hidden.device.type  # under autocast all experts are cast at once, not one by one
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        # unbind, not indexing: the gradient of w[e] is a full-size tensor of zeros for every expert
        each = zip(hidden.to(dtype)[token].split(counts), self.up.to(dtype).unbind(), self.down.to(dtype).unbind(),
                   strict=True)
        parts = [self._expert(rows, up, down) for rows, up, down in each if len(rows)]
        scaled = torch.cat(parts) * weights.flatten()[order, None]
        return torch.zeros_like(hidden).index_add(0, token, scaled.to(hidden.dtype))

    @staticmethod
    def _expert(rows: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gate, value = F.linear(rows, up).chunk(2, -1)
        return F.linear(F.silu(gate) * value, down)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions and a key-value cache."""

    def __init__(self, config: ReferenceConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_heads = layer, config.n_heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache) -> Tensor:
        """Return [B, S, D]; *mask* [B, 1, S, positions] is True where a query may look, None means plain causal."""
        heads = self.qkv(hidden).unflatten(-1, (3 * self.n_heads, -1)).transpose(1, 2)
        query, keys, values = heads.chunk(3, 1)
        keys, values = cache.extend(self.layer, rotate(keys, *rotation), values)
        mixed = F.scaled_dot_product_attention(
            rotate(query, *rotation), keys, values, attn_mask=mask, is_causal=mask is None
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One layer: attention, then experts, each behind a norm and added to the residual stream."""

    def __init__(self, config: ReferenceConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, layer)
        self.moe_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.gate = ReferenceGate(config)
        self.experts = ReferenceExperts(config)

    def forward(
        self, hidden: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache
    ) -> tuple[Tensor, Tensor]:
        """Return the new hidden states [B, S, D] and this layer's load-balance loss."""
        hidden = hidden + self.attention(self.attention_norm(hidden), rotation, mask, cache)
        rows = self.moe_norm(hidden).flatten(0, 1)
        logits, weights, experts = self.gate(rows)
        mixed = self.experts(rows, weights, experts)
        return hidden + mixed.view_as(hidden), balance_loss(logits, experts)


class ReferenceMoE(nn.Module):
    """A decoder-only language model whose every layer is a Mixture of Experts."""

    def __init__(self, config: ReferenceConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)  # also the output matrix
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, random: torch.Generator) -> None:
        """Draw weights with variance 1/fan-in; matrices that write to the residual are scaled by 1/sqrt(2 layers)."""
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.dim() > 1:
                    writes = name.endswith(("experts.down", "attention.out.weight"))
                    scale = (2 * self.config.n_layers) ** -0.5 if writes else 1.0
                    weight.normal_(0.0, scale * weight.shape[-1] ** -0.5, generator=random)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, past_key_values: Cache | None = None
    ) -> Output:
        """Run one pass over *input_ids* [B, S] and extend *past_key_values* in place.

        *attention_mask* [B, positions so far + S] is 1 for text and 0 for padding.
        """
        cache = Cache() if past_key_values is None else past_key_values
        past, (batch, new) = cache.get_seq_length(), input_ids.shape
        if attention_mask is None and past == 0:
            positions, mask = torch.arange(new, device=input_ids.device).expand(batch, new), None
        else:
            if attention_mask is None:
                attention_mask = input_ids.new_ones(batch, past + new)
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, past:]
            mask = visible(attention_mask.bool(), new)
        rotation = rotary(positions, self.config)
        hidden, losses = self.embed(input_ids), []
        for layer in self.layers:
            hidden, loss = layer(hidden, rotation, mask, cache)
            losses.append(loss)
        return Output(F.linear(self.norm(hidden), self.embed.weight), torch.stack(losses).mean())


def balance_loss(logits: Tensor, experts: Tensor) -> Tensor:
    """Return E * sum_e f_e P_e: f the share of choices, P the mean probability; 1 when both are uniform."""
    n_experts = logits.shape[-1]
    share = torch.bincount(experts.flatten(), minlength=n_experts) / experts.numel()
    return n_experts * (share * logits.softmax(-1).mean(0)).sum()


def visible(real: Tensor, new: int) -> Tensor:
    """Return [B, 1, new, positions]: causal and not padding; a padding query sees itself, to keep softmax finite."""
    total = real.shape[1]
    index = torch.arange(total, device=real.device)
    query = index[total - new :, None]
    return ((index <= query) & (real[:, None, :] | (index == query)))[:, None]


def rotary(positions: Tensor, config: ReferenceConfig) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [B, 1, S, head width / 2] of the rotary angles."""
    half = config.width // config.n_heads // 2
    speed = config.rope_base ** (-torch.arange(half, device=positions.device) / half)
    angle = positions[:, None, :, None] * speed
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + half]) of the last axis."""
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, left * sin + right * cos), -1)
