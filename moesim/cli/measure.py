"""Measure this machine: its operators (measure), and whether they add up to steps (validate without a run)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.output import message, print_pairs, print_rows, progress, waiting

Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16. (default: fp32 on a CPU, bf16 on a GPU)")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of PyTorch on a CPU. (default: PyTorch's own)")]
Seed = Annotated[int, typer.Option(min=0, help="Of the order and of random buffers.")]
YAML = "device.yaml"
STEADY = 10.0  # percent, of the last times against the first; above, it is worth a note (assumed)


def measure(device: Device = "cpu",
            out: Annotated[Path | None, typer.Option(help="Folder; a run that was stopped goes on there. (default: "
                                                          "out/measure/<device>-<dtype>)")] = None,
            budget: Annotated[str | None, typer.Option(help="Time for all of it, e.g. 9min. (default: every point)")
                              ] = None,
            blocks: Annotated[list[str] | None, typer.Option("--block", help="Block; repeat for more. (default: all of "
                                                                             "moesim list bench)")] = None,
            dtype: Dtype = "", threads: Threads = 0, seed: Seed = 0,
            dry: Annotated[bool, typer.Option("--plan", help="Print blocks and their time only.")] = False) -> None:
    """Measure operators on the CPU or GPU at hand, and describe it as a device; needs PyTorch."""
    from moesim import measure as library

    target = library.find(_kind(device), dtype, threads)
    options = library.Options(tuple(blocks or ()), _seconds(budget), seed)
    plan = library.planned(target, options)
    seconds = plan.seconds()
    rows = [[name, sum(item.block == name for item in plan.items), left, round(seconds.get(name, 0.0), 1)]
            for name, left in plan.left_out.items()]
    rows.append(["sentinels", 3 * len(plan.sentinels), 0, round(seconds.get("sentinels", 0.0), 1)])
    print_rows(["block", "points", "left out", "estimate_s"], rows)
    if dry:
        return
    folder = out or Path(f"out/measure/{target.kind}-{target.dtype}")
    with _stoppable(folder), progress("points") as moved:
        journal = library.measure(target, folder, options, moved)
    _report(library, target, journal, folder)


def validate(device: str, out: Path | None, budget: str, model: str | None, dtype: str, threads: int,
             seed: int) -> None:
    """Measure operators here, fit them, predict steps of layer stacks that no fit has seen, and measure those."""
    from moesim import kernels
    from moesim import measure as library
    from moesim.cli.values import yaml_value
    from moesim.kernels.measurements import checked
    from moesim.measure import validate as steps

    target = library.find(_kind(device), dtype, threads)
    folder = out or Path(f"out/validate/{target.kind}-{target.dtype}")
    options = library.Options(steps.BLOCKS, _seconds(budget), seed)
    measured = steps.Steps(target)
    with _stoppable(folder), progress("operators, and steps between them") as moved:
        journal = library.measure(target, folder, options, moved, measured.measure)
    described = _report(library, target, journal, folder)
    with waiting("fitting"):
        table = checked(steps.to_fit(journal.table(), target.kind), str(folder))
        chosen = steps.MODEL[target.kind] if model is None else yaml_value("--model", model)
        fitted = kernels.fit(table, described, model=chosen, seed=seed)
        found = measured.compare(described, fitted.model)
    print_rows(["operator", "held out: median %", "mean %", "p90 %", "bias %", "shapes"],
               [[op, e.median, e.mean, e.p90, e.bias, e.rows] for op, e in fitted.info["accuracy"].items()])
    print()
    found.to_csv(folder / "steps.csv", index=False)
    print_rows(list(found.columns), [[_short(v) for v in row] for row in found.to_numpy(object).tolist()])
    print()
    print_pairs({f"{name} ({'' if name == 'steps' else '%'})".replace(" ()", ""): value
                 for name, value in steps.errors(found).items()})


def _report(library: Any, target: Any, journal: Any, folder: Path) -> Any:
    """Write tables and the device, say what came out, and return the device (None if too little was measured)."""
    from moesim import whole
    from moesim.measure import ceilings

    for path in journal.export(target.kind):
        message(f"measurements: {path}")
    failed = [row for row in journal.rows if row["status"] != "ok"]
    for reason in sorted({f"{row['op']}, {row['impl']}: {row['status']}: {row['x_error']}" for row in failed}):
        message(f"note: {reason}")
    drift = library.drift(journal)
    if drift["points"]:
        message(f"drift: {drift['points']} points measured again: {drift['median']:+.1f} % (median, last against "
                f"first), {drift['worst']:.1f} % between any two times of one point")
        message(f"noise: {drift['noise']:.1f} % (median over these points, the fastest of every other time against the "
                f"fastest of the rest)")
    if abs(drift["median"]) > STEADY:
        message("note: the machine changed while it was measured: other programs, or other guests of its host")
    load = library.busy()
    if load:
        message(f"note: {load}")
    try:
        described = ceilings.device(target, journal.table())
    except ValueError as error:
        message(f"note: no device file: {error}")
        return None
    whole.file(folder / YAML, ceilings.as_yaml(described).encode())
    message(f"device: {folder / YAML}")
    return described


@contextlib.contextmanager
def _stoppable(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        message(f"stopped; what is measured is in {folder}: run the same command to go on")
        raise typer.Exit(130) from None


def _kind(device: str) -> Any:
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device {device}: unknown; use cpu or cuda")
    return device


def _seconds(budget: str | None) -> float:
    from moesim.units import parse

    if budget is None:
        return float("inf")
    seconds = parse(budget, "second")
    if seconds <= 0:
        raise ValueError(f"--budget {budget}: leaves no time; give e.g. 9min")
    return seconds


def _short(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value
