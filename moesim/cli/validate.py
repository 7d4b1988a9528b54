"""The command validate: a measured run of an engine, or steps measured here, beside what is simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli import measure
from moesim.cli.output import message, print_pairs, print_rows, waiting
from moesim.cli.simulate import Overrides

_OF_STEPS = ("device", "budget", "model", "dtype", "threads", "seed")


def validate(context: typer.Context,
             run: Annotated[Path | None, typer.Argument(help="Measured run: a vllm folder of LLMServingSim's bench, or "
                                                             "a CSV or Parquet table of requests. (default: none; "
                                                             "steps are measured here)")] = None,
             scenario: Annotated[Path | None, typer.Option(help="Scenario that serves the requests of RUN.")] = None,
             overrides: Overrides = None,
             out: Annotated[Path | None, typer.Option(help="Folder: of the report with RUN, else of the measurements. "
                                                           "(default: none; out/validate/<device>-<dtype>)")] = None,
             device: measure.Device = "cpu",
             budget: Annotated[str, typer.Option(help="Time for measuring operators, e.g. 4min.")] = "4min",
             model: Annotated[str | None, typer.Option(help="Kernel model to fit: name, or {name: ...}. (default: "
                                                            "residual, on a CPU additive)")] = None,
             dtype: measure.Dtype = "", threads: measure.Threads = 0, seed: measure.Seed = 0) -> None:
    """With RUN: simulate its requests in a scenario and print how far both are apart.

    Without: measure operators here, fit them, predict steps of layer stacks that no fit has seen, and measure those.
    --device, --budget, --model, --dtype, --threads and --seed are for this.
    """
    given = [name for name in ("scenario", "overrides", *_OF_STEPS) if _is_given(context, name)]
    if run is None:
        wrong = [name for name in given if name not in _OF_STEPS]
        if wrong:
            raise ValueError(f"--{wrong[0].replace('overrides', 'set')} is for comparing with a measured run; give RUN "
                             "too: moesim validate RUN --scenario FILE")
        measure.validate(device, out, budget, model, dtype, threads, seed)
        return
    wrong = [name for name in given if name in _OF_STEPS]
    if wrong:
        raise ValueError(f"--{wrong[0]} is for steps that are measured here, without RUN; leave it out"
                         + (" (--set seed=N is the scenario's)" if wrong[0] == "seed" else ""))
    if scenario is None:
        raise ValueError(f"{run}: needs a scenario that serves its requests; add --scenario FILE")
    _with_run(run, scenario, overrides or [], out)


def _is_given(context: typer.Context, name: str) -> bool:
    """Say whether the command line has the option *name*."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _with_run(path: Path, scenario: Path, overrides: list[str], out: Path | None) -> None:
    import moesim
    from moesim import runs
    from moesim.runs import report

    if out:
        report.check_folder(out)
    checked = moesim.load(scenario, overrides)
    measured = runs.read(path)
    with waiting(f"simulating {len(measured.requests)} requests"):
        found = runs.validate(measured, checked)
    table, comparison = found.comparison.table().round(3), found.comparison
    print_rows(list(map(str, table.columns)), table.to_numpy(object).tolist())
    print()
    totals = comparison.errors[comparison.errors["statistic"] == "total"].set_index("metric")["error_percent"]
    timeline = comparison.timeline_errors.set_index("quantity")["median_error_percent"]
    print_pairs({"makespan (% off)": float(totals["makespan"]),
                 "throughput (% off)": float(totals["output_tok_per_s"]),
                 "output tokens/s over time (median error, %)": float(timeline["output_tok_per_s"])})
    for note in found.notes:
        message(f"note: {note}")
    message(f"simulated {len(measured.requests)} requests in {found.seconds:.1f} s")
    if out:
        with waiting("drawing"):
            report.save(found, out)
        message(f"report: {out / 'report.html'}")
