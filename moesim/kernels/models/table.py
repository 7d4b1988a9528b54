"""Measured utilisation of the nearest measured shapes, weighted by distance: right on the grid, unreliable beyond it.

It interpolates measured time / roofline, never raw time, so that work it has not seen still costs what it must:

>>> from moesim.kernels.measurements import checked
>>> from moesim.kernels.rates import Rates, Setting
>>> rows = pd.DataFrame({"op": "elementwise", "dtype": "bf16", "bytes": [1e6, 4e6], "time_s": [2e-6, 5e-6]})
>>> setting = Setting(Rates(1e15, 1e12, 132, 2.0, 2.0), "toy", "bf16")
>>> table = Table().fitted({"elementwise": checked(rows).of("elementwise")}, setting, seed=0)
>>> sizes = np.array([1e6, 2e6, 4e6, 4e7])
>>> print([f"{t * 1e6:.2f} us" for t in table.time_s(setting.rates, "elementwise", {"bytes": sizes})])
['2.00 us', '3.16 us', '5.00 us', '57.04 us']
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from moesim.kernels import ops
from moesim.kernels.domain import Domain, Domains, Names, in_ranges
from moesim.kernels.features import axes, rows_of
from moesim.kernels.rates import Rates, Setting
from moesim.kernels.stored import Stored
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.kernels.measurements import Points

_SAME = 1e-9  # squared distance, octaves, at which a shape is the measured one


class _Points(NamedTuple):
    """Of one operator: a tree of measured sizes, and log(measured / roofline) of each."""

    tree: object
    ratio: np.ndarray


@part
class Table:
    """``data``: measured points (written by ``moesim calibrate``); without them this is the roofline.

    ``neighbours``: points that a prediction is the mean of, weighted by 1 / squared distance in octaves (4 in
    aiconfigurator's interpolation). ``near``: octaves from a measured point up to which a shape counts as measured
    (assumed). ``fitted_on``, ``fitted_dtypes``, ``measured``: where, and in which ranges.
    """

    data: Stored = Stored()
    neighbours: int = 4
    near: float = 1.5
    fitted_on: str = ""
    fitted_dtypes: Names = ()
    measured: Domains = field(default_factory=dict)

    def time_s(self, rates: Rates, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return seconds of *op*: the roofline's, times what the nearest measured points needed of it."""
        roofline = np.maximum(ops.flop(op, shapes) / rates.flop_per_s, ops.moved(op, shapes, rates) / rates.bandwidth)
        points = self._points(op)
        if points is None:
            return roofline
        distance, which = self._nearest(points, op, shapes, roofline.shape)
        weight = 1 / (distance**2 + _SAME)
        ratio = (weight * points.ratio[which]).sum(axis=-1) / weight.sum(axis=-1)
        return roofline * np.exp(ratio.reshape(roofline.shape))

    def domain(self, op: str) -> Domain | None:
        """Return the ranges of the measured shapes of *op*; None if it was not measured."""
        return self.measured.get(op)

    def inside(self, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return where *shapes* lie in those ranges and near a measured point."""
        ranged, points = in_ranges(self.domain(op), op, shapes), self._points(op)
        if points is None or not np.any(ranged):
            return ranged
        shape = np.broadcast_shapes(ranged.shape, *(np.shape(s) for n, s in shapes.items() if n != "tokens_per_expert"))
        distance, _ = self._nearest(points, op, shapes, shape)
        return ranged & (distance[:, 0] <= self.near).reshape(shape)

    def fitted(self, points: dict[str, Points], setting: Setting, seed: int) -> Table:
        """Return the table of the measured *points* of each operator."""
        tables, measured = [], {}
        for op, rows in points.items():
            shapes = rows.complete(setting.rates)
            roofline = replace(self, data=Stored()).time_s(setting.rates, op, shapes)
            sizes = rows_of(axes(op, shapes), rows.seconds.shape).astype(np.float32)
            tables.append(pd.DataFrame({"op": op, "sizes": list(sizes), "ratio": np.log(rows.seconds / roofline)}))
            measured[op] = rows.ranges(setting.rates)
        return replace(self, data=Stored(table=pd.concat(tables, ignore_index=True)), fitted_on=setting.device,
                       fitted_dtypes=(setting.dtype,), measured=measured)

    def _points(self, op: str) -> _Points | None:
        return self.data.once(op, lambda table: _of(table[table["op"] == op])) if self.data else None

    def _nearest(self, points: _Points, op: str, shapes: ops.Shapes, shape: tuple[int, ...]
                 ) -> tuple[np.ndarray, np.ndarray]:
        """Return distances and numbers of the nearest points, nearest first, each [rows, neighbours]."""
        count = min(self.neighbours, len(points.ratio))
        sizes = rows_of(axes(op, shapes), shape)
        distance, which = points.tree.query(sizes, k=[*range(1, count + 1)])  # type: ignore[attr-defined]
        return distance, which


def _of(table: pd.DataFrame) -> _Points | None:
    from scipy.spatial import cKDTree

    if table.empty:
        return None
    return _Points(cKDTree(np.array(table["sizes"].tolist(), dtype=float)), table["ratio"].to_numpy(float))
