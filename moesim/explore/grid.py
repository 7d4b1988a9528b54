"""Points of a sweep: axes -> combinations of values, their overrides, and the columns that show them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Point = dict[str, Any]  # dotted path of a scenario's field -> value, as a YAML file would give it
Axes = Mapping[str, Iterable[Any]] | Sequence[Mapping[str, Any]]


def grid(axes: Axes) -> list[Point]:
    """Return all combinations of *axes* (dotted path -> values), the last axis fastest.

    A list of points (mappings of dotted path -> value) is taken as it is. Raises ``ValueError`` if an axis has no
    values, a value cannot be written in YAML, or points differ in their paths.
    """
    if isinstance(axes, Mapping):
        values = [_values(path, given) for path, given in axes.items()]
        return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*values)]
    if isinstance(axes, str) or not all(isinstance(point, Mapping) for point in axes):
        raise ValueError(f"axes are {axes!r}; give a mapping of dotted path -> values, or a list of points")
    points = [{path: _plain(path, value) for path, value in point.items()} for point in axes]
    if not points:
        raise ValueError("axes have no points; give at least one, or {} for the scenario as it is")
    for i, point in enumerate(points):
        if list(point) != list(points[0]):
            raise ValueError(f"point {i} sets {', '.join(point) or 'nothing'}, point 0 sets "
                             f"{', '.join(points[0]) or 'nothing'}; every point must set the same paths in one order")
    return points


def overrides(point: Point) -> tuple[str, ...]:
    """Return *point* as the overrides that ``moesim.override`` takes (JSON is YAML)."""
    return tuple(f"{path}={json.dumps(value)}" for path, value in point.items())


def columns(points: Sequence[Point]) -> pd.DataFrame:
    """Return one row per point and one column per path; lists and mappings, and mixed types, are shown as JSON."""
    return pd.DataFrame({path: _column([point[path] for point in points]) for path in points[0]},
                        index=pd.RangeIndex(len(points)))


def _values(path: str, given: Any) -> list[Any]:
    if isinstance(given, (str, Mapping)) or not hasattr(given, "__iter__"):
        raise ValueError(f"axis {path}: {given!r} is not a list of values; write [{given!r}]")
    values = [_plain(path, value) for value in given]
    if not values:
        raise ValueError(f"axis {path}: has no values; give at least one, or remove the axis")
    return values


def _plain(path: str, value: Any) -> Any:
    """Return *value* as JSON knows it."""
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return json.loads(json.dumps(value, default=_path_text, allow_nan=False))
    except (TypeError, ValueError):
        raise ValueError(f"axis {path}: {value!r} cannot be written in a scenario; give numbers, text, lists or "
                         f"mappings, and parts by name") from None


def _path_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError


def _column(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or kinds <= {str} or kinds <= {bool}:
        return values
    return [value if isinstance(value, str) else json.dumps(value) for value in values]
