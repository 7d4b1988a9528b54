"""Commands that simulate: demo, run, sweep."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.output import message, print_json, print_pairs, print_rows, progress, waiting

Overrides = Annotated[list[str] | None, typer.Option(
    "--set", metavar="PATH=VALUE", help="Set a field of the scenario, e.g. scheduler.max_batch=64. Repeat for more.")]


def demo(out: Annotated[Path, typer.Option(help="Folder for report, figures and tables.")] = Path("out/demo")) -> None:
    """Answer where experts should go on two 8-GPU nodes, from the trace that ships."""
    from moesim import demo as library

    with waiting("simulating"):
        table = library.run(out)
    print(library.QUESTION)
    for mode, rows in table.groupby("mode", sort=False):
        shown = library.shown(rows, library.BRIEF).drop(columns="mode")
        print(f"\n{mode}")
        print_rows(list(map(str, shown.columns)), shown.to_numpy(object).tolist())
    print(f"\n{library.recommendation(table)}")
    message(f"report, figures and tables: {out}")


def run(scenario: Annotated[Path, typer.Argument(help="Scenario file.")], overrides: Overrides = None,
        out: Annotated[Path | None, typer.Option(help="Folder for tables and timeline.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Simulate one scenario and print what came out."""
    import moesim
    from moesim.result import check_folder

    checked = moesim.load(scenario, overrides or ())
    if out:
        check_folder(out)
    with waiting(f"simulating {checked.name}"):
        result = moesim.simulate(checked)
    if out:
        result.save(out)
        message(f"tables and timeline: {out}")
    for warning in result.meta["warnings"]:
        message(f"note: {warning}")
    (print_json if as_json else print_pairs)(moesim.explore.measure(result))


def sweep(file: Annotated[Path, typer.Argument(help="Sweep file: scenario, axes, metrics, seeds.")],
          overrides: Overrides = None,
          out: Annotated[Path | None, typer.Option(help="Folder of the table; a sweep that was stopped goes on there. "
                                                        "(default: that of the file, or out/<its name>)")] = None,
          workers: Annotated[int | None, typer.Option(min=1, help="Processes. (default: one per CPU)")] = None) -> None:
    """Simulate every point of a sweep file and print the table."""
    from moesim import explore

    spec = explore.load_sweep(file)
    folder = out or Path(spec.out or f"out/{file.stem}")
    try:
        with progress("points") as moved:
            table = spec.run(overrides or (), executor=workers, out=folder, progress=moved)
    except KeyboardInterrupt:
        message(f"stopped; what is finished is in {folder}: run the same command to go on")
        raise typer.Exit(130) from None
    failed = table["error"].notna()
    shown = table.drop(columns=["warnings"] if failed.any() else ["warnings", "error"])
    print_rows(list(shown.columns), shown.to_numpy(object).tolist())
    for note in _notes(table["warnings"]):
        message(f"note: {note}")
    if failed.any():
        message(f"{failed.sum()} of {len(table)} points failed (column error)")
    message(f"table: {folder / 'table.parquet'}")
    if failed.all():
        raise typer.Exit(2)


def _notes(warnings: Iterable[str | None]) -> list[str]:
    """Return what results warn of, once where only numbers differ."""
    found = [note for text in warnings if text for note in text.split("; ")]
    return list({re.sub(r"[\d.]+", "", note): note for note in reversed(found)}.values())[::-1]
