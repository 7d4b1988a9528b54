"""Roofline at reachable rates: a share of the bandwidth, and a roof of power (processors in memory).

A product that reads its weights once is held by bandwidth, then by arithmetic; a cap of power holds it earlier:

>>> from moesim.kernels.rates import Rates
>>> from moesim.kernels.model import KernelModel
>>> rates = Rates(flop_per_s=100e12, bandwidth=13e12, multiprocessors=160, weight_bytes=2.0, value_bytes=2.0)
>>> for watts in (None, 40.0):
...     kernels = KernelModel(rates, Reachable(efficiency=0.75, watts=watts, byte_j=14e-12, flop_j=0.23e-12))
...     print([f"{t * 1e6:.1f}" for t in kernels.time_s("gemm", m=[1, 8, 64], n=4096, k=4096)])
['3.4', '3.5', '21.5']
['11.9', '13.3', '24.5']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.kernels import ops
from moesim.kernels.rates import Rates, Setting
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.kernels.measurements import Points


@part
class Reachable:
    """Take the slowest of FLOP / peak, bytes / (bandwidth * ``efficiency``) and joules / ``watts``.

    ``byte_j``, ``flop_j``: joules of a byte between memory and processor, and of a FLOP; ``watts``: what these may draw
    (None: no cap). A cap in joules holds any mix of reading and computing; designs that state theirs as a slower rate
    of column accesses (AttAcc, ASPLOS'24) are the case without FLOP.
    """

    efficiency: Annotated[float, Field(gt=0, le=1)] = 1.0
    watts: Annotated[float, Field(gt=0)] | None = None
    byte_j: Annotated[float, Field(ge=0)] = 0.0
    flop_j: Annotated[float, Field(ge=0)] = 0.0

    fitted_on: ClassVar[str] = ""  # nowhere
    fitted_dtypes: ClassVar[tuple[str, ...]] = ()

    def time_s(self, rates: Rates, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return the time of the slowest of the three, seconds."""
        flop, moved = ops.flop(op, shapes), ops.moved(op, shapes, rates)
        seconds = np.maximum(flop / rates.flop_per_s, moved / (rates.bandwidth * self.efficiency))
        if self.watts is None:
            return seconds
        return np.maximum(seconds, (flop * self.flop_j + moved * self.byte_j) / self.watts)

    def domain(self, op: str) -> None:
        """Return None: nothing was measured."""

    def inside(self, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return nowhere."""
        return np.asarray(False)

    def fitted(self, points: dict[str, Points], setting: Setting, seed: int) -> Reachable:
        """Return itself: it has no constants to fit."""
        return self
