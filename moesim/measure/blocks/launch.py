"""What starting work costs: one operator of PyTorch on a CPU; on a GPU kernels, graphs, events and waiting.

>>> from moesim.measure.target import Target
>>> points = Launch().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> sorted(p.impl for p in points)
['add', 'empty_call', 'linear', 'view']
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moesim.measure import timing
from moesim.measure.point import Point, Timing, Work
from moesim.measure.target import Target
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench

NODES = (1, 10, 100, 1000, 3000)  # dependent kernels of a graph: slope and intercept
EAGER = 1000                      # kernels launched one after the other
# What a layer that no graph holds costs the CPU that starts it, by the code of moesim.measure.offload: all but experts;
# as many experts; the guess of the next layer's experts; one copy from pinned memory.
SUBMITTED = ("layer_submit", "experts_submit_8", "experts_submit_64", "guess_submit", "copy_submit")
CPU = ("empty_call", "view", "add", "linear")


@part
class Launch:
    """Measure ``launch``: seconds of one thing that does next to nothing."""

    def points(self, target: Target) -> list[Point]:
        """Return one point for each of them."""
        if target.kind == "cpu":
            return [Point("launch", {}, impl, cold=False, guess_s=2e-6) for impl in CPU]
        found = [Point("launch", {}, f"{what}_{n}", cold=False, whole_s=0.05 + 1e-4 * n, extra={"nodes": n})
                 for what in ("graph", "graph_submit") for n in NODES]
        found += [Point("launch", {}, impl, cold=False, whole_s=0.1) for impl in _own()]
        return found + [Point("launch", {}, impl, cold=False, whole_s=0.5) for impl in SUBMITTED]

    def work(self, point: Point, bench: Bench) -> Work:
        """Return the thing itself (CPU), or a measurement of its own (GPU)."""
        if bench.target.kind == "cpu":
            return Work([_on_cpu(point.impl)])
        if point.impl.startswith("graph"):
            return Work(own=lambda: _graph(point.extra["nodes"], point.impl.startswith("graph_submit")))
        if point.impl in SUBMITTED:
            return Work(own=lambda: _submitted(point.impl, bench.target))
        return Work(own=_own()[point.impl])


def _on_cpu(impl: str) -> Callable[[], Any]:
    import torch
    import torch.nn.functional as F

    x = torch.ones(1, 1)
    return {"empty_call": lambda: None, "view": lambda: x.view(1), "add": lambda: x + x,
            "linear": lambda: F.linear(x, x)}[impl]


def _small() -> Any:
    import torch

    return torch.zeros(32, device="cuda")


def _graph(nodes: int, submit: bool) -> Timing:
    """Return the seconds of a graph of *nodes* kernels, each waiting for the last; or what the CPU takes to submit."""
    import torch

    x, graph = _small(), torch.cuda.CUDAGraph()
    x.add_(1.0)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(nodes):
            x.add_(1.0)
    for _ in range(timing.WARMUPS):
        graph.replay()
    torch.cuda.synchronize()
    if not submit:
        return Timing([timing.events_s(graph.replay) for _ in range(4 * timing.REPLAYS)])
    return Timing([_clock_s(graph.replay, wait_after=True) for _ in range(4 * timing.REPLAYS)])


def _clock_s(run: Callable[[], Any], wait_after: bool = False) -> float:
    """Return the CPU's seconds in *run*; wait for the device afterwards, outside of the time."""
    import torch

    began = time.perf_counter()
    run()
    took = time.perf_counter() - began
    if wait_after:
        torch.cuda.synchronize()
    return took


def _own() -> dict[str, Callable[[], Timing]]:
    """Return the measurements of the GPU that are neither graphs nor plain calls."""
    return {"eager": _eager, "eager_submit": _eager_submit, "sync": _sync, "event": _event, "fork_join": _fork_join,
            "to_host_4_bytes": _to_host}


def _repeated(once: Callable[[], float]) -> Timing:
    import torch

    for _ in range(timing.WARMUPS):
        once()
    torch.cuda.synchronize()
    return Timing([once() for _ in range(4 * timing.REPLAYS)])


def _eager() -> Timing:
    """Time of one of many kernels launched one by one: the larger of CPU and GPU time."""
    x = _small()
    return _repeated(lambda: timing.events_s(lambda: [x.add_(1.0) for _ in range(EAGER)]) / EAGER)


def _eager_submit() -> Timing:
    """Time the CPU takes to launch one kernel; few enough that the queue does not fill."""
    x = _small()
    return _repeated(lambda: _clock_s(lambda: [x.add_(1.0) for _ in range(100)], wait_after=True) / 100)


def _sync() -> Timing:
    """Time from launching one kernel to the CPU knowing that it is done."""
    import torch

    x = _small()

    def run() -> None:
        x.add_(1.0)
        torch.cuda.synchronize()

    return _repeated(lambda: _clock_s(run))


def _event() -> Timing:
    """Time the CPU takes to record an event and let another stream wait for it."""
    import torch

    stream, event = torch.cuda.Stream(), torch.cuda.Event()

    def run() -> None:
        event.record()
        stream.wait_event(event)

    return _repeated(lambda: _clock_s(run, wait_after=True))


def _fork_join() -> Timing:
    """Time on the GPU of one kernel on a second stream between two waits."""
    import torch

    x, side = _small(), torch.cuda.Stream()

    def once() -> None:
        here = torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            x.add_(1.0)
        here.wait_stream(side)

    return _repeated(lambda: timing.events_s(once))


def _to_host() -> Timing:
    """Time of bringing four bytes to the CPU: what every sampled token costs."""
    x = _small()[:1]
    return _repeated(lambda: _clock_s(lambda: x.item()))


def _submitted(what: str, target: Target) -> Timing:
    """Time the CPU takes to start *what* of a layer so narrow that the device is never waited for longer than it must.

    One decode step of 8 sequences, as an offloaded stack runs it; the heads are those of Qwen3-30B-A3B.
    """
    import torch

    from moesim.measure import layers
    from moesim.measure.blocks.layer_stack import small
    from moesim.measure.offload import ExpertCache, to_host
    from moesim.measure.stack import Stack, Step

    model = small(what, target.dtype, hidden=256, layers=4, experts=64, top_k=8, ffn=64, heads=(32, 4, 128))
    stack, step = Stack(model, target), Step(contexts=(64,) * 8)
    hidden = stack.hidden(step)
    if what == "layer_submit":
        run = stack.runner(step, stack.cache(step), lambda layer, normed, share, ids: normed)
        return _repeated(lambda: _clock_s(lambda: run(hidden), wait_after=True) / model.layers)
    if what == "guess_submit":
        gate, bias = stack.layers[0]["gate"], stack.layers[0]["bias"]
        return _repeated(lambda: _clock_s(lambda: layers.gate(hidden, gate, 8, bias)[1].unique().tolist()))
    host = to_host(stack)
    if what == "copy_submit":
        to = torch.empty_like(hidden)
        source = host[0][1].flatten()[: hidden.numel()].view(hidden.shape)
        return _repeated(lambda: _clock_s(lambda: [to.copy_(source, non_blocking=True) for _ in range(100)],
                                          wait_after=True) / 100)
    cache, used = ExpertCache(stack, host, 64), int(what.rpartition("_")[2])
    cache.need(0, list(range(64)))
    ids = torch.arange(used, device=target.kind).view(-1, 8)
    share = torch.full(ids.shape, 1 / 8, dtype=hidden.dtype, device=target.kind)
    return _repeated(lambda: _clock_s(lambda: cache.run(0, hidden[: len(ids)], share, ids), wait_after=True))
