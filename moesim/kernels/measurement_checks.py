"""What can be wrong in a table of measurements: each mistake with its row and the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from moesim.kernels import ops
from moesim.layers import DTYPE_BYTES
from moesim.registry import suggest

LOADS = "tokens_per_expert"
# Not predicted by kernel models, but measured: copies between memories (bytes), and launches without work.
MEASURED = ops.OPS | {"copy": ops.Op(("bytes",)), "launch": ops.Op(())}
SHAPES = tuple(dict.fromkeys(n for op in MEASURED.values() for n in op.required + op.optional))
_STATUS = ("ok", "oom", "error")
_SPLITS = ("", "fit", "test", "reserve")
_SHOWN = 5  # mistakes that a message lists

Mistake = tuple[int, str]  # row and reason


class MeasurementError(ValueError):
    """Wrong measurements: rows and reasons."""


def raise_all(found: list[Mistake], name: str) -> None:
    """Raise ``MeasurementError`` with the first of the mistakes *found* in *name*, if there are any."""
    if not found:
        return
    found.sort()
    rest = f"\n{name}: and {len(found) - _SHOWN} more rows" if len(found) > _SHOWN else ""
    raise MeasurementError("\n".join(f"{name}: row {row}: {fact}" for row, fact in found[:_SHOWN]) + rest)


def filled(table: pd.DataFrame, defaults: dict[str, Any], name: str) -> pd.DataFrame:
    """Return *table* with every column of *defaults*, of its type. Raises ``MeasurementError`` for what has another."""
    found: list[Mistake] = []
    for column, default in defaults.items():
        cells = table[column] if column in table else pd.Series(default, table.index)
        cells = cells.where(cells.notna(), default)
        if isinstance(default, float):
            good, need = pd.to_numeric(cells, errors="coerce").notna() | cells.isna(), "a number"
        elif isinstance(default, bool):
            good, need = cells.map(lambda v: isinstance(v, bool | np.bool_)).astype(bool), "true or false"
        else:
            good, need = cells.map(lambda v: isinstance(v, str)).astype(bool), "text"
        found += [(int(table["row"][i]), f"{column} is {_shown(cells[i])}; give {need}") for i in table.index[~good]]
        table[column] = cells.astype(type(default)) if good.all() else cells
    raise_all(found, name)
    return table


def wrong_rows(table: pd.DataFrame) -> Iterator[list[Mistake]]:
    """Yield mistakes in cells, then in shapes, then points that are there twice; *table* has every common column."""
    yield _wrong_cells(table)
    yield _wrong_shapes(table)
    yield _twice(table)


def _wrong_cells(table: pd.DataFrame) -> list[Mistake]:
    ok = table["status"] == "ok"
    time = pd.to_numeric(table["time_s"], errors="coerce")
    tests = [
        (~table["op"].isin(MEASURED), "op", lambda v: f"is unknown{suggest(v, MEASURED)}"),
        (~table["dtype"].isin(DTYPE_BYTES), "dtype", lambda v: f"is unknown{suggest(v, DTYPE_BYTES)}"),
        (~table["status"].isin(_STATUS), "status", lambda v: f"is none of {', '.join(_STATUS)}"),
        (~table["split"].isin(_SPLITS), "split", lambda v: f"is none of {', '.join(_SPLITS[1:])}, or empty"),
        (ok & ~(np.isfinite(time) & (time > 0)), "time_s", lambda v: "must be finite and above 0; mark rows that "
                                                                   "failed with status error"),
        (ok & (table["time_p10_s"] > table["time_p90_s"]), "time_p10_s", lambda v: "is above time_p90_s")]
    return [(int(table["row"][i]), f"{column} {_shown(table[column][i])} {say(table[column][i])}")
            for wrong, column, say in tests for i in np.flatnonzero(wrong)]


def _wrong_shapes(table: pd.DataFrame) -> list[Mistake]:
    found = []
    for op, rows in table[table["status"] == "ok"].groupby("op"):
        for name in MEASURED[str(op)].required + MEASURED[str(op)].optional:
            optional = name in MEASURED[str(op)].optional
            if name not in rows:
                found += [] if optional else [(int(rows["row"].iloc[0]), f"{op} has no {name}; add the column")]
                continue
            good = rows[name].map(_is_loads) if name == LOADS else _at_least_zero(rows[name])
            good |= rows[name].isna() if optional else False
            need = "a list of numbers >= 0" if name == LOADS else "a number >= 0"
            found += [(int(rows["row"][i]), f"{op} has {name} {_shown(rows[name][i])}; give {need}")
                      for i in rows.index[~good]]
    return found


def _shown(cell: Any) -> str:
    return f"{cell:g}" if isinstance(cell, float | int) else repr(cell)


def _at_least_zero(cells: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(cells, errors="coerce")
    return np.isfinite(numbers) & (numbers >= 0)


def _is_loads(cell: Any) -> bool:
    if not isinstance(cell, (list, tuple, np.ndarray)) or len(cell) == 0:
        return False
    numbers = np.asarray(cell)
    return numbers.dtype.kind in "iuf" and bool((np.isfinite(numbers) & (numbers >= 0)).all())


def _twice(table: pd.DataFrame) -> list[Mistake]:
    """Return the rows whose point was measured by a row before; sentinels are meant to be."""
    keys = table[(table["status"] == "ok") & ~table["sentinel"]]
    names = [c for c in ("op", "dtype", "impl", "cold", "routing", "device", "source", *SHAPES) if c in keys]
    key = keys[names].assign(**{LOADS: keys[LOADS].map(_text)} if LOADS in keys else {})
    first = key.assign(row=keys["row"]).groupby(names, dropna=False)["row"].transform("first")
    return [(int(row), f"{op} repeats row {before}: the same shape, impl, cold, routing, device and source; keep one, "
             "or mark points that are measured again as sentinel")
            for row, before, op in zip(keys["row"], first, keys["op"], strict=True) if row != before]


def _text(cell: Any) -> str:
    return "" if not isinstance(cell, (list, tuple, np.ndarray)) else " ".join(f"{v:g}" for v in cell)
