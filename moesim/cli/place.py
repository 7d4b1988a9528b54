"""The command that places experts and judges the placement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.output import message, print_rows, waiting


def place(trace: Annotated[Path, typer.Argument(help="Trace file.")],
          devices: Annotated[int, typer.Option(min=1, help="Number of devices.")],
          solver: Annotated[str, typer.Option(help="Name, or {name: joint, balance: 1.0}.")] = "joint",
          devices_per_node: Annotated[int | None, typer.Option(min=1, help="Devices that share a node.")] = None,
          profile_fraction: Annotated[float, typer.Option(help="Part of the requests that the solver sees.")] = 0.5,
          domains: Annotated[bool | None, typer.Option("--domains/--no-domains", help=(
              "Judge on each domain, seen and never seen; one more solve for each. (default: with 2 to 8 domains)"))
              ] = None,
          seed: Annotated[int, typer.Option(min=0)] = 0,
          out: Annotated[Path | None, typer.Option(help="File for the placement.")] = None,
          form: Annotated[str | None, typer.Option("--format", help="Format of the file: moesim list placement_format. "
                                                                    "(default: by suffix; .json is moesim's)")] = None
          ) -> None:
    """Place the experts of a trace; judge the answer on requests and domains that the solver saw or never saw."""
    from moesim import placement
    from moesim.cli.values import yaml_value
    from moesim.trace import read_trace

    if form is not None and out is None:
        raise ValueError(f"--format {form}: there is no file to write; give --out")
    nodes = {} if devices_per_node is None else {"devices_per_node": devices_per_node}
    with waiting("placing"):
        answer, table = placement.judge(read_trace(trace), devices, yaml_value("--solver", solver), seed,
                                        profile_fraction, domains, **nodes)
    if "bound" in answer.info:
        message("on the profile {minimises} is {objective:.4g}; the proved lower bound is {bound:.4g} "
                "(gap {gap:.1%})".format(**answer.info))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        placement.write_placement(answer, out, yaml_value("--format", form) if form else None)
        message(f"placement: {out}")
    print_rows(list(table), table.to_numpy().tolist())
