"""The demo: where should the experts of a model go on two 8-GPU nodes behind a leaf-spine network?

Everything is computed when it is asked: experts are placed by solvers that see one half of a captured routing trace,
every placement is simulated on the other half under both meanings of expert parallelism, and report, tables and figures
are made from what came out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

import moesim
from moesim import config
from moesim.demo import figures, points, report
from moesim.demo.report import shown

__all__ = ["SCENARIO", "run", "shown"]

SCENARIO = "studies/01_placement/scenario.yaml"


def run(out: str | Path = "out/demo", overrides: Iterable[str] = (), processes: int | None = None) -> pd.DataFrame:
    """Answer the question; write report, figures, tables and timeline to the folder *out*; return the table.

    The table has one row per placement and mode: times in s, bytes per link class, ``cross_*`` and ``fanout`` on the
    requests that the simulation runs, and with ``_profile`` on those that the solvers saw. *overrides* change the
    scenario (``"requests.count=64"``); *processes* defaults to one per CPU. Raises ``ConfigError`` on a wrong override.
    """
    out = Path(out)
    for folder in ("figures", "placements", "results", "tables"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    scenario = moesim.load(config.find_file(SCENARIO, Path.cwd()), overrides)
    trace = points.read(scenario)
    placements = points.place(scenario, trace)
    for name, placement in placements.items():
        placement.save(points.file(out, name))
    table, phases = points.simulate(scenario, placements, trace, out, processes)
    results = points.keep(scenario, table, out)
    drawn = figures.draw(out, placements, trace.evaluation, table, phases, results)
    report.write(out, scenario, table, phases, results, drawn)
    return table
