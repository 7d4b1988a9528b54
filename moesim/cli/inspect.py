"""Commands that look: show, check, list."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.output import message, print_pairs, print_rows
from moesim.cli.simulate import Overrides


def show(name: Annotated[str, typer.Argument(help="File, or name of a model, machine or trace of the library.")],
         overrides: Overrides = None) -> None:
    """Show a scenario (resolved, as YAML), or the numbers of a model, machine, trace or placement."""
    from moesim.cli import describe, library

    kind, content = library.load(library.find(name), tuple(overrides or ()))
    numbers = describe.numbers(kind, content)
    if numbers is not None:
        print_pairs(numbers)
        return
    from ruamel.yaml import YAML

    YAML().dump(content.dump(), sys.stdout)


def check(files: Annotated[list[Path], typer.Argument(help="Scenario, model, machine, sweep, trace or placement.")]
          ) -> None:
    """Check files; print every mistake with its place."""
    from moesim.cli import library
    from moesim.cli.errors import input_error
    from moesim.sim import inputs

    wrong = False
    for path in files:
        try:
            kind, content = library.load(path)
            if kind == "scenario":  # and the files that only a run would read
                inputs.check(content)
            if kind == "sweep":
                content.check()
        except Exception as error:
            text = input_error(error)
            if text is None:
                raise
            wrong = True
            message(text)
        else:
            print(f"{path}: ok")
    if wrong:
        raise typer.Exit(2)


def list_(kind: Annotated[str | None, typer.Argument(help="One kind only, e.g. solver or model.")] = None) -> None:
    """List the parts, and the models, machines and traces of the library."""
    from moesim.cli import describe

    rows: list[list[Any]] = describe.listing(kind)
    print_rows(["kind", "name", "what"], rows)
