"""What the commands print: tables and data on stdout, messages on stderr, progress on a terminal only."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table


def message(text: str) -> None:
    """Print *text* on stderr as it is."""
    print(text, file=sys.stderr)


def print_rows(columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table on stdout; what is not a terminal gets every column in full."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    for i, (name, right) in enumerate(zip(columns, numeric, strict=True)):
        whole = max((len(_text(row[0])) for row in rows), default=0) if i == 0 else None  # names stay in one piece
        table.add_column(name, justify="right" if right else "left", overflow="fold", min_width=whole)
    for row in rows:
        table.add_row(*(_text(value) for value in row))
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = max(80, console.measure(table, options=console.options.update(max_width=100_000)).maximum)
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """Print names and values on stdout."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        print(f"{name:<{width}}  {_text(value)}")


def print_json(data: Mapping[str, Any]) -> None:
    """Print *data* as JSON on stdout; numbers that JSON does not know (NaN) are null."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}
    print(json.dumps(plain, indent=1))


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show *text* and a spinner on stderr while the block runs, if stderr is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


@contextmanager
def progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """Give the block a function of (done, in all) that moves a bar on stderr, if stderr is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
