"""Causal attention over prompts, whole and in chunks behind a cached context.

``rope_cache_sdpa`` is all that stands between the two projections (rotary, cache write, attention); on a GPU the
back-ends of ``scaled_dot_product_attention`` are measured alone too.

>>> from moesim.measure.target import Target
>>> points = AttentionPrefill().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> any(p.shapes["kv_len"] > p.shapes["q_len"] for p in points)
True
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.measure import shapes
from moesim.measure.point import Point, Work
from moesim.measure.shapes import Heads
from moesim.measure.target import Target
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench

# (sequences, positions of each) of whole prompts, and (new positions, cached ones) of chunks.
PROMPTS = {
    "cuda": ((1, 128), (8, 128), (64, 128), (1, 512), (8, 512), (32, 512), (1, 2048), (4, 2048), (16, 2048), (1, 8192),
             (4, 8192), (1, 16384), (1, 32768), (2, 32768)),
    "cpu": ((1, 16), (1, 32), (1, 48), (1, 64), (1, 96), (4, 64), (1, 128), (1, 192), (1, 256), (1, 384), (1, 512),
            (2, 256), (1, 768)),
}
CHUNKS = {"cuda": ((512, 4096), (512, 16384), (512, 32768), (2048, 4096), (2048, 16384), (2048, 32768)),
          "cpu": ((64, 256), (128, 512), (256, 256))}
RANDOM = 16      # whole prompts of random length, for every kind of heads
BACKENDS = {"sdpa_flash": "FLASH_ATTENTION", "sdpa_cudnn": "CUDNN_ATTENTION", "sdpa_efficient": "EFFICIENT_ATTENTION"}


@part
class AttentionPrefill:
    """Measure ``attention_prefill``."""

    def points(self, target: Target) -> list[Point]:
        """Return heads x prompts and chunks x implementations."""
        rng = np.random.default_rng(2)
        sizes = PROMPTS[target.kind]
        found = []
        for heads in shapes.HEADS[target.kind]:
            drawn = [(1, int(s)) for s in shapes.log_uniform(rng, sizes[0][1], sizes[-1][1], RANDOM)]
            for batch, length in (*sizes, *drawn):
                anchor = (batch, length) in (sizes[0], sizes[-1])
                found += self._points(target, heads, (batch, length, length), anchor)
            for new, past in CHUNKS[target.kind]:
                found += self._points(target, heads, (1, new, new + past), False)
        return found

    def _points(self, target: Target, heads: Heads, size: tuple[int, int, int], anchor: bool) -> list[Point]:
        batch, q_len, kv_len = size
        impls = ["rope_cache_sdpa"]
        if target.kind == "cuda":
            whole = q_len == kv_len  # the other back-ends know no chunks: PyTorch would run flash under their names
            impls += ["sdpa_flash"] + ["sdpa_cudnn"] * whole + ["sdpa_efficient"] * (whole and q_len == 2048)
        shape = {"batch": batch, "q_len": q_len, "kv_len": kv_len, "heads_q": heads.queries, "heads_kv": heads.keys,
                 "head_dim": heads.width}
        return [Point("attention_prefill", shape, impl, anchor=anchor) for impl in impls]

    def work(self, point: Point, bench: Bench) -> Work:
        """Return attention over every cache of the ring."""
        s = point.shapes
        heads = Heads(s["heads_q"], s["heads_kv"], s["head_dim"])
        cache = (s["batch"], heads.keys, s["kv_len"], heads.width)
        if point.impl == "rope_cache_sdpa":
            return _whole(point, bench, heads, cache)
        queries = (s["batch"], heads.queries, s["q_len"], heads.width)
        (q,), caches = bench.pool.ring([cache, cache], bench.target.ring_bytes, shared=[queries])
        attend = _backend(point.impl)
        return Work([partial(attend, q, k, v) for k, v in caches])


def _whole(point: Point, bench: Bench, heads: Heads, cache: tuple[int, ...]) -> Work:
    """Return what stands between the projections, for every cache of the ring."""
    import torch

    from moesim.measure import layers

    s = point.shapes
    past, rows = s["kv_len"] - s["q_len"], s["batch"] * s["q_len"]
    (qkv,), caches = bench.pool.ring([cache, cache], bench.target.ring_bytes, shared=[(rows, heads.all_widths)])
    positions = torch.arange(past, s["kv_len"], device=bench.target.kind).repeat(s["batch"])
    angles = layers.rotation(positions, heads.width, bench.target.torch_dtype)
    calls = [partial(layers.attend_prefill, qkv, (k, v), heads, past, angles) for k, v in caches]
    return Work(calls, before=bench.elsewhere)


def _backend(impl: str) -> Callable[..., Any]:
    """Return causal attention by one back-end, which raises where it cannot; the last query sees the last key."""
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right

    backend = getattr(SDPBackend, BACKENDS[impl])

    def attend(q: Any, k: Any, v: Any) -> Any:
        shared = q.shape[1] != k.shape[1]
        with sdpa_kernel(backend):
            if q.shape[2] == k.shape[2]:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
            mask = causal_lower_right(q.shape[2], k.shape[2])
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared)

    return attend
