"""The pieces of a decoder layer in plain PyTorch, cut where the operators of ``moesim.kernels`` are cut.

Benchmarks run them alone and ``Stack`` runs them in a row, so that what is measured is what is predicted. T tokens,
H hidden, I expert width, E experts, K = top_k, B sequences, D head width; Q and G heads of queries and of keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moesim.measure.shapes import Heads

EPS = 1e-5
ROPE_BASE = 10_000.0  # arXiv 2104.09864, section 3.2.2


def add_norm(residual: Tensor, block: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return *residual* + *block* [T, H] and its RMS norm: what stands in front of every block."""
    residual = residual + block
    return residual, F.rms_norm(residual, weight.shape, weight, EPS)


def gate(hidden: Tensor, weight: Tensor, top_k: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the weights [T, K], which sum to 1, and the experts [T, K] that a softmax gate chooses."""
    weights, ids = F.linear(hidden, weight, bias).softmax(-1).topk(top_k, dim=-1)
    return weights / weights.sum(-1, keepdim=True), ids


def permute(hidden: Tensor, ids: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return copies of the tokens sorted by expert [T * K, H], their order, and the tokens of each expert [E]."""
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    return hidden[order // ids.shape[1]], order, torch.bincount(flat, minlength=experts)


def unpermute(rows: Tensor, weights: Tensor, order: Tensor) -> Tensor:
    """Return the weighted sums [T, H] of sorted *rows* [T * K, H]."""
    out = rows.new_zeros(weights.shape[0], rows.shape[1])
    return out.index_add_(0, order // weights.shape[1], rows * weights.flatten()[order, None])


def experts_loop(hidden: Tensor, weights: Tensor, ids: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return the weighted sum [T, H] of SwiGLU experts (up [E, 2 I, H], down [E, H, I]), one after the other."""
    rows, order, counts = permute(hidden, ids, len(up))
    parts, at = [], 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            first, second = F.linear(rows[at : at + count], up[expert]).chunk(2, -1)
            parts.append(F.linear(F.silu(first) * second, down[expert]))
            at += count
    return unpermute(torch.cat(parts), weights, order)


def experts_grouped_mm(hidden: Tensor, weights: Tensor, ids: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return the same by ``torch._grouped_mm``, which takes all experts at once and does not wait for the counts."""
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    ends = torch.searchsorted(flat[order], torch.arange(len(up), device=ids.device), right=True).to(torch.int32)
    first, second = torch._grouped_mm(hidden[order // ids.shape[1]], up.mT, offs=ends).chunk(2, -1)
    return unpermute(torch._grouped_mm(F.silu(first) * second, down.mT, offs=ends), weights, order)


def rotation(positions: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [T, 1, D / 2] of the rotary angles of *positions* [T]."""
    speed = ROPE_BASE ** (-torch.arange(width // 2, device=positions.device) / (width // 2))
    angle = positions[:, None, None] * speed
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + D / 2]) of [T, heads, D]."""
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, left * sin + right * cos), -1)


def split_heads(qkv: Tensor, heads: Heads, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotated queries [T, Q, D], rotated keys and values [T, G, D] of the fused projection."""
    q, k, v = qkv.view(len(qkv), -1, heads.width).split((heads.queries, heads.keys, heads.keys), 1)
    return rotate(q, *angles), rotate(k, *angles), v


def decode_sdpa(q: Tensor, keys: Tensor, values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return attention [B, Q, D] of one query per sequence over the first *lengths* of its cache [B, G, S, D].

    The heads that share a key are the rows of one product. Sequences of one length are one call, others one each:
    PyTorch has no attention over a cache of uneven lengths for CPUs.
    """
    grouped = q.view(len(q), keys.shape[1], -1, q.shape[-1])
    if len(set(lengths)) == 1:
        n = lengths[0]
        return F.scaled_dot_product_attention(grouped, keys[:, :, :n], values[:, :, :n]).view(q.shape)
    parts = [F.scaled_dot_product_attention(grouped[i : i + 1], keys[i : i + 1, :, :n], values[i : i + 1, :, :n])
             for i, n in enumerate(lengths)]
    return torch.cat(parts).view(q.shape)


def attend_decode(qkv: Tensor, cache: tuple[Tensor, Tensor], heads: Heads, lengths: Sequence[int],
                  angles: tuple[Tensor, Tensor]) -> Tensor:
    """Return what goes into the output projection [B, Q * D]: rotary, writing the cache, attention over it.

    *lengths* count the new token, whose key and value are written at the last of them.
    """
    q, k, v = split_heads(qkv, heads, angles)
    _write(cache, k, v, lengths)
    return decode_sdpa(q, *cache, lengths).flatten(1)


def _write(cache: tuple[Tensor, Tensor], k: Tensor, v: Tensor, lengths: Sequence[int]) -> None:
    """Write the new keys and values [B, G, D] at the ends of the sequences."""
    if len(set(lengths)) == 1:
        cache[0][:, :, lengths[0] - 1], cache[1][:, :, lengths[0] - 1] = k, v
        return
    for i, n in enumerate(lengths):
        cache[0][i, :, n - 1], cache[1][i, :, n - 1] = k[i], v[i]


def prefill_sdpa(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return causal attention [B, Q, S, D] of the last S positions over the keys and values [B, G, S + past, D]."""
    new, seen = q.shape[2], keys.shape[2]
    shared = q.shape[1] != keys.shape[1]
    if new == seen:
        return F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=shared)
    if q.is_cuda:  # as a bias that flash kernels know; a plain mask would send them away
        from torch.nn.attention.bias import causal_lower_right  # loads a compiler: 2 s

        bias = causal_lower_right(new, seen)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias, enable_gqa=shared)
    mask = torch.ones(new, seen, dtype=torch.bool).tril(seen - new)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=shared)


def attend_prefill(qkv: Tensor, cache: tuple[Tensor, Tensor], heads: Heads, past: int,
                   angles: tuple[Tensor, Tensor]) -> Tensor:
    """Return what goes into the output projection [B * S, Q * D] of new positions behind *past* cached ones.

    *qkv* is [B * S, (Q + 2 G) * D], sequence after sequence; their keys and values are written to the cache.
    """
    q, k, v = (x.unflatten(0, (len(cache[0]), -1)).transpose(1, 2) for x in split_heads(qkv, heads, angles))
    end = past + q.shape[2]
    cache[0][:, :, past:end], cache[1][:, :, past:end] = k, v
    mixed = prefill_sdpa(q, cache[0][:, :, :end], cache[1][:, :, :end])
    return mixed.transpose(1, 2).reshape(len(qkv), -1)
