"""Copies between tiers of memory: engines serve chunks by priority, bytes share the bandwidth of tiers with computing.

>>> engines = {"pcie": Engine(1e9, ("hbm", "host"))}
>>> late = Copy(1e6, ("pcie",), ready_s=1e-4)                       # demand, while a prefetch of 10 MB is on its way
>>> ahead = Copy(10e6, ("pcie",), priority=1)
>>> run([ahead, late], engines).copies["finish_s"].round(6).tolist()  # a started copy ends first ...
[0.01, 0.011]
>>> pieces = dataclasses.replace(ahead, chunk_bytes=1e6)
>>> run([pieces, late], engines).copies["finish_s"].round(6).tolist()  # ... or only the chunk that has begun
[0.011, 0.002]
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from moesim.memory.terms import CacheError
from moesim.registry import suggest

_TOGETHER = 1e-12  # what ends within this share of a step ends together: rounding, not order
_ROUNDING = 1e-12  # a rest of this share of a copy is no chunk
_MANY = 1_000_000  # chunks of one copy: more is a mistake in a unit


@dataclasses.dataclass(frozen=True)
class Engine:
    """Say how one copy engine moves chunks.

    bandwidth  bytes/s that many chunks in flight reach
    tiers      memories that its bytes pass, each of which bounds the sum of what passes it
    lanes      chunks in service at a time
    half       n chunks in flight reach n / (n + half) of the bandwidth
    setup_s    of every chunk: the engine holds it, no bytes move
    """

    bandwidth: float
    tiers: tuple[str, ...] = ()
    lanes: int = 1
    half: float = 0.0
    setup_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class Copy:
    """Say what is to be copied: over the engines of ``route`` in turn, by chunks, the lowest priority number first.

    A chunk goes over the next engine when it has come over the one before; one that has begun is not interrupted.
    """

    bytes: float
    route: tuple[str, ...]
    ready_s: float = 0.0
    priority: int = 0
    chunk_bytes: float = math.inf


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Say what a processor moves to and from a tier: at ``bandwidth`` where nobody else is, else at its fair share."""

    bytes: float
    tier: str
    bandwidth: float = math.inf
    ready_s: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Timeline:
    """What happened: copies (start_s, finish_s), chunks (copy, chunk, engine, start_s, finish_s, bytes), traffic."""

    copies: pd.DataFrame
    chunks: pd.DataFrame
    traffic: pd.DataFrame


@dataclasses.dataclass(eq=False)
class _Job:
    """A chunk on one engine, or the traffic of a processor (``engine`` is empty)."""

    item: int
    chunk: int
    size: float
    hop: int
    engine: str
    uses: tuple[str, ...]
    start_s: float = math.nan
    moves_s: float = 0.0
    left: float = 0.0


def run(copies: Sequence[Copy], engines: Mapping[str, Engine], bandwidth: Mapping[str, float] | None = None,
        traffic: Sequence[Traffic] = ()) -> Timeline:
    """Return when each of *copies* and each piece of *traffic* begins and ends.

    *engines* by name; *bandwidth*: bytes/s of tiers (one that is not named bounds nothing). At any time the chunks in
    service and the traffic have the max-min fair rates that engines and tiers allow. An engine takes the waiting chunk
    of the lowest priority number, then of the copy that was ready first, then that was given first. Raises
    ``CacheError``.
    """
    rooms = dict(bandwidth or {})
    _check(copies, engines, rooms, traffic)
    return _Run(copies, engines, rooms, traffic).finish()


