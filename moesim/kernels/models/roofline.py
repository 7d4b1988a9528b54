"""Spec-sheet roofline: the larger of FLOP / peak and bytes / bandwidth; a lower bound, far off for small kernels.

It knows neither launches nor tiles, so one token costs what the weights cost and nothing else:

>>> from moesim.kernels import bind
>>> from moesim.kernels.rates import Rates, Setting
>>> from moesim.kernels.model import KernelModel
>>> kernels = KernelModel(Rates(1000e12, 4e12, 132, 2.0, 2.0), Roofline())
>>> [f"{t * 1e6:.1f}" for t in kernels.time_s("gemm", m=[1, 1000, 100_000], n=1000, k=1000)]
['0.5', '2.0', '200.0']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from moesim.kernels import ops
from moesim.kernels.rates import Rates, Setting
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.kernels.measurements import Points


@part
class Roofline:
    """Take every operator at the peak rates of the data sheet."""

    fitted_on: ClassVar[str] = ""  # nowhere
    fitted_dtypes: ClassVar[tuple[str, ...]] = ()

    def time_s(self, rates: Rates, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return max(FLOP / peak, bytes / bandwidth), seconds."""
        return np.maximum(ops.flop(op, shapes) / rates.flop_per_s, ops.moved(op, shapes, rates) / rates.bandwidth)

    def domain(self, op: str) -> None:
        """Return None: nothing was measured."""

    def inside(self, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return nowhere."""
        return np.asarray(False)

    def fitted(self, points: dict[str, Points], setting: Setting, seed: int) -> Roofline:
        """Return itself: it has no constants."""
        return self
