"""What kernels and copies, or two kernels, cost each other on one GPU: seconds of each alone and side by side.

A CPU has no copy engine beside its cores, so that there is nothing to measure there:

>>> from moesim.measure.target import Target
>>> Interference().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
[]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.measure import timing
from moesim.measure.point import Point, Timing, Work
from moesim.measure.target import Target
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench

KERNELS = ("gemm", "stream", "experts", "decode")
COPIES = ("h2d", "d2h", "bidir")
PAIRS = (("gemm", "stream"), ("experts", "decode"), ("gemm", "decode"), ("stream", "experts"))
SIZES: dict[str, list[tuple[int, ...]]] = {
    "gemm": [(8192, 4096), (8192, 4096)], "stream": [(1, 8192), (65536, 8192)],
    "experts": [(64, 2048), (64, 8), (128, 1536, 2048), (128, 2048, 768)],
    "decode": [(64, 32, 128), (64, 8, 4096, 128), (64, 8, 4096, 128)]}
COPIED = 1e9      # bytes that are under way beside a kernel
SHORT_S = 0.02    # at least so long does each side run alone: starting it may not count


@part
class Interference:
    """Measure ``interference``: seconds of a round of the first side, alone and beside the other."""

    def points(self, target: Target) -> list[Point]:
        """Return kernels x copies, and pairs of kernels; none on a CPU."""
        if target.kind == "cpu":
            return []
        sides = [(kernel, copy) for kernel in KERNELS for copy in COPIES] + list(PAIRS)
        return [Point("interference", {}, f"{a}+{b}", whole_s=1.5, extra={"first": a, "second": b}) for a, b in sides]

    def work(self, point: Point, bench: Bench) -> Work:
        """Return both sides on streams of their own."""
        sides = [_side(point.extra[name], bench) for name in ("first", "second")]
        return Work(own=lambda: beside(*sides))


def beside(first: Callable[[], Any], second: Callable[[], Any]) -> Timing:
    """Return the seconds of a round of *first* beside *second*; alone, and those of *second*, as columns.

    Each side is repeated until it takes ``SHORT_S`` alone. Side by side, each is timed by events on its own stream
    while the other keeps running: that is given three times the rounds that it gets through alone in this time.
    """
    import torch

    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    alone = [_on(stream, side, 1) for stream, side in zip(streams, (first, second), strict=True)]  # warm
    alone = [_on(stream, side, 5) for stream, side in zip(streams, (first, second), strict=True)]
    rounds = [max(1, round(SHORT_S / seconds)) for seconds in alone]
    alone = [_on(s, side, n) for s, side, n in zip(streams, (first, second), rounds, strict=True)]
    found: dict[int, list[float]] = {0: [], 1: []}
    for timed in (0, 1):  # the timed side within a run of the other that is three times as long
        other = 1 - timed
        for _ in range(timing.REPLAYS):
            torch.cuda.synchronize()
            with torch.cuda.stream(streams[other]):
                for _ in range(3 * rounds[other] + 2):
                    (first, second)[other]()
            found[timed].append(_on(streams[timed], (first, second)[timed], rounds[timed]))
    both = [float(np.median(found[i])) for i in (0, 1)]
    return Timing(found[0], {"alone_s": alone[0], "second_alone_s": alone[1], "second_s": both[1],
                             "slowdown": both[0] / alone[0], "second_slowdown": both[1] / alone[1]})


def _on(stream: Any, side: Callable[[], Any], rounds: int) -> float:
    """Return the seconds per round of *side* on *stream*."""
    import torch

    def run() -> None:
        for _ in range(rounds):
            side()

    with torch.cuda.stream(stream):
        return timing.events_s(run) / rounds


def _side(name: str, bench: Bench) -> Callable[[], Any]:
    """Return one round of a side: a copy of ``COPIED`` bytes, or about a millisecond of a kernel."""
    import torch
    import torch.nn.functional as F

    from moesim.measure import engines
    from moesim.measure.blocks.host_copy import Link

    if name in COPIES:
        return Link(COPIED, name, "pinned", 2 if name == "bidir" else 1).start
    _, (tensors,) = bench.pool.sets(SIZES[name], 1)
    tensors = [t.clone() for t in tensors]  # the pool hands out the same bytes to the other side
    if name in ("gemm", "stream"):
        return partial(F.linear, *tensors)
    if name == "decode":
        return partial(engines.decode_triton([tensors[1].shape[2]] * len(tensors[1]), "cuda"), *tensors)
    x, share, up, down = tensors
    ids = torch.arange(share.numel(), device="cuda").view(share.shape) % len(up)
    return partial(engines.experts("triton_fused")[0], x, share, ids, up, down)
