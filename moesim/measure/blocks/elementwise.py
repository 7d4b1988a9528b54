"""Norms and other kernels that only move values: residual with norm, SiLU and product, rotary, embedding, sampling.

``bytes`` are those a fused kernel would read and write; PyTorch on a CPU moves more, which is part of what it reaches.
Small sizes are warm: what they read was written by the kernel before.

>>> from moesim.measure.target import Target
>>> points = Elementwise().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> sorted({p.impl for p in points})
['add', 'add_rms_norm', 'argmax', 'embedding', 'rope', 'silu_mul']
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from moesim.measure.point import Point, Work
from moesim.measure.target import Target
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench

TOKENS = {"cuda": (1, 8, 64, 256, 1024, 4096, 16384), "cpu": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)}
WIDTHS = {"cuda": (2048, 4096, 7168), "cpu": (256, 768, 1280, 1792)}
VOCABULARY = {"cuda": 151936, "cpu": 32000}  # Qwen3's; Mixtral's
# Values moved per token and unit of width: read and written once each.
VALUES = {"add_rms_norm": 4.0, "add": 3.0, "silu_mul": 3.0, "rope": 2.0, "embedding": 2.0, "argmax": 1.0}
FEW = ("add", "rope", "embedding", "argmax")  # measured at every other token count: a model has few of them


@part
class Elementwise:
    """Measure ``elementwise``."""

    def points(self, target: Target) -> list[Point]:
        """Return kernels x tokens x widths, cold as well where a copy of them is larger than a sixteenth of a ring."""
        found = []
        for impl in VALUES:
            tokens = TOKENS[target.kind]
            for width in (VOCABULARY[target.kind],) if impl == "argmax" else WIDTHS[target.kind]:
                for t in tokens[::2] if impl in FEW else tokens:
                    found += self._points(target, impl, t, width)
        return found

    @staticmethod
    def _points(target: Target, impl: str, tokens: int, width: int) -> list[Point]:
        size = VALUES[impl] * tokens * width * target.value_bytes
        if size > 0.5 * target.memory_bytes or (impl == "argmax" and tokens > 256):
            return []
        extra = {"tokens": tokens, "width": width}
        cold = [False, True] if size > target.ring_bytes / 16 else [False]
        return [Point("elementwise", {"bytes": size}, impl, cold=c, extra=extra) for c in cold]

    def work(self, point: Point, bench: Bench) -> Work:
        """Return the kernel, on one buffer (warm) or on a ring of them."""
        tokens, width = point.extra["tokens"], point.extra["width"]
        inputs: dict[str, list[tuple[int, ...]]] = {
            "silu_mul": [(tokens, 2 * width)], "embedding": [(1,)], "rope": [(tokens, width // 64, 64)],
            "argmax": [(tokens, width)]}
        shapes = inputs.get(point.impl, [(tokens, width), (tokens, width)])
        ring = bench.target.ring_bytes if point.cold else 1
        rows = bench.target.ring_bytes / width / bench.target.value_bytes if point.impl == "embedding" else 1
        (weight, table), sets = bench.pool.ring(shapes, ring, shared=[(width,), (int(rows) + 1, width)])
        run = _kernel(point.impl, tokens, weight, table)
        return Work([partial(run, *xs) for xs in sets], before=bench.elsewhere)


def _kernel(impl: str, tokens: int, weight: Any, table: Any) -> Callable[..., Any]:
    """Return the function of the input tensors."""
    import torch
    import torch.nn.functional as F

    from moesim.measure import layers

    angles = layers.rotation(torch.arange(tokens, device=weight.device), 64, weight.dtype)
    ids = torch.arange(tokens, device=weight.device) * 7919 % len(table)  # 7919, a prime: rows far from each other
    kernels: dict[str, Callable[..., Any]] = {
        "add_rms_norm": lambda x, y: layers.add_norm(x, y, weight),
        "add": lambda x, y: x + y,
        "silu_mul": lambda x: F.silu(x[:, : x.shape[1] // 2]) * x[:, x.shape[1] // 2 :],
        "rope": lambda x: layers.rotate(x, *angles),
        "embedding": lambda _: F.embedding(ids, table),
        "argmax": lambda x: x.argmax(-1),
    }
    return kernels[impl]
