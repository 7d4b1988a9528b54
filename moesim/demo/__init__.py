"""The demo: where should the experts of a model go on two 8-GPU nodes behind a leaf-spine network?

Everything is computed when it is asked: solvers that see one half of a captured routing trace place the experts, every
placement is simulated on the other half under both meanings of expert parallelism, and report, tables and figures are
made from what came out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

import moesim
from moesim import config
from moesim.demo import figures, points, report
from moesim.demo.answer import recommendation
from moesim.demo.report import BRIEF, QUESTION, shown

__all__ = ["BRIEF", "QUESTION", "SCENARIO", "recommendation", "run", "shown"]

SCENARIO = "studies/01_placement/scenario.yaml"


def run(out: str | Path = "out/demo", overrides: Iterable[str] = (), solvers: Mapping[str, points.Solver] | None = None,
        processes: Executor | int | None = None) -> pd.DataFrame:
    """Answer the question; write report, figures, tables and timeline to the folder *out*; return the table.

    One row per placement and mode: times in s, bytes per link class; ``cross_*``, ``fanout`` and ``load_max_over_mean``
    on requests that solvers did not see, with ``_profile`` on those that they saw; ``shown`` makes text of it.
    *overrides* change the scenario (``"requests.count=64"``). *solvers* (name -> solver, as in a scenario) replace
    those of ``points.SOLVERS``; ``linear`` and ``affinity``, which others are compared with, must be among them.
    *processes* is a number (default: one per CPU) or what runs the points (see ``moesim.sweep``).
    Raises ``ValueError``.
    """
    out, solvers = Path(out), points.SOLVERS if solvers is None else solvers
    missing = {points.BASELINE, points.AFFINITY} - set(solvers)
    if missing:
        raise ValueError(f"solvers has no {' and no '.join(sorted(missing))}, which the answer compares with; add it")
    scenario = moesim.load(config.find_file(SCENARIO, Path.cwd()), overrides)
    for folder in ("figures", "placements", "results", "tables"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    with open(out / "scenario.yaml", "w", encoding="utf-8") as file:
        YAML().dump(scenario.dump(), file)
    trace = points.read(scenario)
    placements = points.place(scenario, trace, solvers, out)
    found = points.simulate(scenario, placements, trace, out, processes)
    results = points.keep(scenario, found.table, out)
    content = figures.tables(placements, trace.evaluation, found, results)
    for name, table in content.items():
        table.to_parquet(out / "tables" / f"{name}.parquet", index=False)
    report.write(out, scenario, found, results, figures.draw(content, out / "figures"))
    return found.table
