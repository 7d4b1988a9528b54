"""sweep: one scenario, axes and metrics -> one tidy table, a row per point, whatever ran them and in which order."""

from __future__ import annotations

import functools
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import pandas as pd

from moesim.explore import processes
from moesim.explore.grid import Axes, Point, columns, grid, overrides
from moesim.explore.job import Job, Keys, Outcome, run
from moesim.explore.journal import Journal
from moesim.explore.metric_names import Metric, Wanted, wanted
from moesim.registry import expect
from moesim.scenario import Scenario, override

Progress = Callable[[int, int], None]  # points done, points in all


def sweep(scenario: Scenario, axes: Axes, metrics: Iterable[str | Metric] | Mapping[str, str | Metric],
          executor: Executor | int | None = None, *, out: str | Path | None = None,
          progress: Progress | None = None) -> pd.DataFrame:
    """Simulate *scenario* at every point of *axes*; return one row per point, in the order of the points.

    axes      dotted path -> values (all combinations, the last fastest), or a list of points {path: value}
    metrics   names (``explore.metric_names()``) and functions of a Result, or a mapping of column -> either
    executor  where points run: any ``concurrent.futures.Executor``, a number of processes, or None: one per CPU
    out       folder that keeps each finished point at once (``points/``) and the table (``table.parquet``); a sweep
              that was killed goes on where it was. A point is known by its resolved scenario, the files it reads,
              the metrics, the program and its packages: if one of these changes, the point runs again
    progress  called with (points done, points in all)

    Columns: the axes, the metrics (NaN where a point failed), ``warnings`` of the result, and ``error`` (None, or type
    and message): a point that fails, or cannot be built, is a row like others. The table does not depend on *executor*.
    Raises ``ValueError`` if axes or metrics are wrong.
    """
    expect(scenario, Scenario, "scenario", "give what moesim.load(path) returns")
    points, named = grid(axes), wanted(metrics)
    shown = _shown(points, named)
    keys = Keys(named if out is not None else {})
    jobs = [_job(scenario, point, keys) for point in points]
    outcomes: dict[str, Outcome] = {}
    journal = Journal(out, named) if out is not None else None
    if journal:
        outcomes |= journal.read({job.key for job in jobs if isinstance(job, Job)})
    count = _Count(jobs, outcomes, progress)
    for job, outcome in _run(_missing(jobs, outcomes), named, executor):
        outcomes[job.key] = outcome
        if journal and outcome.lasting:
            journal.add(job.key, _rows(shown.iloc[[jobs.index(job)]], named, [outcome]))
        count.one_more(job)
    table = _rows(shown, named, [job if isinstance(job, Outcome) else outcomes[job.key] for job in jobs])
    if journal:
        journal.finish(table)
    return table


def _shown(points: Sequence[Point], named: Wanted) -> pd.DataFrame:
    shown = columns(points)
    twice = [name for name in (*named, "warnings", "error") if name in shown]
    if twice or {"warnings", "error"} & set(named):
        name = (twice or sorted({"warnings", "error"} & set(named)))[0]
        raise ValueError(f"two columns would be called {name!r}; give the metric another name: a mapping of "
                         f"column -> metric")
    return shown


def _job(scenario: Scenario, point: Point, keys: Keys) -> Job | Outcome:
    """Return the job of *point*, or why its scenario cannot be built."""
    try:
        return keys.job(override(scenario, overrides(point)))
    except ValueError as error:
        return Outcome.failed(error)


def _missing(jobs: Sequence[Job | Outcome], outcomes: Mapping[str, Outcome]) -> list[Job]:
    """Return the jobs that are not in *outcomes*, each once."""
    return list({job.key: job for job in jobs if isinstance(job, Job) and job.key not in outcomes}.values())


def _run(jobs: Sequence[Job], named: Wanted, executor: Executor | int | None) -> Iterator[tuple[Job, Outcome]]:
    """Yield *jobs* with their outcomes as they finish."""
    function = functools.partial(run, named)
    if isinstance(executor, Executor):
        yield from processes.in_executor(function, jobs, executor)
        return
    _check_sendable(named)
    for job, outcome in processes.in_processes(function, jobs, executor or processes.cpu_count()):
        yield job, outcome if isinstance(outcome, Outcome) else Outcome.failed(outcome)


def _check_sendable(named: Wanted) -> None:
    for name, metric in named.items():
        try:
            pickle.dumps(metric)
        except (pickle.PicklingError, AttributeError, TypeError):
            raise ValueError(f"metric {name!r}: {metric!r} cannot be sent to another process; define it with `def` at "
                             f"the top of a module, or pass a ThreadPoolExecutor as executor") from None


def _rows(shown: pd.DataFrame, named: Wanted, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Return the points *shown* with their outcomes."""
    table = shown.copy()
    for name in named:
        table[name] = [outcome.numbers.get(name, float("nan")) for outcome in outcomes]
    for name in ("warnings", "error"):
        table[name] = pd.Series([getattr(o, name) for o in outcomes], index=table.index, dtype=object)
    return table


class _Count:
    """Tell *progress* how many points are done; equal points are done together."""

    def __init__(self, jobs: Sequence[Job | Outcome], outcomes: Mapping[str, Outcome], progress: Progress | None):
        self._points = Counter(job.key for job in jobs if isinstance(job, Job))
        self._total, self._progress = len(jobs), progress
        self._done = len(jobs) - sum(n for key, n in self._points.items() if key not in outcomes)
        self._tell()

    def one_more(self, job: Job) -> None:
        """Count the points that *job* answers."""
        self._done += self._points[job.key]
        self._tell()

    def _tell(self) -> None:
        if self._progress:
            self._progress(self._done, self._total)
