"""Where an operator was measured: ranges of its shapes, and cells near which there are points.

Ranges alone would call a corner measured that no point is near; cells, one octave wide in every size, do not:

>>> cells = Cells.of(np.array([[0.0, 0.0], [8.0, 8.0]]))
>>> cells.distance(np.array([[0.3, -0.2], [8.0, 7.0], [0.0, 8.0]])).tolist()
[0.0, 1.0, 8.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from moesim.kernels import ops

Domain = dict[str, tuple[float, float]]
_FAR = 64.0  # octaves: no shape is further away


def _pairs(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {op: {name: tuple(pair) if isinstance(pair, list) else pair for name, pair in ranges.items()}
            if isinstance(ranges, dict) else ranges for op, ranges in value.items()}


Domains = Annotated[dict[str, Domain], BeforeValidator(_pairs)]  # operator -> shape -> (least, most)
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]


def ranges(op: str, shapes: ops.Shapes) -> Domain:
    """Return the range of each shape of *op* in *shapes* (complete ones)."""
    return {name: (float(np.min(value)), float(np.max(value))) for name, value in ops.ranged(op, shapes).items()
            if name not in ("weight_bytes", "tokens_per_expert")}


def in_ranges(domain: Domain | None, op: str, shapes: ops.Shapes) -> np.ndarray:
    """Return where all *shapes* lie in the ranges of *domain*; nowhere if there is none."""
    if domain is None:
        return np.asarray(False)
    found, inside = ops.ranged(op, shapes), np.asarray(True)
    for name, (low, high) in domain.items():
        inside = inside & (found[name] >= low) & (found[name] <= high)
    return inside


@dataclass(frozen=True)
class Cells:
    """Measured ``cells``, int16 [cells, sizes]: base-2 logarithms, rounded."""

    cells: np.ndarray

    @classmethod
    def of(cls, sizes: np.ndarray) -> Cells:
        """Return the cells that hold the points *sizes* [points, sizes], base-2 logarithms."""
        return cls(np.unique(_rounded(sizes), axis=0))

    def distance(self, sizes: np.ndarray) -> np.ndarray:
        """Return octaves (Euclidean) from the cell of each row of *sizes* to the nearest measured one, 0 inside."""
        asked, where = distinct(_rounded(sizes))
        distance, _ = self._tree.query(asked, distance_upper_bound=_FAR)
        return np.minimum(distance, _FAR)[where]

    @cached_property
    def _tree(self) -> Any:
        from scipy.spatial import cKDTree

        return cKDTree(self.cells)


def _rounded(sizes: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(sizes), -_FAR, _FAR).astype(np.int16)


def distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct *rows* of small integers and which of them each row is, by way of one number per row."""
    low = rows.min(axis=0, initial=0)
    width = rows.max(axis=0, initial=0).astype(np.int64) - low + 1
    code = np.zeros(len(rows), dtype=np.int64)
    for column, size in zip((rows - low).T, width, strict=True):
        code = code * size + column
    _, first, where = np.unique(code, return_index=True, return_inverse=True)
    return rows[first], where
