"""Command that fits kernel models to measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.output import message, print_rows, waiting

_FIGURES = ("kernel_prediction", "kernel_utilisation", "kernel_error")


def calibrate(measurements: Annotated[list[Path], typer.Argument(help="Tables of measured kernels, or profile folders "
                                                                      "of other tools.")],
              hardware: Annotated[str, typer.Option(help="Device that was measured: a name in hw_configs/devices, or a "
                                                         "file.")],
              out: Annotated[Path, typer.Option(help="YAML file for the kernels; tables go beside it.")],
              model: Annotated[str, typer.Option(help="Name, or {name: residual, bound: 0.5}.")] = "residual",
              form: Annotated[str | None, typer.Option("--format", help="Format: `moesim list measurement_format`. "
                                                                        "(default: found)")] = None,
              again: Annotated[list[Path] | None, typer.Option(help="A second collection of the same shapes: its "
                                                                    "differences are the noise floor.")] = None,
              impl: Annotated[list[str] | None, typer.Option(help="Use rows of this kernel where an operator has "
                                                                  "several; repeat for more.")] = None,
              cold: Annotated[bool | None, typer.Option("--cold/--warm", help="Use rows measured with cold, or warm, "
                                                                             "caches only.")] = None,
              dtype: Annotated[str | None, typer.Option(help="Use rows of this data type. (default: the only one)")
                               ] = None,
              source: Annotated[str, typer.Option(help="Where the measurements are from; kept in the file.")] = "",
              figures: Annotated[Path | None, typer.Option(help="Folder for figures. (default: beside OUT)")] = None,
              reserve: Annotated[bool, typer.Option("--reserve", help="Judge on the reserve (15 %) too: a last look.")
                                 ] = False,
              seed: Annotated[int, typer.Option(min=0)] = 0) -> None:
    """Fit kernel models to measurements; print their error on shapes that were not fitted, and draw it."""
    from moesim.cli.values import yaml_value
    from moesim.kernels import fitting, library

    out = out if out.suffix == ".yaml" else out.with_name(f"{out.name}.yaml")
    kind = yaml_value("--format", form) if form else None
    table, second = _read(measurements, kind), _read(again, kind) if again else None
    table = table.only(impl or (), cold)
    with waiting("fitting"):
        kernels = fitting.fit(table, hardware, yaml_value("--model", model), seed, dtype)
    if second is not None:
        kernels.info["noise"] = fitting.noise(table, second)
    if reserve:
        kernels.info["accuracy"] = fitting.judge(kernels, table, ("test", "reserve"))
    for file in library.save(kernels, out, source):
        message(f"kernels: {file}")
    _print(kernels)
    _draw(fitting.compared(kernels, table), figures or out.with_name(f"{out.stem}-figures"))


def _read(paths: list[Path], form: Any) -> Any:
    from moesim.kernels import measurements

    return measurements.joined([measurements.read(path, form) for path in paths])


def _print(kernels: Any) -> None:
    """Print the held-out error of each operator beside its training error and the noise floor, all in percent."""
    rows: list[list[Any]] = []
    for op, found in kernels.info["accuracy"].items():
        training, noise = kernels.info["training"].get(op), kernels.info["noise"].get(op)
        rows.append([op, found.median, found.mean, found.p90, found.bias, found.rows,
                     training.median if training else None,
                     f"{noise.median:g} / {noise.mean:g} / {noise.p90:g}" if noise else "not measured"])
    print_rows(["operator", "median %", "mean %", "p90 %", "bias %", "rows", "fitted rows: median %",
                "noise floor: median / mean / p90 %"], rows)


def _draw(table: Any, folder: Path) -> None:
    from moesim import plots

    folder.mkdir(parents=True, exist_ok=True)
    for name in _FIGURES:
        axes = plots.draw(name, table)
        message(f"figure: {plots.save(axes.figure, folder / f'{name}.png')}")
