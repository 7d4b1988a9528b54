"""Seconds of one operator on one processor.

``bind`` joins a processor of a machine with a kernel model (a part in ``models/``), ``load`` reads both
from a file of ``hw_configs/kernels``; either way ``KernelModel.time_s(op, **shapes)`` predicts, one row or
many. Operators and shape names are in ``moesim.kernels.ops``.

>>> from moesim.kernels import load
>>> kernels = load("h200-tile")
>>> [f"{t * 1e6:.0f} us" for t in kernels.time_s("gemm", m=[1, 256, 4096], n=4096, k=4096)]
['12 us', '15 us', '177 us']
"""

from typing import TYPE_CHECKING, Any

from moesim.kernels.library import load
from moesim.kernels.model import KernelModel, bind

if TYPE_CHECKING:
    from moesim.kernels.fitting import fit
    from moesim.kernels.measurements import read

__all__ = ["KernelModel", "bind", "fit", "load", "read"]


def __getattr__(name: str) -> Any:  # pandas and scipy are loaded when something is fitted
    if name == "fit":
        from moesim.kernels import fitting
        return fitting.fit
    if name == "read":
        from moesim.kernels import measurements
        return measurements.read
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