class _Run:
    def __init__(self, copies: Sequence[Copy], engines: Mapping[str, Engine], rooms: dict[str, float],
                 traffic: Sequence[Traffic]):
        self.copies, self.engines, self.traffic = copies, engines, traffic
        self.caps = rooms | {f"traffic {i}": t.bandwidth for i, t in enumerate(traffic)}
        self.waiting: dict[str, list[tuple[int, float, int, int, _Job]]] = {name: [] for name in engines}
        self.busy: dict[str, int] = dict.fromkeys(engines, 0)
        self.active: list[_Job] = []
        self.chunks: list[tuple[int, int, str, float, float, float]] = []
        self.moved: list[tuple[int, float, float]] = []
        self.now = 0.0
        self.coming = sorted([(c.ready_s, 0, i) for i, c in enumerate(copies)]
                             + [(t.ready_s, 1, i) for i, t in enumerate(traffic)], reverse=True)

    def finish(self) -> Timeline:
        """Return the timeline when nothing is left."""
        while self.coming or self.active or any(self.waiting.values()):
            self._arrive()
            self._start()
            self._advance()
        chunks = pd.DataFrame(self.chunks, columns=["copy", "chunk", "engine", "start_s", "finish_s", "bytes"])
        ends = chunks.groupby("copy").agg(start_s=("start_s", "min"), finish_s=("finish_s", "max"))
        told = pd.DataFrame(self.moved, columns=["traffic", "start_s", "finish_s"]).set_index("traffic").sort_index()
        return Timeline(ends.reset_index(drop=True), chunks, told.reset_index(drop=True))

    def _arrive(self) -> None:
        """Queue the copies, and begin the traffic, that are ready now."""
        while self.coming and self.coming[-1][0] <= self.now:
            ready, is_traffic, i = self.coming.pop()
            if is_traffic:
                work = self.traffic[i]
                self.active.append(_Job(i, 0, work.bytes, 0, "", (f"traffic {i}", work.tier), ready, ready, work.bytes))
                continue
            for chunk, size in enumerate(_sizes(self.copies[i])):
                self._queue(i, chunk, size, 0)

    def _queue(self, i: int, chunk: int, size: float, hop: int) -> None:
        copy = self.copies[i]
        engine = copy.route[hop]
        job = _Job(i, chunk, size, hop, engine, (engine, *self.engines[engine].tiers))
        heapq.heappush(self.waiting[engine], (copy.priority, copy.ready_s, i, chunk, job))

    def _start(self) -> None:
        """Let every engine with a free lane take the next of its chunks."""
        for name, engine in self.engines.items():
            while self.waiting[name] and self.busy[name] < engine.lanes:
                job = heapq.heappop(self.waiting[name])[-1]
                job.start_s, job.moves_s, job.left = self.now, self.now + engine.setup_s, job.size
                self.busy[name] += 1
                self.active.append(job)

    def _advance(self) -> None:
        """Go to the next time at which something begins or ends, and end what ends."""
        moving = [job for job in self.active if job.moves_s <= self.now]
        rates = fair_rates([job.uses for job in moving], self._limits(moving))
        soon = [job.left / rate for job, rate in zip(moving, rates, strict=True)]
        later = [job.moves_s for job in self.active if job.moves_s > self.now] + [c[0] for c in self.coming[-1:]]
        end = min([self.now + s for s in soon] + later)
        step = min(soon, default=math.inf)
        ended = [job for job, s in zip(moving, soon, strict=True)
                 if self.now + step <= end and s <= step * (1 + _TOGETHER)]
        for job, rate in zip(moving, rates, strict=True):
            job.left -= rate * (end - self.now)
        self.now = end
        for job in ended:
            self._end(job)

    def _limits(self, moving: Sequence[_Job]) -> dict[str, float]:
        """Return what engines, by their chunks in flight, tiers and processors can do."""
        limits = dict(self.caps)
        for name in {job.engine for job in moving if job.engine}:
            engine, n = self.engines[name], sum(job.engine == name for job in moving)
            limits[name] = engine.bandwidth * n / (n + engine.half)
        return limits

    def _end(self, job: _Job) -> None:
        self.active.remove(job)
        if not job.engine:
            self.moved.append((job.item, job.start_s, self.now))
            return
        self.busy[job.engine] -= 1
        self.chunks.append((job.item, job.chunk, job.engine, job.start_s, self.now, job.size))
        if job.hop + 1 < len(self.copies[job.item].route):
            self._queue(job.item, job.chunk, job.size, job.hop + 1)


