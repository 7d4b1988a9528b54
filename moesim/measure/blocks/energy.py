"""Joules of representative kernels, by the counter of the CPU package or the GPU, in loops of at least a second.

Idle is measured too. A machine without a counter that may be read gets rows that say so:

>>> from moesim.measure.target import Target
>>> points = Energy().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> {p.op for p in points}, points[0].impl
({'energy'}, 'idle')
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim import registry
from moesim.measure import energy
from moesim.measure.point import Point, Timing, Work
from moesim.measure.target import Target
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench

SECONDS = 1.2    # of one loop: counters move every millisecond or less often
LOOPS = 2
# Kernels of each block, spread evenly over its points by how long they take.
FROM = {"dense_gemm": 8, "experts": 6, "attention_decode": 4, "attention_prefill": 3, "memory": 3}


@part
class Energy:
    """Measure ``energy``: ``time_s`` is that of a call, joules of a call and watts are columns."""

    def points(self, target: Target) -> list[Point]:
        """Return idle, and kernels from cheap to expensive of the blocks in ``FROM``."""
        took = SECONDS * LOOPS + 0.1
        found = [Point("energy", {}, "idle", cold=False, whole_s=SECONDS, extra={"of": "idle"})]
        for block, count in FROM.items():
            points = sorted(registry.make("bench", block).points(target), key=lambda p: (target.guess_s(p), p.key))
            chosen = np.unique(np.linspace(0, len(points) - 1, count).round().astype(int))
            found += [Point("energy", points[i].shapes, points[i].impl, cold=points[i].cold, routing=points[i].routing,
                            whole_s=took, extra={**points[i].extra, "of": points[i].op, "block": block})
                      for i in chosen]
        return found

    def work(self, point: Point, bench: Bench) -> Work:
        """Return loops of the kernel between two readings of the counter."""
        read = energy.counter(bench.target.kind)
        if point.extra["of"] == "idle":
            return Work(own=lambda: _idle(read))
        extra = {name: value for name, value in point.extra.items() if name not in ("of", "block")}
        measured = Point(point.extra["of"], point.shapes, point.impl, cold=point.cold, routing=point.routing,
                         extra=extra)
        calls = registry.make("bench", point.extra["block"]).work(measured, bench).calls
        return Work(own=lambda: loops(calls, read, bench.target.kind))


def _idle(read: Callable[[], float]) -> Timing:
    before = read()
    time.sleep(SECONDS)
    return Timing([SECONDS], {"power_w": (read() - before) / SECONDS})


def loops(calls: Sequence[Callable[[], Any]], read: Callable[[], float], kind: str, seconds: float = SECONDS) -> Timing:
    """Return the seconds of a call of *calls*, in turn for *seconds*, with its joules and the watts (medians)."""
    import torch

    wait: Callable[[], Any] = torch.cuda.synchronize if kind == "cuda" else lambda: None
    samples, joules = [], []
    for _ in range(LOOPS):
        wait()
        before, began, count = read(), time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(16):  # asking a GPU to be done after every call would leave it idle in between
                calls[count % len(calls)]()
                count += 1
            wait()
        took = time.perf_counter() - began
        samples.append(took / count)
        joules.append((read() - before) / count)
    per_call = float(np.median(joules))
    return Timing(samples, {"energy_j": per_call, "power_w": per_call / float(np.median(samples))})
