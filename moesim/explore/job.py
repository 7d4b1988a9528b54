"""One point of a sweep as a job: the resolved scenario, a key that identifies its answer, and how to run it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import pickle
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moesim import config
from moesim.config import Spec
from moesim.explore.metric_names import Wanted, measure
from moesim.scenario import Scenario
from moesim.sim.engine import Engine
from moesim.sim.inputs import prepare

# What a number of a result may depend on, besides the scenario and the program.
_PACKAGES = ("numpy", "pandas", "scipy", "numba", "simpy", "networkx", "pulp", "highspy")


@dataclasses.dataclass(frozen=True)
class Job:
    """A scenario as plain data, and the key of its answer."""

    key: str
    scenario: dict[str, Any] = dataclasses.field(repr=False, compare=False, hash=False)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a point: its numbers and the result's warnings, or the error.

    ``lasting``: running it again would give the same, so the outcome may be kept.
    """

    numbers: dict[str, float]
    warnings: str = ""
    error: str | None = None
    lasting: bool = True

    @classmethod
    def failed(cls, error: BaseException) -> Outcome:
        """Return the outcome of a point that ended in *error*; wrong input is wrong again, other failures may pass."""
        return cls({}, error=f"{type(error).__name__}: {error}", lasting=isinstance(error, ValueError))


def run(columns: Wanted, job: Job) -> Outcome:
    """Simulate *job* and return the numbers of *columns*."""
    try:
        inputs = prepare(config.build(Scenario, config.Document(job.scenario)))
        result = Engine(inputs).run()
        return Outcome(measure(result, columns, inputs), "; ".join(result.meta["warnings"]))
    except Exception as error:  # whatever it is, it becomes a row of the table, and the other points go on
        return Outcome.failed(error)


class Keys:
    """Give a job its key: equal for equal scenarios, files, metrics and versions, different otherwise."""

    def __init__(self, columns: Wanted):
        self._files: dict[Path, str] = {}
        self._common = {"metrics": {name: _source(metric) for name, metric in columns.items()},
                        "program": program(), "python": platform.python_version(),
                        "packages": {name: version(name) for name in _PACKAGES}}

    def job(self, scenario: Scenario) -> Job:
        """Return the job of the resolved *scenario*."""
        dump = scenario.dump()
        files = {str(path): self._file(path) for path in sorted(set(_paths(scenario)))}
        text = json.dumps(self._common | {"scenario": dump, "files": files}, sort_keys=True)
        return Job(hashlib.sha256(text.encode()).hexdigest()[:24], dump)

    def _file(self, path: Path) -> str:
        if path not in self._files:
            with open(path, "rb") as file:
                self._files[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._files[path]


def program() -> str:
    """Return a digest of moesim's own code and of the fitted kernels that it reads by name."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for root, pattern in ((package, "*.py"), *((root / "hw_configs/kernels", "*") for root in config.library_roots())):
        for path in sorted(root.rglob(pattern)):
            if path.is_file():
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _paths(value: Any) -> Iterator[Path]:
    """Yield the files that a scenario, or anything in it, names."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Spec) or dataclasses.is_dataclass(value):
        for inner in vars(value).values():
            yield from _paths(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _paths(inner)


def _source(metric: Any) -> str:
    """Return text that changes when *metric* does. Raises ``ValueError`` if there is none."""
    if isinstance(metric, str):
        return metric
    if isinstance(metric, functools.partial):
        return f"{_source(metric.func)} with {metric.args!r} {metric.keywords!r}"
    try:
        return inspect.getsource(metric)
    except (OSError, TypeError):
        pass  # not written in a file (or not a function): its pickle says which function with which arguments
    try:
        return hashlib.sha256(pickle.dumps(metric, protocol=5)).hexdigest()
    except (pickle.PicklingError, AttributeError, TypeError):
        raise ValueError(f"metric {metric!r} cannot be told from others, so its points cannot be kept in a folder; "
                         f"define it as a function in a file") from None
