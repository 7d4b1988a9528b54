"""Attention of one new token per sequence over its cached context; sequences equally long, or one long among short.

``kv_len`` is the mean over the batch. The long sequence of an uneven batch has eight times the length of the others:

>>> from moesim.measure.target import Target
>>> points = AttentionDecode().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> uneven = next(p for p in points if p.extra["lengths"] == "uneven")
>>> uneven.shapes["batch"], uneven.extra["longest"], uneven.extra["shortest"], uneven.shapes["kv_len"]
(4, 512, 64, 176.0)
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

BATCHES = {"cuda": (1, 2, 4, 8, 16, 32, 64, 128, 256), "cpu": (1, 2, 4, 8, 16, 32)}
CONTEXTS = {"cuda": (128, 512, 2048, 4096, 8192, 16384, 32768, 131072), "cpu": (32, 64, 128, 256, 512, 1024)}
UNEVEN = {"cuda": ((8, 1024), (32, 1024), (128, 1024), (8, 8192), (32, 4096)), "cpu": ((4, 64), (8, 64), (16, 128))}
LONG = 8          # times the length of the others
RANDOM = 12       # batches off the grid, for every kind of heads
LARGEST = {"cuda": 60e9, "cpu": 256e6}  # bytes of one cache


@part
class AttentionDecode:
    """Measure ``attention_decode``."""

    def points(self, target: Target) -> list[Point]:
        """Return heads x batches x contexts, then shapes off the grid and uneven batches."""
        batches, contexts = BATCHES[target.kind], CONTEXTS[target.kind]
        rng = np.random.default_rng(3)
        found = []
        for heads in shapes.HEADS[target.kind]:
            drawn = zip(shapes.log_uniform(rng, 1, batches[-1], RANDOM),
                        shapes.log_uniform(rng, contexts[0], contexts[-1], RANDOM), strict=True)
            even = [(b, c) for b in batches for c in contexts] + [(int(b), int(c)) for b, c in drawn]
            for batch, context in even:
                anchor = batch in (1, batches[-1]) and context in (contexts[0], *contexts[-2:])
                found += self._points(target, heads, np.full(batch, context), anchor)
            for batch, short in UNEVEN[target.kind]:
                found += self._points(target, heads, np.r_[LONG * short, np.full(batch - 1, short)], False)
        return [p for p in found if self._bytes(p, target) <= min(LARGEST[target.kind], 0.7 * target.memory_bytes)]

    def _points(self, target: Target, heads: Heads, lengths: np.ndarray, anchor: bool) -> list[Point]:
        even = bool(lengths[0] == lengths[-1])
        impls = ["rope_cache_sdpa"]
        if target.kind == "cuda":
            impls = ["rope_cache_triton", "triton_split_kv"] + ["sdpa"] * even
        shape = {"batch": len(lengths), "kv_len": float(lengths.mean()), "heads_q": heads.queries,
                 "heads_kv": heads.keys, "head_dim": heads.width}
        extra = {"lengths": "even" if even else "uneven", "longest": int(lengths.max()), "shortest": int(lengths.min())}
        return [Point("attention_decode", shape, impl, anchor=anchor, extra=extra) for impl in impls]

    @staticmethod
    def _bytes(point: Point, target: Target) -> float:
        """Return the bytes of a cache that has room for the longest sequence in every row."""
        s = point.shapes
        return 2 * s["batch"] * point.extra["longest"] * s["heads_kv"] * s["head_dim"] * target.value_bytes

    def work(self, point: Point, bench: Bench) -> Work:
        """Return decoding over every cache of the ring."""
        from moesim.measure import layers

        s, longest = point.shapes, point.extra["longest"]
        heads = Heads(s["heads_q"], s["heads_kv"], s["head_dim"])
        lengths = [longest] + [point.extra["shortest"]] * (s["batch"] - 1)
        cache = (s["batch"], heads.keys, longest, heads.width)
        ring = bench.target.ring_bytes * longest / s["kv_len"]  # what is read of a cache counts, not its padding
        (qkv,), caches = bench.pool.ring([cache, cache], ring, shared=[(s["batch"], heads.all_widths)])
        run = _implementation(point.impl, heads, lengths, bench)
        q = layers.split_heads(qkv, heads, _angles(lengths, heads, bench))[0].contiguous()
        given = qkv if point.impl.startswith("rope_cache") else q
        return Work([partial(run, given, k, v) for k, v in caches], before=bench.elsewhere)


def _angles(lengths: list[int], heads: Heads, bench: Bench) -> Any:
    import torch

    from moesim.measure import layers

    positions = torch.tensor(lengths, device=bench.target.kind) - 1
    return layers.rotation(positions, heads.width, bench.target.torch_dtype)


def _implementation(impl: str, heads: Heads, lengths: list[int], bench: Bench) -> Callable[..., Any]:
    """Return a function of (projection or queries, keys, values)."""
    from moesim.measure import engines, layers

    if impl == "sdpa":
        return lambda q, k, v: layers.decode_sdpa(q, k, v, lengths)
    if impl == "triton_split_kv":
        return engines.decode_triton(lengths, bench.target.kind)
    angles = _angles(lengths, heads, bench)
    attend = engines.decode(impl, lengths, bench.target.kind)
    return lambda qkv, k, v: attend(qkv, (k, v), heads, angles)
