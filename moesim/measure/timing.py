"""How long calls take: after warm-ups, several replays, one number per replay.

On a CPU a replay is one call (several if a call is shorter than the clock is good for). On a GPU a replay is a CUDA
graph of at least twenty calls over the ring of buffers, timed by events; where the work may not be captured, the same
calls without a graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from moesim.measure.point import Timing, Work

WARMUPS = 3
REPLAYS = 5         # at least; of each point
GRAPH_CALLS = 20    # at least; in one CUDA graph
CPU_SECONDS = 0.12  # short calls are repeated for so long, and
CPU_REPLAYS = 40    # at most so often
SHORTEST = 20e-6    # seconds of one replay on a CPU: a hundred times what reading the clock takes


class Effort(NamedTuple):
    """How much of a point is run."""

    warmups: int = WARMUPS
    replays: int = REPLAYS


NORMAL = Effort()


def cost_s(kind: str, call_s: float, effort: Effort = NORMAL) -> float:
    """Return about how long measuring a call of *call_s* takes, buffers and bookkeeping included."""
    if kind == "cpu":
        replays = min(max(CPU_SECONDS / max(call_s, SHORTEST), effort.replays), CPU_REPLAYS)
        return 0.005 + (effort.warmups + replays) * max(call_s, SHORTEST)
    return 0.02 + call_s * GRAPH_CALLS * (effort.replays + 2) + effort.warmups * call_s


def measure(kind: str, work: Work, effort: Effort = NORMAL) -> Timing:
    """Run *work* and return its replays."""
    if work.own is not None:
        return work.own()
    timing = _cpu(work.calls, effort) if kind == "cpu" else _cuda(work, effort)
    extra = work.check() if work.check else {}
    return timing._replace(extra={**timing.extra, **extra})


def _cpu(calls: Sequence[Callable[[], Any]], effort: Effort) -> Timing:
    for i in range(effort.warmups):
        began = time.perf_counter()
        calls[i % len(calls)]()
        once = time.perf_counter() - began
    together = max(1, int(SHORTEST / max(once, 1e-9)))
    replays = int(min(max(CPU_SECONDS / max(once * together, 1e-9), effort.replays), CPU_REPLAYS))
    samples, at = [], effort.warmups
    for _ in range(replays):
        began = time.perf_counter()
        for _ in range(together):
            calls[at % len(calls)]()
            at += 1
        samples.append((time.perf_counter() - began) / together)
    return Timing(samples, {"replays": replays, "calls_per_replay": together, "ring": len(calls)})


def _cuda(work: Work, effort: Effort) -> Timing:
    import torch

    calls = list(work.calls)
    count = max(GRAPH_CALLS, len(calls))
    if not work.capture:
        count = min(count, GRAPH_CALLS)
    turn = [calls[i % len(calls)] for i in range(count)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a graph may not be captured on the default stream; warm up where it will run
        for i in range(effort.warmups):
            turn[i % count]()
        replay = _captured(turn, stream) if work.capture else (lambda: [call() for call in turn])
        stream.synchronize()
        replay()
        samples = [events_s(replay) / count for _ in range(effort.replays)]
    torch.cuda.current_stream().wait_stream(stream)
    return Timing(samples, {"replays": effort.replays, "calls_per_replay": count, "ring": len(calls),
                            "graph": work.capture})


def _captured(turn: Sequence[Callable[[], Any]], stream: Any) -> Callable[[], None]:
    """Return what replays one CUDA graph of all calls of *turn*."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in turn:
            call()
    return graph.replay


def events_s(replay: Callable[[], Any]) -> float:
    """Return the seconds that the current CUDA stream takes for *replay*, between two events."""
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3
