"""Measure points one after the other, in random order, within a budget; every row is on disk before the next begins."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moesim import registry, whole
from moesim.measure import timing
from moesim.measure.energy import sensors
from moesim.measure.environment import describe, details
from moesim.measure.journal import Journal
from moesim.measure.plan import TURNS, Item, Plan, plan
from moesim.measure.point import Timing, Unavailable, Work
from moesim.measure.target import Target

ENVIRONMENT = "environment.json"
LOSSES = 2  # of the device by one implementation of one operator: its other points are left out
SAME = ("device", "kind", "dtype", "threads")  # a folder holds one machine: these must agree to go on in it


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure: names of blocks (none: all), seconds in all, seed of the order, replays of each point.

    A budget may be spent in several calls, each of which goes on where the one before was stopped: ``spent_s`` of it
    are gone, and after ``stop_s`` more seconds this call ends, sentinels of the end or not. ``keys`` (none: all) are
    the points to measure, by ``Point.key``.
    """

    blocks: tuple[str, ...] = ()
    budget_s: float = float("inf")
    seed: int = 0
    effort: timing.Effort | None = None  # timing.NORMAL of the device
    spent_s: float = 0.0
    stop_s: float = float("inf")
    keys: frozenset[str] | None = None


class DeviceLost(ValueError):
    """A device that does not answer any more: the process has to begin anew."""


class Bench:
    """What blocks make their work with: the machine, and random buffers on it."""

    def __init__(self, target: Target, seed: int = 0):
        from moesim.measure.pool import Pool

        self.target = target
        self.pool = Pool(target.kind, target.torch_dtype, seed)
        self.kept: dict[str, Any] = {}  # what a block built for one point and may need for the next

    @cached_property
    def elsewhere(self) -> Callable[[], Any] | None:
        """What runs before a short call on a CPU: reading as much as the last cache holds.

        A call that follows itself finds its code and all that it reads in the caches next to the core. In a step the
        weights of a layer have been there since, and the same call takes up to five times as long (norms of few rows).
        """
        if self.target.kind != "cpu":
            return None
        import torch

        return torch.ones(int(self.target.ring_bytes / 2 / self.target.value_bytes), dtype=self.target.torch_dtype).sum


def planned(target: Target, options: Options = Options()) -> Plan:
    """Return what ``measure`` would run. Raises ``UnknownPart`` for a block that is not there."""
    names = options.blocks or registry.names("bench")
    points: dict[str, list[Item]] = {}
    effort = options.effort or timing.NORMAL[target.kind]
    seen: set[str] = set()  # two blocks, or two draws, may come to the same shape: the first has it
    for name in names:
        points[name] = []
        for point in registry.make("bench", name).points(target):
            point = dataclasses.replace(point, dtype=point.dtype or target.dtype)
            if point.shape_key not in seen and (options.keys is None or point.key in options.keys):
                seen.add(point.shape_key)
                cost = point.whole_s or timing.cost_s(target.kind, target.guess_s(point), effort)
                points[name].append(Item(name, point, cost))
    return plan(points, options.budget_s, options.seed, effort.rounds)


def measure(target: Target, folder: Path, options: Options = Options(),
            progress: Callable[[int, int], None] = lambda done, total: None,
            between: Callable[[], None] = lambda: None) -> Journal:
    """Measure into *folder* and return its journal; what is there already is not measured again.

    *between* is called at the start, after every round of all points, and so at the end. Its time is not of the budget.
    *progress* hears how many turns are done, and of how many; all of them unless ``stop_s`` came first.
    Raises ``ValueError`` if the folder holds another machine's rows, ``UnknownPart`` for an unknown block.
    """
    todo = planned(target, options)
    journal, now = Journal(folder), describe(target)
    now["gpu_details"] = _check_same(folder, now).get("gpu_details") or (details() if target.kind == "cuda" else [])
    whole.file(folder / ENVIRONMENT, (json.dumps(now, indent=1) + "\n").encode())
    run, stop = _Run(target, journal, options), time.monotonic() + options.stop_s
    turns = _turns(todo)
    sentinels = [(place, item) for place, (item, turn, _) in enumerate(turns) if turn >= 0]
    for done, (item, turn, number) in enumerate(turns):
        progress(done, len(turns))
        if time.monotonic() >= stop:
            return journal
        if number != (turns[done - 1][2] if done else -1):
            run.pause(between)
        if not journal.has(item.point.key, turn, number):
            run.one(item, (turn, number), keep=run.cost_s([i for place, i in sentinels if place > done]))
    progress(len(turns), len(turns))
    run.pause(between)
    return journal


def _turns(todo: Plan) -> list[tuple[Item, int, int]]:
    """Return all points with the sentinels between them, each with its turn (-1: no sentinel) and its round."""
    all_rounds = [(item, -1, number) for number in range(todo.rounds) for item in todo.items]
    found: list[tuple[Item, int, int]] = []
    for turn, part in enumerate(np.array_split(np.arange(len(all_rounds)), TURNS - 1)):
        found += [(item, turn, 0) for item in todo.sentinels]
        found += [all_rounds[i] for i in part]
    return found + [(item, TURNS - 1, 0) for item in todo.sentinels]


