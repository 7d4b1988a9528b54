"""Memory ceilings: copies, reads, fills, and expert-sized blocks gathered from all over.

>>> from moesim.measure.target import Target
>>> points = Memory().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> sorted({p.impl for p in points})
['copy', 'fill', 'gather', 'read']
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

SIZES = {"cuda": [4096.0 * 2**i for i in range(22)], "cpu": [4096.0 * 4**i for i in range(9)]}  # bytes moved
BLOCKS = {"cuda": (0.75e6, 9.4e6, 88e6, 352e6), "cpu": (0.25e6, 3e6, 24e6)}  # bytes of one expert, or part of one
MOVED = {"copy": 2, "read": 1, "fill": 1, "gather": 2}  # times the buffer


@part
class Memory:
    """Measure ``copy``: bytes read and written per second."""

    def points(self, target: Target) -> list[Point]:
        """Return kinds x sizes, and gathers of eight blocks."""
        found = [self._point(target, impl, size, size >= SIZES[target.kind][-4]) for impl in ("copy", "read", "fill")
                 for size in SIZES[target.kind]]
        found += [self._point(target, "gather", 2 * 8 * block, False) for block in BLOCKS[target.kind]]
        return [p for p in found if 8 * p.shapes["bytes"] <= target.memory_bytes]

    @staticmethod
    def _point(target: Target, impl: str, moved: float, anchor: bool) -> Point:
        return Point("copy", {"bytes": moved}, impl, anchor=anchor, guess_s=target.guess_copy_s(moved))

    def work(self, point: Point, bench: Bench) -> Work:
        """Return the movement for every buffer of the ring."""
        values = max(int(point.shapes["bytes"] / MOVED[point.impl] / bench.target.value_bytes), 1)
        if point.impl == "gather":
            return _gather(values // 8, bench)
        count = MOVED[point.impl] if point.impl == "copy" else 1
        _, sets = bench.pool.ring([(values,)] * count, bench.target.ring_bytes)
        run = _movement(point.impl)
        return Work([partial(run, *xs) for xs in sets])


def _movement(impl: str) -> Callable[..., Any]:
    import torch

    if impl == "copy":
        return lambda x, y: y.copy_(x)
    if impl == "fill":
        return lambda x: x.fill_(0.05)
    return lambda x: torch.sum(x)


def _gather(block: int, bench: Bench) -> Work:
    """Return gathers of every fourth of 32 blocks into one buffer, turn by turn other ones."""
    import torch

    (source, out), _ = bench.pool.sets([], 0, shared=[(32, block), (8, block)])
    turns = [torch.arange(first, 32, 4, device=bench.target.kind) for first in range(4)]
    return Work([partial(torch.index_select, source, 0, ids, out=out) for ids in turns])
