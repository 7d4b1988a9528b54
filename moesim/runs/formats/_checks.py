"""What a measured run must be, told of the file's own columns and lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

# Seconds: no serving run lasts 28 hours. Times further apart are of clocks with different origins (one counts from
# 1970, one from the start of the machine).
LONGEST_S = 1e5


@dataclass(frozen=True)
class File:
    """A table of a file. ``first``: the line of its first row; None: rows have no lines and are counted from 0."""

    path: Path
    table: pd.DataFrame
    first: int | None

    def place(self, row: int) -> str:
        """Return where *row* stands."""
        return f"{self.path}: row {row}" if self.first is None else f"{self.path}:{row + self.first}"

    def need(self, columns: Sequence[str]) -> None:
        """Raise ``ValueError`` if the table has no rows or lacks one of *columns*."""
        if self.table.empty:
            raise ValueError(f"{self.path}: holds no row; give at least one")
        missing = [name for name in columns if name not in self.table]
        if missing:
            raise ValueError(f"{self.path}: no column {', '.join(missing)}; a run has {', '.join(columns)}")

    def numbers(self, column: str, remedy: str) -> np.ndarray:
        """Return *column* as finite float64. Raises ``ValueError`` with *remedy* for anything else."""
        values = pd.to_numeric(self.table[column], errors="coerce").to_numpy(float)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            given = self.table[column].iloc[bad[0]]
            raise ValueError(f"{self.place(bad[0])}: {column} is {given}; {remedy}")
        return values

    def counts(self, column: str) -> np.ndarray:
        """Return *column* as int64, at least 1 each. Raises ``ValueError``."""
        values = self.numbers(column, "give the number of tokens")
        bad = np.flatnonzero((values < 1) | (values % 1 != 0))
        if len(bad):
            raise ValueError(f"{self.place(bad[0])}: {column} is {values[bad[0]]:g}; it must be a whole number from 1 "
                             f"up")
        return values.astype(np.int64)

    def times(self, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the *columns* of events in the order in which they happen to a request, seconds of one clock each.

        Raises ``ValueError`` if a request has no such event, or its times go backwards or are of several clocks.
        """
        end = "a request without it did not end: take it out, or let the run finish"
        found = {name: self.numbers(name, end) for name in columns}
        for name, values in found.items():
            bad = np.flatnonzero(np.abs(values - values[0]) > LONGEST_S)
            if len(bad):
                raise ValueError(f"{self.place(bad[0])}: {name} is {values[bad[0]]:.3f}, that of the first row "
                                 f"{values[0]:.3f}: more than a day apart; write all from one clock, in seconds")
        for (before, a), (after, b) in zip(found.items(), list(found.items())[1:], strict=False):
            if one_clock(a, b):
                self.in_order((before, a), (after, b))
        return found

    def in_order(self, before: tuple[str, np.ndarray], after: tuple[str, np.ndarray]) -> None:
        """Raise ``ValueError`` at the first row where the event *after* (column, times) is before *before*."""
        bad = np.flatnonzero(after[1] < before[1])
        if len(bad):
            row = bad[0]
            raise ValueError(f"{self.place(row)}: {after[0]} is {before[1][row] - after[1][row]:.6f} s before "
                             f"{before[0]}: time goes backwards; correct the row, or write both from one clock")

    def sorted(self, column: str, values: np.ndarray) -> None:
        """Raise ``ValueError`` if *values* of *column* do not increase from row to row."""
        bad = np.flatnonzero(np.diff(values) < 0)
        if len(bad):
            row = bad[0] + 1
            raise ValueError(f"{self.place(row)}: {column} is {values[row - 1] - values[row]:.6f} s before that of the "
                             f"row above; sort the rows by {column}")


def one_clock(a: np.ndarray, b: np.ndarray) -> bool:
    """Say whether the times *a* and *b* of the same requests can be of one clock."""
    return bool(abs(b[0] - a[0]) <= LONGEST_S)
