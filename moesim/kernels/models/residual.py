"""The tile model times a small learned correction that is bounded, and active only near measured points.

Boosted trees learn log(measured / tile) from sizes, tiles and what bounds the time; far from any measured point the
prediction is the tile model's. Without learned trees it is the tile model:

>>> from moesim.kernels import load
>>> kernels = load("h200-residual")
>>> near, far = {"m": 256, "n": 4096, "k": 4096}, {"m": 256, "n": 10**6, "k": 10**6}
>>> [bool(kernels.in_domain("gemm", **shape)) for shape in (near, far)]
[True, False]
>>> tile = Residual(tile=kernels.model.tile).time_s(kernels.rates, "gemm", {k: np.asarray(float(v)) for k, v in
...     far.items()} | {"weight_bytes": np.asarray(2.0)})
>>> bool(kernels.time_s("gemm", **far) == tile)
True
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import pandas as pd

from moesim.kernels import ops
from moesim.kernels.domain import Cells, Domain
from moesim.kernels.features import axes, features, rows_of
from moesim.kernels.forest import Forest, from_table, grow
from moesim.kernels.models.tile import Tile
from moesim.kernels.rates import Rates, Setting
from moesim.kernels.stored import Stored
from moesim.kernels.tiles import group_of
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.kernels.measurements import Points


_CELL = -2  # the "tree" of rows that are cells


class _Learned(NamedTuple):
    """Of one operator: trees, and the cells of the points that they learned from."""

    forest: Forest
    cells: Cells


@part
class Residual:
    """``tile`` times exp(correction). ``data``: trees and cells (written by ``moesim calibrate``); none: tile alone.

    ``bound``: largest absolute correction, of the logarithm (0.7: a factor of 2; the tile model is within it for 99 %
    of the H200 rows). ``near``: octaves from a measured cell up to which a shape counts as measured and the correction
    is whole; ``fade``: octaves over which it then goes to nothing (assumed).
    """

    tile: Annotated[Tile, group_of(Tile)] = Tile()
    data: Stored = Stored()
    bound: float = 0.7
    near: float = 1.0
    fade: float = 4.0

    @property
    def fitted_on(self) -> str:
        """Part of the name of the device that was measured."""
        return self.tile.fitted_on

    @property
    def fitted_dtypes(self) -> tuple[str, ...]:
        """The weights' data types in the measurements."""
        return self.tile.fitted_dtypes

    def time_s(self, rates: Rates, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return seconds of *op*: the tile model's, corrected near measured points."""
        tile = np.asarray(self.tile.time_s(rates, op, shapes))
        learned = self._learned(op)
        if learned is None:
            return tile
        sizes = axes(op, shapes)
        beyond = np.maximum(learned.cells.distance(rows_of(sizes, tile.shape)) - self.near, 0)
        weight = np.maximum(1 - beyond.reshape(tile.shape) / self.fade, 0)
        positive = np.maximum(tile, np.finfo(float).tiny)  # rows without work
        correction = learned.forest.predict(features(op, shapes, rates, positive, sizes)).reshape(tile.shape)
        return tile * np.exp(weight * np.clip(correction, -self.bound, self.bound))

    def domain(self, op: str) -> Domain | None:
        """Return the ranges of the measured shapes of *op*; None if it was not measured."""
        return self.tile.domain(op)

    def inside(self, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return where *shapes* lie in those ranges and near a measured point."""
        ranged, learned = self.tile.inside(op, shapes), self._learned(op)
        if learned is None or not np.any(ranged):
            return ranged
        sizes = axes(op, shapes)
        shape = np.broadcast_shapes(ranged.shape, *(size.shape for size in sizes.values()))
        return ranged & (learned.cells.distance(rows_of(sizes, shape)) <= self.near).reshape(shape)

    def fitted(self, points: dict[str, Points], setting: Setting, seed: int) -> Residual:
        """Return the model whose tile constants and trees fit *points* of each operator. Needs scikit-learn."""
        tile = self.tile.fitted(points, setting, seed)
        tables = []
        for op, rows in points.items():
            shapes = rows.complete(setting.rates)
            seconds = np.broadcast_to(tile.time_s(setting.rates, op, shapes), rows.seconds.shape)
            missed = np.clip(np.log(rows.seconds / seconds), -self.bound, self.bound)
            sizes = axes(op, shapes)
            trees = grow(features(op, shapes, setting.rates, seconds, sizes), missed, seed)
            cells = Cells.of(rows_of(sizes, seconds.shape))
            where = pd.DataFrame({"tree": np.int16(_CELL), "cell": list(cells.cells)})
            tables.append(pd.concat([trees, where], ignore_index=True).assign(op=op))
        return replace(self, tile=tile, data=Stored(table=pd.concat(tables, ignore_index=True)))

    def _learned(self, op: str) -> _Learned | None:
        return self.data.once(op, lambda table: _of(table[table["op"] == op])) if self.data else None


def _of(table: pd.DataFrame) -> _Learned | None:
    if table.empty:
        return None
    cell = table["tree"] == _CELL
    return _Learned(from_table(table[~cell]), Cells(np.array(table.loc[cell, "cell"].tolist(), dtype=np.int16)))
