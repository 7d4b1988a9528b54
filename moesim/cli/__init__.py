"""The command line: every command is one library call.

Data goes to stdout, messages go to stderr. Exit status: 0 fine, 2 wrong input (what is wrong, where, and what to do;
no traceback), 1 a bug of moesim (with its traceback). The library is imported inside the commands, so that
``moesim --help`` does not wait for it.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import moesim
from moesim.cli import cache, calibrate, inspect, measure, network, place, simulate, traces
from moesim.cli import validate as validation
from moesim.cli.output import message


class _Commands(TyperGroup):
    """Commands whose input errors are messages."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit with 2 if its input is wrong, let bugs through."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            from moesim.cli.errors import input_error

            text = input_error(error)
            if text is None:
                raise
            message(text)
            raise typer.Exit(2) from None


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="What would this Mixture-of-Experts model do on that machine, if ...?")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(moesim.__version__)
        raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                   help="Print the version and exit.")] = False) -> None:
    pass


for _command in (simulate.demo, simulate.run, simulate.sweep, inspect.show, inspect.check, traces.plot, place.place,
                 cache.cache, traces.convert, traces.capture, measure.measure, calibrate.calibrate, validation.validate,
                 network.network):
    app.command()(_command)
app.command("list")(inspect.list_)


def main() -> None:
    """Run the command line."""
    app(prog_name="moesim")
