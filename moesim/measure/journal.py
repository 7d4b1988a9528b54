"""Rows on disk as soon as they are measured: one JSON object per line, only ever appended to.

A run that is killed loses the point it was at. Its last line may be cut short; reading drops that one and no other.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd

from moesim import whole
from moesim.kernels import ops

ROWS = "rows.jsonl"
TABLE = "measurements.parquet"
ENGINE = "engine.parquet"
OTHERS = "others.parquet"
SHAPES = tuple(dict.fromkeys(name for op in ops.OPS.values() for name in op.required + op.optional))
KERNELS = (*ops.OPS, "copy", "launch")  # what a table of kernel measurements may hold
FIRST = ("op", *SHAPES, "dtype", "time_s", "time_p10_s", "time_p90_s", "impl", "cold", "routing", "device", "source",
         "split", "sentinel", "status")


class Journal:
    """The rows of one folder; what is already there is read when it is opened."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / ROWS
        self.rows = read(self._file)
        self._known = {_place(row) for row in self.rows}
        self._failed = {row["x_key"] for row in self.rows if row["status"] != "ok"}
        if self._file.exists():  # cut a broken last line off, or the next row would be joined to it
            content = self._file.read_bytes()
            end = content.rfind(b"\n") + 1
            if end != len(content):
                os.truncate(self._file, end)

    def add(self, row: dict[str, Any]) -> None:
        """Append *row* and make sure that it is on disk."""
        self.rows.append(row)
        self._known.add(_place(row))
        if row["status"] != "ok":
            self._failed.add(row["x_key"])
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def has(self, key: str, turn: int = -1, number: int = 0) -> bool:
        """Tell whether the point *key* has a row of the round *number*, or of the sentinels' *turn*, or failed once."""
        return key in self._failed or (key, turn, number) in self._known

    def table(self) -> pd.DataFrame:
        """Return the rows of kernels in the form that ``moesim.kernels`` fits, of each point the fastest round."""
        return as_table(fastest([row for row in self.rows if row["op"] in KERNELS]))

    def others(self) -> pd.DataFrame:
        """Return the rows that are not one kernel: layer stacks, offload, energy, two streams at once, permutations."""
        return as_table(fastest([row for row in self.rows if row["op"] not in KERNELS]))

    def export(self, kind: str) -> list[Path]:
        """Write the tables as Parquet beside the rows: all kernels, those of one engine on a *kind* of device, others.

        Returns the paths of those that have rows.
        """
        from moesim.measure.engines import of_engine  # torch

        table, paths = self.table(), []
        for name, part in ((TABLE, table), (ENGINE, of_engine(table, kind)), (OTHERS, self.others())):
            if len(part):
                paths.append(self._file.with_name(name))
                whole.file(paths[-1], part.to_parquet(index=False))
        return paths


def read(file: Path) -> list[dict[str, Any]]:
    """Return the rows in *file*; none if there is no such file.

    Raises ``ValueError`` for a line that is not JSON, unless it is the last and has no end.
    """
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ValueError(f"{file}:{number}: not a row of measurements; remove the line, or measure into another "
                             f"folder") from None
    return rows


def fastest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of each point, and of each turn of a sentinel, the row of the round with the shortest time.

    A point that failed in every round keeps its first row.
    """
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        before = best.setdefault((row["x_key"], row["x_turn"]), row)
        if row["status"] == "ok" and row["time_s"] < (before["time_s"] if before["status"] == "ok" else math.inf):
            best[row["x_key"], row["x_turn"]] = row
    return list(best.values())


def _place(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["x_key"], row["x_turn"], row["x_round"]


def as_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return *rows* as a table with the columns ``FIRST`` and those of their own (``x_``) behind them."""
    own = dict.fromkeys(name for row in rows for name in row if name.startswith("x_"))
    columns = {name: [row.get(name) for row in rows] for name in (*FIRST, *own)}
    table = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    numbers = [n for n in (*SHAPES, "time_s", "time_p10_s", "time_p90_s") if n != "tokens_per_expert"]
    table[numbers] = table[numbers].astype(float)
    for name in ("cold", "sentinel"):
        table[name] = table[name].astype(bool)
    return table.infer_objects()
