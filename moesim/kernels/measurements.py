"""Measured kernel times as one table: the contract between measuring, other tools' files, and fitting.

One row per measured point, CSV or Parquet. Cells of columns that an operator does not have are empty.

================================  ====================================================================================
column                            what
================================  ====================================================================================
``op``                            operator: of ``moesim.kernels.ops``, ``copy`` or ``launch``
shapes                            as that operator names them; ``tokens_per_expert`` is a list ("4;0;2" in CSV)
``dtype``                         of the weights, or of what is moved: ``bf16``, ``fp8``, ...
``time_s``                        median seconds of one call
``time_p10_s``, ``time_p90_s``    spread (optional)
``impl``                          kernel: ``cublas``, ``triton_fused``, ... (optional, as all that follow)
``cold``                          whether weights and caches came from memory, not from a cache
``routing``                       of expert rows: ``balanced``, ``uniform``, ``power_law...``, ``zipf...``
``device``, ``source``            where it was measured, and by what
``split``                         ``fit``, ``test`` or ``reserve``; empty: decided by a hash of the shape
``sentinel``                      a point that is measured again and again: its spread is the noise floor
``status``                        ``ok``, ``oom``, ``error``; rows that are not ok are kept and not used
``x_...``                         anything else
================================  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim import registry
from moesim.kernels import ops
from moesim.kernels.domain import Domain, ranges
from moesim.kernels.measurement_checks import LOADS, SHAPES, MeasurementError, filled, raise_all, wrong_rows
from moesim.kernels.rates import Rates
from moesim.layers import DTYPE_BYTES
from moesim.registry import suggest

DEFAULTS: dict[str, Any] = {"time_p10_s": np.nan, "time_p90_s": np.nan, "impl": "", "cold": False, "routing": "",
                            "device": "", "source": "", "split": "", "sentinel": False, "status": "ok"}
COLUMNS = ("op", "dtype", "time_s", *DEFAULTS, *SHAPES)
_CACHES = 256e6     # bytes that no cache of a processor holds: rows that move more are cold in any case (assumed)
_ABOVE_PEAK = 1.1   # share of a peak rate above which a time cannot be true (10 %: clocks differ from the data sheet's)


@dataclass(frozen=True)
class Points:
    """Points of one operator: shapes (arrays, one entry per row), measured seconds, and the rows they come from."""

    op: str
    shapes: dict[str, np.ndarray]
    seconds: np.ndarray
    table: pd.DataFrame

    def take(self, rows: np.ndarray) -> Points:
        """Return the points at *rows* (a mask or numbers)."""
        return Points(self.op, {k: v[rows] for k, v in self.shapes.items()}, self.seconds[rows], self.table.iloc[
            np.flatnonzero(rows) if rows.dtype == bool else rows])

    def complete(self, rates: Rates) -> ops.Shapes:
        """Return the shapes with optional ones filled in."""
        return ops.shapes(self.op, dict(self.shapes), rates)

    def ranges(self, rates: Rates) -> Domain:
        """Return the measured range of each shape by which a domain is described."""
        found = ranges(self.op, self.complete(rates))
        if self.op == "moe":  # lists in one array are as long as the longest
            experts = self.table[LOADS].map(len)
            found["experts"] = float(experts.min()), float(experts.max())
        return found

    def __len__(self) -> int:
        return len(self.seconds)


@dataclass(frozen=True)
class Measurements:
    """A checked table of measurements. Make one with ``read`` or ``checked``."""

    table: pd.DataFrame

    def ops(self) -> list[str]:
        """Return the operators that have usable rows and that kernel models predict."""
        usable = set(self.table.loc[self.table["status"] == "ok", "op"])
        return [op for op in ops.OPS if op in usable]

    def of(self, op: str) -> Points:
        """Return the usable points of *op*; optional shapes that any row has, with their defaults in the others."""
        table = self.table[(self.table["op"] == op) & (self.table["status"] == "ok")].reset_index(drop=True)
        shapes = {n: _padded(table[n]) if n == LOADS else table[n].to_numpy(float) for n in ops.OPS[op].required}
        for name in ops.OPS[op].optional:
            if name in table and table[name].notna().any():
                given = table[name].to_numpy(float)
                shapes[name] = given if not np.isnan(given).any() else np.where(
                    np.isnan(given), _default(name, table, shapes), given)
        return Points(op, shapes, table["time_s"].to_numpy(float), table)

    def only(self, impl: Sequence[str] = (), cold: bool | None = None, dtype: str | None = None) -> Measurements:
        """Return the rows of the kernels *impl* (of operators that have any of them), *cold* or warm ones, of *dtype*.

        Raises ``MeasurementError`` for a kernel that no row is of.
        """
        table = self.table
        for name in impl:
            if name not in set(table["impl"]):
                raise MeasurementError(f"no row is of the kernel {name!r}{suggest(name, sorted(set(table['impl'])))}")
            op = table["op"].isin(table.loc[table["impl"] == name, "op"])
            table = table[~op | table["impl"].isin(impl)]
        table = table if cold is None else table[table["cold"] == cold]
        return Measurements(table if dtype is None else table[table["dtype"] == dtype])

    def check_peaks(self, rates: Rates, name: str = "measurements") -> None:
        """Raise ``MeasurementError`` if times imply more than the peak rates: they are in another unit.

        Bandwidth binds cold rows, and all that move more than any cache holds.
        """
        found = []
        for op in self.ops():
            points = self.of(op)
            shapes = points.complete(rates)
            moved = np.broadcast_to(ops.moved(op, shapes, rates), points.seconds.shape)
            cold = points.table["cold"].to_numpy(bool) | (moved > _CACHES)
            for what, peak, amount in (("bytes", rates.bandwidth, np.where(cold, moved, 0)),
                                       ("FLOP", rates.flop_per_s, ops.flop(op, shapes))):
                over = amount / points.seconds / peak
                found += [(int(points.table["row"].iloc[i]), f"{describe(points, i)}: {points.seconds[i]:.3g} s imply "
                           f"{over[i]:.3g} times the peak of {peak:.3g} {what}/s; give time_s in seconds")
                          for i in np.flatnonzero(over > _ABOVE_PEAK).tolist()]
        raise_all(found, name)


def read(path: str | Path, form: Any = None) -> Measurements:
    """Return the measurements in *path*, checked; *form* (default: found) is a part of kind ``measurement_format``.

    Raises ``MeasurementError`` naming rows and reasons, ``ValueError`` if no format knows the file.
    """
    path = Path(path)
    if not path.exists():
        raise MeasurementError(f"{path}: no such file; give a table of measurements")
    kinds = [registry.make("measurement_format", name) for name in registry.names("measurement_format")]
    part = registry.make("measurement_format", form) if form else next((k for k in kinds if k.matches(path)), None)
    if part is None:
        raise MeasurementError(f"{path}: no format knows it; name one: "
                               f"{', '.join(registry.names('measurement_format'))}")
    return checked(part.read(path), str(path))


def checked(table: pd.DataFrame, name: str = "measurements") -> Measurements:
    """Return *table* as measurements, optional columns filled in. Raises ``MeasurementError`` naming rows and reasons.

    Rows are counted from 1, as they stand in the table.
    """
    missing = [c for c in ("op", "dtype", "time_s") if c not in table]
    if missing:
        raise MeasurementError(f"{name}: has no column {', '.join(missing)}; add what is missing")
    unknown = [c for c in map(str, table) if c not in (*COLUMNS, "row") and not c.startswith("x_")]
    if unknown:
        raise MeasurementError(f"{name}: unknown column {unknown[0]!r}{suggest(unknown[0], COLUMNS)}; columns of your "
                               "own begin with x_")
    if table.empty:
        raise MeasurementError(f"{name}: has no rows; give at least one")
    table = table.reset_index(drop=True)
    table["row"] = np.arange(1, len(table) + 1)
    table = filled(table, DEFAULTS, name)
    for found in wrong_rows(table):
        raise_all(found, name)
    return Measurements(table)


def joined(parts: list[Measurements]) -> Measurements:
    """Return the rows of all *parts*; rows of different files may repeat each other only as sentinels."""
    return parts[0] if len(parts) == 1 else checked(pd.concat([part.table for part in parts], ignore_index=True))


def describe(points: Points, i: int) -> str:
    """Return what is measured in point *i*, in words."""
    text = [f"{sum(points.table[LOADS].iloc[i]):g} tokens" if n == LOADS else f"{n} {points.shapes[n][i]:g}"
            for n in points.shapes]
    return f"{points.op} ({', '.join(text)})"


def _default(name: str, table: pd.DataFrame, shapes: dict[str, np.ndarray]) -> Any:
    """Return what the optional shape *name* is in rows that do not say it (as ``ops.shapes`` has it)."""
    if name == "weight_bytes":
        return table["dtype"].map(DTYPE_BYTES).to_numpy(float)
    if name == "matrices":
        return 3.0
    if name == "rows":
        return shapes[LOADS].sum(axis=-1)
    if name == "head_dim_v":
        return shapes["head_dim"]
    return shapes["heads_kv"] * (shapes["head_dim"] + shapes.get("head_dim_v", shapes["head_dim"]))


def _padded(lists: pd.Series) -> np.ndarray:
    """Return *lists* of numbers as one array, shorter ones filled up with experts that have no tokens."""
    out = np.zeros((len(lists), max(map(len, lists), default=1)))
    for i, values in enumerate(lists):
        out[i, :len(values)] = values
    return out
