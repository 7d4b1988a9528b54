"""How long calls take: after warm-ups, several replays, one number per replay.

On a CPU a replay is one call (several if a call is shorter than the clock is good for), and a point is measured in
several rounds, most of a minute apart: another guest of the same host slows whatever runs beside it, and the fastest
round met least of that. On a GPU a replay is a CUDA
graph of at least twenty calls over the ring of buffers (three, if calls take milliseconds), timed by events; where the
work may not be captured, the same calls without a graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from moesim.measure.point import Timing, Work

WARMUPS = 3         # on a GPU, as all up to FEWEST
REPLAYS = 5
GRAPH_CALLS = 20    # in one CUDA graph, or more, to go once round the ring; fewer of calls so long that
GRAPH_SECONDS = 0.02  # so many seconds are enough
FEWEST = 3          # of those
CPU_SECONDS = 0.035  # short calls are repeated for so long in every round, and
CPU_REPLAYS = 20    # at most so often
SHORTEST = 20e-6    # seconds of one replay on a CPU: a hundred times what reading the clock takes


class Effort(NamedTuple):
    """How much of a point is run: warm-ups and at least so many replays, in each of so many rounds."""

    warmups: int
    replays: int
    rounds: int = 1


# Two cores of a shared host: single times are 20 to 30 % apart, and so were errors of a fit to them on held-out shapes;
# fitted to the fastest of five rounds, they are 5 to 7 %.
NORMAL = {"cpu": Effort(2, 2, 5), "cuda": Effort(WARMUPS, REPLAYS)}


def cost_s(kind: str, call_s: float, effort: Effort) -> float:
    """Return about how long one round of a call of *call_s* takes, buffers and bookkeeping included."""
    if kind == "cpu":
        replays = min(max(CPU_SECONDS / max(call_s, SHORTEST), effort.replays), CPU_REPLAYS)
        return 0.005 + (effort.warmups + replays) * max(call_s, SHORTEST)
    return 0.02 + call_s * _graph_calls(call_s) * (effort.replays + 2) + effort.warmups * call_s


def measure(kind: str, work: Work, effort: Effort) -> Timing:
    """Run one round of *work* and return its replays."""
    if work.own is not None:
        return work.own()
    found = _cpu(work, effort) if kind == "cpu" else _cuda(work, effort)
    extra = work.check() if work.check else {}
    return found._replace(extra={**found.extra, **extra})


def _cpu(work: Work, effort: Effort) -> Timing:
    calls, before = work.calls, work.before or _nothing
    for i in range(effort.warmups):
        before()
        began = time.perf_counter()
        calls[i % len(calls)]()
        once = time.perf_counter() - began
    together = 1 if work.before else max(1, int(SHORTEST / max(once, 1e-9)))
    replays = int(min(max(CPU_SECONDS / max(once * together, 1e-9), effort.replays), CPU_REPLAYS))
    samples, at = [], effort.warmups
    for _ in range(replays):
        before()
        began = time.perf_counter()
        for _ in range(together):
            calls[at % len(calls)]()
            at += 1
        samples.append((time.perf_counter() - began) / together)
    return Timing(samples, {"replays": replays, "calls_per_replay": together, "ring": len(calls)})


def _nothing() -> None:
    pass


def _cuda(work: Work, effort: Effort) -> Timing:
    import torch

    calls = list(work.calls)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a graph may not be captured on the default stream; warm up where it will run
        for i in range(effort.warmups - 1):
            calls[i % len(calls)]()
        count = _graph_calls(events_s(calls[-1]))
        count = max(count, len(calls)) if work.capture else count
        turn = [calls[i % len(calls)] for i in range(count)]
        replay = _captured(turn, stream) if work.capture else partial(_run_all, turn)
        stream.synchronize()
        replay()
        samples = [events_s(replay) / count for _ in range(effort.replays)]
    torch.cuda.current_stream().wait_stream(stream)
    return Timing(samples, {"replays": effort.replays, "calls_per_replay": count, "ring": len(calls),
                            "graph": work.capture})


def _graph_calls(call_s: float) -> int:
    return int(min(max(GRAPH_SECONDS / max(call_s, 1e-7), FEWEST), GRAPH_CALLS))


def _run_all(turn: Sequence[Callable[[], Any]]) -> None:
    for call in turn:
        call()


def _captured(turn: Sequence[Callable[[], Any]], stream: Any) -> Callable[[], None]:
    """Return what replays one CUDA graph of all calls of *turn*."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        _run_all(turn)
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
