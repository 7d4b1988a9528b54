"""The gate (projection, softmax, top-k), and sorting tokens by expert and back.

>>> from moesim.measure.target import Target
>>> points = Router().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> sorted({p.op for p in points})
['gate', 'permute', 'unpermute']
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moesim.measure import routing
from moesim.measure.point import Point, Work
from moesim.measure.target import Target
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench

TOKENS = {"cuda": (1, 8, 32, 128, 512, 2048, 8192, 16384), "cpu": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)}
# (hidden, experts, top_k): Mixtral, DeepSeek-V2-Lite, Qwen3-30B, DeepSeek-V3, Qwen3-Next on a GPU.
GATES = {"cuda": ((4096, 8, 2), (2048, 64, 6), (2048, 128, 8), (7168, 256, 8), (2048, 512, 10)),
         "cpu": ((256, 8, 2), (256, 32, 4), (512, 8, 2), (512, 64, 4), (1024, 16, 2), (1024, 32, 4), (1024, 64, 8))}


@part
class Router:
    """Measure ``gate``, and ``permute`` and ``unpermute``, which ``moe`` contains. ``seed`` draws the routing."""

    seed: int = 0

    def points(self, target: Target) -> list[Point]:
        """Return gates x tokens; permutations at every other token count."""
        found = []
        for hidden, experts, top_k in GATES[target.kind]:
            for i, tokens in enumerate(TOKENS[target.kind]):
                shape = {"tokens": tokens, "hidden": hidden, "experts": experts, "top_k": top_k}
                found.append(Point("gate", shape, "linear_softmax_topk", anchor=tokens in TOKENS[target.kind][:1]))
                size = 2 * tokens * top_k * hidden * target.value_bytes
                if i % 2 == 0:
                    found += [Point(op, shape, "torch_sort", cold=False, routing="uniform",
                                    guess_s=target.guess_copy_s(size)) for op in ("permute", "unpermute")]
        return found

    def work(self, point: Point, bench: Bench) -> Work:
        """Return the gate for every matrix of the ring; permutations on one buffer, as the gate leaves it."""
        import torch

        from moesim.measure import layers

        s, target = point.shapes, bench.target
        tokens, hidden, experts, top_k = s["tokens"], s["hidden"], s["experts"], s["top_k"]
        if point.op == "gate":
            (x,), matrices = bench.pool.ring([(experts, hidden)], target.ring_bytes, shared=[(tokens, hidden)])
            return Work([partial(layers.gate, x, w, top_k) for (w,) in matrices], before=bench.elsewhere)
        drawn = routing.choose(point.routing, tokens, experts, top_k, np.random.default_rng(self.seed))
        ids = torch.from_numpy(drawn).to(target.kind)
        (x, weights), _ = bench.pool.sets([], 0, shared=[(tokens, hidden), (tokens, top_k)])
        rows, order, _ = layers.permute(x, ids, experts)
        if point.op == "permute":
            return Work([lambda: layers.permute(x, ids, experts)], capture=False)  # counting waits for the device
        return Work([lambda: layers.unpermute(rows, weights, order)])
