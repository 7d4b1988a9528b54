"""Finished points on disk, so that a killed sweep goes on where it was.

``points/<key>.parquet`` is one finished point and appears whole or not at all; the folder reads as one
Parquet table while the sweep runs. ``table.parquet`` is the whole table, in the order of the points.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moesim.explore.job import Outcome


class Journal:
    """Keep rows whose *metrics* columns are numbers and whose last two columns are ``warnings`` and ``error``."""

    def __init__(self, folder: str | Path, metrics: Iterable[str]):
        self._folder = Path(folder)
        self._points = self._folder / "points"
        self._metrics = list(metrics)
        self._points.mkdir(parents=True, exist_ok=True)

    def read(self, keys: Iterable[str]) -> dict[str, Outcome]:
        """Return the outcomes of those of *keys* that are finished."""
        found = {}
        for key in keys:
            path = self._points / f"{key}.parquet"
            if path.exists():
                row = pq.ParquetFile(path).read().to_pylist()[0]
                numbers = {} if row["error"] else {name: row[name] for name in self._metrics}
                found[key] = Outcome(numbers, row["warnings"], row["error"])
        return found

    def add(self, key: str, row: pd.DataFrame) -> None:
        """Keep the *row* of one finished point."""
        _write(row, self._points / f"{key}.parquet")

    def finish(self, table: pd.DataFrame) -> None:
        """Write the whole *table*."""
        _write(table, self._folder / "table.parquet")


def _write(table: pd.DataFrame, path: Path) -> None:
    """Write *table* in one move, so that nobody ever reads half of it."""
    text = {name: pa.string() for name in ("warnings", "error")}  # a column of None has no type of its own
    schema = pa.Schema.from_pandas(table.drop(columns=list(text)), preserve_index=False)
    for name, kind in text.items():
        schema = schema.append(pa.field(name, kind))
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(part, "wb") as file:
        pq.write_table(pa.Table.from_pandas(table, schema, preserve_index=False), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
