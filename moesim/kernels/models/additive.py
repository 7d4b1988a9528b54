"""Parts that run one after the other, times a smooth correction near measured points: for CPUs and small tables.

An expert layer is the sum of its products, so what products show, experts know. Without measurements it is the
roofline:

>>> from moesim.kernels.measurements import checked
>>> from moesim.kernels.rates import Rates, Setting
>>> rows = pd.DataFrame({"op": "elementwise", "dtype": "fp32", "bytes": [1e4, 1e5, 1e6, 1e7],
...                      "time_s": [6e-6, 15e-6, 105e-6, 1005e-6]})
>>> setting = Setting(Rates(100e9, 20e9, 2, 4.0, 4.0), "toy", "fp32")
>>> model = Additive().fitted({"elementwise": checked(rows).of("elementwise")}, setting, seed=0)
>>> {name: round(factor, 2) for name, factor in model.factors["elementwise"].items()}
{'call': 5.0, 'values': 2.0}
"""

from __future__ import annotations

from dataclasses import field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from moesim.kernels import ops, smooth
from moesim.kernels.domain import Domain, Domains, Names, in_ranges
from moesim.kernels.features import axes, rows_of
from moesim.kernels.rates import Rates, Setting
from moesim.kernels.stored import Stored
from moesim.kernels.terms import terms
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.kernels.measurements import Points

_ROUNDS = 20       # of weighing rows anew: the sum is to be right for most, not for the mean
_SMALL = 0.02      # relative error below which a row does not count more any more


class _Learned(NamedTuple):
    """Of one operator: measured sizes, their weights, the length of each size, and a tree of the sizes."""

    sizes: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray
    tree: object


@part
class Additive:
    """``factors``: of every operator and term (``moesim.kernels.terms``), how much longer it takes than at the peak.

    ``data``: measured points with their share in the correction, and lengths over which it changes (written by
    ``moesim calibrate``); none: the sum alone. ``near``: octaves from a measured point up to which a shape counts as
    measured (assumed). ``fitted_on``, ``fitted_dtypes``, ``measured``: where, and in which ranges.
    """

    factors: dict[str, dict[str, float]] = field(default_factory=dict)
    data: Stored = Stored()
    near: float = 1.5
    fitted_on: str = ""
    fitted_dtypes: Names = ()
    measured: Domains = field(default_factory=dict)

    def time_s(self, rates: Rates, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return seconds of *op*: the sum of its terms, corrected near measured points."""
        seconds = self._sum(rates, op, shapes)
        learned = self._learned(op)
        if learned is None:
            return seconds
        asked = rows_of(axes(op, shapes), seconds.shape)
        correction = smooth.value(learned.sizes, learned.weights, learned.lengths, asked)
        return seconds * np.exp(correction.reshape(seconds.shape))

    def domain(self, op: str) -> Domain | None:
        """Return the ranges of the measured shapes of *op*; None if it was not measured."""
        return self.measured.get(op)

    def inside(self, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return where *shapes* lie in those ranges and near a measured point."""
        ranged, learned = in_ranges(self.domain(op), op, shapes), self._learned(op)
        if learned is None or not np.any(ranged):
            return ranged
        sizes = axes(op, shapes)
        shape = np.broadcast_shapes(ranged.shape, *(size.shape for size in sizes.values()))
        distance, _ = learned.tree.query(rows_of(sizes, shape))  # type: ignore[attr-defined]
        return ranged & (distance <= self.near).reshape(shape)

    def fitted(self, points: dict[str, Points], setting: Setting, seed: int) -> Additive:
        """Return the model with factors and a correction that fit *points* of each operator, products first."""
        found, tables = replace(self, fitted_on=setting.device, fitted_dtypes=(setting.dtype,)), []
        for op in sorted(points, key=list(ops.OPS).index):
            rows = points[op]
            shapes = rows.complete(setting.rates)
            found = replace(found, factors=found.factors | {op: found._factors(rows, shapes, setting.rates)},
                            measured=found.measured | {op: rows.ranges(setting.rates)})
            missed = np.log(rows.seconds / np.broadcast_to(found._sum(setting.rates, op, shapes), rows.seconds.shape))
            sizes = rows_of(axes(op, shapes), rows.seconds.shape)
            lengths, weights = smooth.fit(sizes, missed, seed)
            tables.append(pd.DataFrame({"op": op, "sizes": list(sizes), "weight": weights,
                                        "lengths": [lengths] * len(weights)}))
            found = replace(found, data=Stored(table=pd.concat(tables, ignore_index=True)))
        return found

    def _sum(self, rates: Rates, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return the sum of the terms of *op*; its roofline if nothing was measured."""
        if op not in self.factors:
            return np.maximum(ops.flop(op, shapes) / rates.flop_per_s, ops.moved(op, shapes, rates) / rates.bandwidth)
        found = terms(op, shapes, rates, partial(self.time_s, rates, "gemm"))
        return np.asarray(sum(factor * found[name] for name, factor in self.factors[op].items()))

    def _factors(self, rows: Points, shapes: ops.Shapes, rates: Rates) -> dict[str, float]:
        """Return factors >= 0 that make the mean of |sum / measured - 1| small, by least squares weighed anew."""
        from scipy.optimize import nnls

        found = terms(rows.op, shapes, rates, partial(self.time_s, rates, "gemm"))
        shares = np.stack([np.broadcast_to(t, rows.seconds.shape) for t in found.values()], axis=-1)
        shares = shares / rows.seconds[:, None]
        scale = np.maximum(shares.max(axis=0), np.finfo(float).tiny)
        weight = np.ones(len(shares))
        for _ in range(_ROUNDS):
            factors, _ = nnls(shares / scale * weight[:, None], weight)
            weight = 1 / np.sqrt(np.maximum(np.abs(shares / scale @ factors - 1), _SMALL))
        return {name: float(f"{v:.4g}") for name, v in zip(found, factors / scale, strict=True)}  # files stay readable

    def _learned(self, op: str) -> _Learned | None:
        return self.data.once(op, lambda table: _of(table[table["op"] == op])) if self.data else None


def _of(table: pd.DataFrame) -> _Learned | None:
    from scipy.spatial import cKDTree

    if table.empty:
        return None
    sizes = np.array(table["sizes"].tolist(), dtype=float)
    return _Learned(sizes, table["weight"].to_numpy(float), np.asarray(table["lengths"].iloc[0], float), cKDTree(sizes))