def _check_same(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Return what *folder* says of its machine, {} if nothing. Raises ``ValueError`` if that is not this one."""
    file = folder / ENVIRONMENT
    if not file.exists():
        return {}
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for name in SAME:
        if before.get(name) != now[name]:
            raise ValueError(f"{folder}: holds measurements with {name} {before.get(name)!r}, and this is "
                             f"{now[name]!r}; measure into another folder")
    return before


class _Run:
    """One run: what is left of the budget, and how wrong the estimates of each block are."""

    def __init__(self, target: Target, journal: Journal, options: Options):
        self._target, self._journal, self._options = target, journal, options
        self._bench = Bench(target, options.seed)
        self._effort = options.effort or timing.NORMAL[target.kind]
        self._end = time.monotonic() + options.budget_s - options.spent_s
        self._factor: dict[str, float] = {}  # time taken over estimate, of each block
        self._parts: dict[str, Any] = {}
        self._group = ""
        self._lost = Counter((row["op"], row["impl"]) for row in journal.rows if row.get("x_lost"))
        self._sensors = sensors(target.kind)
        stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
        self._source = f"moesim measure, {target.name}, {stamp}"

    def cost_s(self, items: list[Item]) -> float:
        """Return about how long measuring *items* takes, by what their blocks took so far."""
        return sum(item.cost_s * self._factor.get(item.block, 1.0) for item in items)

    def pause(self, between: Callable[[], None]) -> None:
        """Call *between*, with the memory of all buffers free, on time that is not of the budget."""
        self._bench.kept.clear()
        self._bench.pool.clear()
        began = time.monotonic()
        between()
        self._end += time.monotonic() - began

    def one(self, item: Item, turn: tuple[int, int], keep: float = 0.0) -> None:
        """Measure *item* in this turn of the sentinels and this round, and write its row.

        Leave it out if the budget is too short for it and *keep* more seconds. Raises ``DeviceLost``, after the row, if
        the device does not answer any more.
        """
        if time.monotonic() + self.cost_s([item]) + keep > self._end:
            return
        first = item.point.group != self._group
        if first:  # what a group shares takes memory that others need, and seconds to build that are not the point's
            self._bench.kept.clear()
            self._group = item.point.group
        began = time.monotonic()
        columns = self._outcome(item)
        took = time.monotonic() - began
        lost = columns.get("status") == "error" and not _answers(self._target.kind)
        before = self._factor.get(item.block, 1.0)
        if not (first and item.point.group):
            self._factor[item.block] = before + 0.3 * (min(took / item.cost_s, 10.0) - before)
        columns = {**columns, "x_estimate_s": item.cost_s, "x_took_s": round(took, 4)}
        columns |= {"x_lost": True} if lost else {}
        self._journal.add(self._row(item, turn) | columns)
        if lost:
            raise DeviceLost(f"the device does not answer after {item.point.op}, {item.point.impl}; its row says "
                             f"error: run the same command to go on with the others")

    def _outcome(self, item: Item) -> dict[str, Any]:
        """Return the columns that measuring gives: times, or why there are none."""
        import torch

        if self._lost[item.point.op, item.point.impl] >= LOSSES:
            return {"status": "error", "x_error": f"skipped: {item.point.impl} lost the device {LOSSES} times before"}
        try:
            part = self._parts.setdefault(item.block, registry.make("bench", item.block))
            with torch.inference_mode():
                work: Work = part.work(item.point, self._bench)
                return _times(timing.measure(self._target.kind, work, self._effort)) | self._sensors()
        except Unavailable as reason:
            return {"status": "error", "x_error": f"skipped: {reason}"}
        except Exception as error:  # whatever a kernel raises: the row says so, the others go on
            full = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
            text = f"{type(error).__name__}: {error}"[:300]
        if full:
            self._bench = Bench(self._target, self._options.seed)  # gives all buffers back
            if self._target.kind == "cuda":
                torch.cuda.empty_cache()
        return {"status": "oom" if full else "error", "x_error": text}

    def _row(self, item: Item, turn: tuple[int, int]) -> dict[str, Any]:
        point = item.point
        return {"op": point.op, **point.shapes, "dtype": point.dtype, "impl": point.impl, "cold": point.cold,
                "routing": point.routing, "device": self._target.name, "source": self._source, "split": "",
                "sentinel": turn[0] >= 0, "status": "ok", "x_block": item.block, "x_key": point.key, "x_turn": turn[0],
                "x_round": turn[1],
                **{f"x_{name}": value for name, value in point.extra.items()}}


def _times(found: Timing) -> dict[str, Any]:
    samples = np.asarray(found.samples_s)
    median, low, high = np.percentile(samples, [50, 10, 90])
    return {"time_s": float(median), "time_p10_s": float(low), "time_p90_s": float(high),
            "x_time_min_s": float(samples.min()), **{f"x_{name}": value for name, value in found.extra.items()}}


def _answers(kind: str) -> bool:
    """Tell whether the device still answers: after some errors of CUDA every further call fails."""
    import torch

    if kind == "cpu":
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def drift(journal: Journal) -> dict[str, float]:
    """Return how times of the points that were measured again changed, in percent.

    ``median``: signed, over these points, the last time against the first. ``worst``: the largest change of one of them
    between any two times. ``noise``: median difference between the fastest of the first, third, ... time and the
    fastest of the others: what a model cannot beat. ``points``: how many were compared.
    """
    times: dict[tuple[str, bool], dict[tuple[int, int], float]] = {}
    for row in journal.rows:
        if row["status"] == "ok":
            place = row["x_turn"], row["x_round"]
            times.setdefault((row["x_key"], row["sentinel"]), {})[place] = row["time_s"]
    several = [[turns[place] for place in sorted(turns)] for turns in times.values() if len(turns) > 1]
    if not several:
        return {"median": 0.0, "worst": 0.0, "noise": 0.0, "points": 0}
    return {"median": 100 * float(np.median([t[-1] / t[0] - 1 for t in several])),
            "worst": 100 * max(max(t) / min(t) - 1 for t in several),
            "noise": 100 * float(np.median([abs(min(t[::2]) / min(t[1::2]) - 1) for t in several])),
            "points": len(several)}
