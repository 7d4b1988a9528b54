"""Decoding with some of the experts on the host, behind an LRU cache of slots on the device, with and without prefetch.

On a CPU a fetch is a memcpy in one memory; such rows say so:

>>> from moesim.measure.target import Target
>>> points = Offload().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> {p.extra["fetch"] for p in points}, sorted({p.extra["resident"] for p in points})
({'memcpy'}, [0.25, 0.5, 0.75, 1.0])
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.measure.blocks import layer_stack
from moesim.measure.point import Point, Timing, Work
from moesim.measure.target import REACHED, Target
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench

MODEL = {"cuda": "qwen3-30b-a3b", "cpu": "small-16"}
RESIDENT = (0.25, 0.5, 0.75, 1.0)  # the last never fetches: the step without a link
BATCHES = (1, 4, 16)
CONTEXT = {"cuda": 1024, "cpu": 64}
STEPS = 12       # decoding steps that are timed, each with hidden states of its own
WARM = 8        # before them, to fill the slots
LINK = {"cuda": 40e9, "cpu": 5e9}  # bytes per second of fetches, to guess times from (assumed)


@part
class Offload:
    """Measure ``offload``: seconds of a step; experts used (hits, misses) and bytes fetched as columns."""

    def points(self, target: Target) -> list[Point]:
        """Return resident shares x batches x (no prefetch, prefetch); none if the device cannot hold all experts."""
        spec = layer_stack.model(MODEL[target.kind], target.dtype)
        if spec.total_bytes > target.memory_bytes:
            return []
        found = []
        for resident in RESIDENT:
            for batch in BATCHES:
                fetched = (1 - resident) * min(batch * spec.top_k, spec.n_experts) * spec.layers * spec.expert_bytes
                step_s = 0.1 * spec.total_bytes / target.bytes_per_s / REACHED + fetched / LINK[target.kind]
                found += [Point("offload", {}, "lru_prefetch" if ahead else "lru", routing="zipf",
                                whole_s=0.1 + step_s * (STEPS + WARM), group="offload", anchor=resident == 1,
                                extra={"model": MODEL[target.kind], "resident": resident, "batch": batch,
                                       "fetch": "memcpy" if target.kind == "cpu" else "pinned"})
                          for ahead in ((False, True) if resident < 1 else (False,))]
        return found

    def work(self, point: Point, bench: Bench) -> Work:
        """Return decoding with an empty cache of slots, over the same stack for all points."""
        from moesim.measure.offload import OffloadedStack
        from moesim.measure.stack import Step

        target, batch = bench.target, point.extra["batch"]
        stack, host = _hosted(bench)
        run = OffloadedStack(stack, host, point.extra["resident"], point.impl == "lru_prefetch")
        step = Step(contexts=(CONTEXT[target.kind],) * batch)
        cache = stack.cache(step)
        decode = run.runner(step, cache)

        def own() -> Timing:
            for layer in range(stack.model.layers if point.extra["resident"] == 1 else 0):
                run.cache.need(layer, list(range(stack.model.n_experts)))
            for _ in range(WARM):
                decode(stack.hidden(step))
            run.cache.reset()
            samples = [_step_s(decode, stack.hidden(step), target.kind) for _ in range(STEPS)]
            asked = run.cache.hits + run.cache.misses
            return Timing(samples, {"hit_rate": run.cache.hits / asked, "bytes_per_step": run.cache.moved_bytes / STEPS,
                                    "hits_per_step": run.cache.hits / STEPS,
                                    "misses_per_step": run.cache.misses / STEPS,
                                    "context": CONTEXT[target.kind],
                                    "tokens_per_s": batch / float(np.median(samples))})

        return Work(own=own)


def _hosted(bench: Bench) -> Any:
    """Return a stack and its experts on the host, kept by *bench* until another block needs the memory."""
    from moesim.measure.offload import to_host
    from moesim.measure.stack import Stack

    if "offload" not in bench.kept:
        bench.kept.clear()
        bench.pool.clear()
        stack = Stack(layer_stack.model(MODEL[bench.target.kind], bench.target.dtype), bench.target)
        stack.skew(layer_stack.SKEWS["zipf"])
        bench.kept["offload"] = (stack, to_host(stack))
    return bench.kept["offload"]


def _step_s(decode: Callable[..., Any], hidden: Any, kind: str) -> float:
    """Return the seconds until the device is done: a step waits for its own routing, so that no graph can hold it."""
    import torch

    if kind == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    decode(hidden)
    if kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
