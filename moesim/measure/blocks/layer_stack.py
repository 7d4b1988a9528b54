"""Whole steps of a layer stack: what the sum of operators has to predict, in prefill, decode and both together.

On a GPU the layers of Qwen3-30B-A3B and Mixtral 8x7B, in a CUDA graph; on a CPU two small stacks.

>>> from moesim.measure.target import Target
>>> points = LayerStack().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> sorted({p.extra["model"] for p in points}), {p.op for p in points}
(['small-16', 'small-8'], {'step'})
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim import config
from moesim.measure import routing
from moesim.measure.point import Point, Work
from moesim.measure.target import REACHED, Target
from moesim.model import ModelSpec
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench
    from moesim.measure.stack import Step

MODELS = {"cuda": ("qwen3-30b-a3b", "mixtral-8x7b"), "cpu": ("small-8", "small-16")}
# (prompts, new positions of each or 0, sequences that decode, their context)
STEPS = {
    "cuda": [*((0, 0, b, c) for b in (1, 8, 32, 64, 128, 256) for c in (1024, 4096, 16384)),
             *((p, 0, 0, 0) for p in (512, 2048, 8192)), (4096, 512, 32, 4096)],
    "cpu": [(0, 0, 1, 128), (0, 0, 4, 256), (0, 0, 16, 128), (64, 0, 0, 0), (128, 0, 0, 0), (128, 64, 4, 128)],
}
SKEWS = {"uniform": 0.0, "zipf": routing.ZIPF}
ROUTINGS = (*SKEWS, "trace")  # the last: experts as popular as in
TRACE = "workloads/traces/reference-moe.parquet"
LONG = 4096  # new tokens, from which a step takes tens of seconds to measure
INPUTS = 4  # sets of hidden states in turn: a step does not choose the experts of the one before


@part
class LayerStack:
    """Measure ``step``."""

    def points(self, target: Target) -> list[Point]:
        """Return models x steps x routings, as far as weights and caches fit.

        Every step comes with one routing before any comes with another, and long steps come with others last.
        """
        found: list[Point] = []
        for name in MODELS[target.kind]:
            spec = model(name, target.dtype)
            for prompt, new, batch, context in STEPS[target.kind]:
                size = spec.total_bytes + (prompt + batch * context) * spec.kv_bytes_per_token_per_layer * spec.layers
                if size > 0.95 * target.memory_bytes:
                    continue
                tokens = (new or prompt) + batch
                flop = 2.0 * tokens * spec.active_parameters
                guess = (size / target.bytes_per_s + flop / target.flop_per_s) / REACHED
                extra = {"model": name, "prompt": prompt, "chunk": new, "batch": batch, "context": context}
                turn = len(found) // len(ROUTINGS)
                found += [Point("step", {}, "stack", routing=kind, guess_s=guess, group=name, extra=extra,
                                after=0 if kind == ROUTINGS[turn % len(ROUTINGS)] else 2 if tokens > LONG else 1)
                          for kind in ROUTINGS]
        return found

    def work(self, point: Point, bench: Bench) -> Work:
        """Return the step on several inputs in turn, with the loads of every layer as a column."""
        given = point.extra
        stack = _stack(given["model"], point.routing, bench)
        step = _step(given["prompt"], given["chunk"], given["batch"], given["context"])
        cache = stack.cache(step)
        inputs = [stack.hidden(step) for _ in range(INPUTS)]
        loads = [stack.loads(stack.routed(step, cache, x)) for x in inputs]
        run: Callable[..., Any] = stack.runner(step, cache)
        return Work([partial(run, x) for x in inputs], capture=stack.capture, check=lambda: {"loads": loads})


def model(name: str, dtype: str) -> ModelSpec:
    """Return the model *name* of the library, or one of the small ones, stored as *dtype*."""
    if not name.startswith("small-"):
        found = config.build(ModelSpec, config.read(config.find_file(f"workloads/models/{name}.yaml", config.Path())))
        stored = {"weights": dtype, "experts": dtype, "kv": dtype, "activations": dtype}
        return found.scaled(dtype=stored)
    experts = int(name.removeprefix("small-"))
    return small(name, dtype, hidden=512, layers=4, experts=experts, top_k=2, ffn=1024, heads=(8, 4, 64))


def small(name: str, dtype: str, *, heads: tuple[int, int, int], **sizes: int) -> ModelSpec:
    """Return a small model; *heads*: of queries, of keys, their width; *sizes*: hidden, layers, experts, top_k, ffn."""
    queries, keys, width = heads
    return ModelSpec.model_validate({
        "name": name, "source": "made up for measuring", "hidden": sizes["hidden"], "layers": sizes["layers"],
        "vocabulary": 8192, "context": 4096,
        "attention": {"kind": "gqa", "heads": queries, "kv_heads": keys, "head_dim": width},
        "moe": {"experts": sizes["experts"], "top_k": sizes["top_k"], "ffn": sizes["ffn"]},
        "dtype": {"weights": dtype, "experts": dtype, "kv": dtype, "activations": dtype}})


def _step(prompt: int, chunk: int, batch: int, context: int) -> Step:
    from moesim.measure.stack import Step

    return Step((prompt,) if prompt else (), (context,) * batch, chunk)


def _stack(name: str, kind: str, bench: Bench) -> Any:
    """Return the stack, kept by *bench* until another is asked for: weights take seconds to draw and all memory."""
    from moesim.measure.stack import Stack

    if name not in bench.kept:
        bench.kept.clear()
        bench.pool.clear()
        bench.kept[name] = Stack(model(name, bench.target.dtype), bench.target)
    stack = bench.kept[name]
    if kind in SKEWS:
        stack.skew(SKEWS[kind])
    else:
        stack.follow(_shares())
    return stack


@cache
def _shares() -> np.ndarray:
    """Return the share of choices of every expert in every layer of the trace that ships: [layers, experts]."""
    from moesim.trace import read_trace

    counts = read_trace(config.find_file(TRACE, config.Path())).counts()
    return np.asarray(counts / counts.sum(1, keepdims=True))
