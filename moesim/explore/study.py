"""A sweep as a file: base scenario, axes, metrics, seeds.

.. code-block:: yaml

    scenario: scenario.yaml                    # beside this file, or a path
    axes: {placement.solver: [linear, lpt], parallelism.mode: [dispatch_combine, context_coherent]}
    seeds: 3                                   # 0, 1, 2; or a list
    metrics: [throughput_tok_per_s, tpot_p50_s, load_max_over_mean, bytes_scale_up_out]
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, Field, model_validator

from moesim import config, scenario
from moesim.config import DataPath, Spec
from moesim.explore.grid import Point, grid
from moesim.explore.grid import overrides as overrides_of
from moesim.explore.metric_names import wanted
from moesim.explore.sweeping import sweep


def _axes(value: Any) -> Any:
    grid(value)
    return value


def _metric(name: str) -> str:
    return next(iter(wanted([name])))


class SweepSpec(Spec):
    """What a sweep file holds; see the module. ``axes`` may also be a list of points {path: value}."""

    scenario: DataPath
    axes: Annotated[Any, AfterValidator(_axes)] = Field(default_factory=dict)
    seeds: Annotated[int, Field(ge=1)] | Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    metrics: tuple[Annotated[str, AfterValidator(_metric)], ...] = Field(min_length=1)
    out: str | None = None

    @model_validator(mode="after")
    def _check(self) -> SweepSpec:
        wanted(self.metrics)
        if self.seeds is not None and "seed" in grid(self.axes)[0]:
            raise config.facts_error("SweepSpec", [("seeds", "there is an axis seed too; keep one of them")])
        return self

    def points(self) -> list[Point]:
        """Return the points of the axes, each with every seed."""
        points = grid(self.axes)
        if self.seeds is None:
            return points
        seeds = range(self.seeds) if isinstance(self.seeds, int) else self.seeds
        return [point | {"seed": seed} for point in points for seed in seeds]

    def check(self) -> None:
        """Raise ``ValueError`` if the base scenario, or that of a point, cannot be built; a run shows such points."""
        base = scenario.load(self.scenario)
        for number, point in enumerate(self.points()):
            try:
                scenario.override(base, overrides_of(point))
            except ValueError as error:
                raise self.error("axes", f"point {number}: {error}") from None

    def run(self, overrides: Iterable[str] = (), **options: Any) -> pd.DataFrame:
        """Return the table of the sweep, *overrides* applied to its base scenario; *options* are those of ``sweep``.

        Raises ``ConfigError`` if the base scenario is wrong.
        """
        return sweep(scenario.load(self.scenario, overrides), self.points(), self.metrics,
                     **({"out": self.out} | options))


def load_sweep(path: str | Path) -> SweepSpec:
    """Return the sweep in the YAML file *path*. Raises ``ConfigError`` with every mistake found."""
    return config.load(SweepSpec, path)