def fair_rates(uses: Sequence[tuple[str, ...]], limits: Mapping[str, float]) -> list[float]:
    """Return the max-min fair rate of each flow: *uses*, what it passes; *limits*, bytes/s of that (none: unbounded).

    The one that leaves least for each of its flows decides these; then the same with what is left (progressive filling,
    Bertsekas and Gallager, Data Networks, 6.5.2).
    """
    rates = [math.inf] * len(uses)
    left = {name: limits[name] for flow in uses for name in flow if limits.get(name, math.inf) < math.inf}
    flows = {name: [i for i, flow in enumerate(uses) if name in flow] for name in left}
    while left:
        name = min(left, key=lambda n: left[n] / len(flows[n]))
        share = left[name] / len(flows[name])
        for i in list(flows[name]):
            rates[i] = share
            for other in {n for n in uses[i] if n in left}:
                left[other] = max(left[other] - share, 0.0)
                flows[other].remove(i)
        left = {n: value for n, value in left.items() if flows[n]}
    return rates


def _sizes(copy: Copy) -> list[float]:
    """Return the bytes of the chunks of *copy*; the last is what is left."""
    whole = math.floor(copy.bytes / copy.chunk_bytes)
    rest = copy.bytes - whole * copy.chunk_bytes if whole else copy.bytes
    return [copy.chunk_bytes] * whole + ([rest] if rest > _ROUNDING * copy.bytes else [])


def _check(copies: Iterable[Copy], engines: Mapping[str, Engine], rooms: Mapping[str, float],
           traffic: Iterable[Traffic]) -> None:
    numbers = [(f"engines[{name!r}].{field}", getattr(engine, field), least) for name, engine in engines.items()
               for field, least in (("bandwidth", 0), ("lanes", 0), ("half", -1), ("setup_s", -1))]
    numbers += [(f"bandwidth[{name!r}]", value, 0) for name, value in rooms.items()]
    numbers += [(f"copies[{i}].{field}", getattr(copy, field), least) for i, copy in enumerate(copies)
                for field, least in (("bytes", 0), ("chunk_bytes", 0), ("ready_s", -1))]
    numbers += [(f"traffic[{i}].{field}", getattr(work, field), least) for i, work in enumerate(traffic)
                for field, least in (("bytes", 0), ("bandwidth", 0), ("ready_s", -1))]
    for where, value, least in numbers:
        endless = where.endswith(("chunk_bytes", "bandwidth"))  # no chunks, no bound of its own
        if not (value > 0 if least == 0 else value >= 0) or not (endless or value < math.inf):
            raise CacheError(f"{where} is {value!r}; give a number {'above 0' if least == 0 else 'from 0'}")
    for i, copy in enumerate(copies):
        if copy.bytes / copy.chunk_bytes > _MANY:
            raise CacheError(f"copies[{i}].chunk_bytes is {copy.chunk_bytes:g}, so its {copy.bytes:g} bytes are more "
                             f"than {_MANY} chunks; give larger chunks")
        if not copy.route:
            raise CacheError(f"copies[{i}].route is empty; name the engines that it goes over")
        for name in copy.route:
            if name not in engines:
                raise CacheError(f"copies[{i}].route: no engine {name!r}{suggest(name, engines)}")
    for i, work in enumerate(traffic):
        if work.bandwidth == math.inf and work.tier not in rooms:
            raise CacheError(f"traffic[{i}] has no bound: tier {work.tier!r} has no bandwidth"
                             f"{suggest(work.tier, rooms)}; give its bandwidth, or one to the traffic")
    for name, engine in engines.items():
        if engine.bandwidth == math.inf and not set(engine.tiers) & set(rooms):
            raise CacheError(f"engines[{name!r}].bandwidth is inf and so is that of its tiers; give one of them")
