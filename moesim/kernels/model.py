"""A kernel model bound to a processor: seconds of any operator, and whether its shape was ever measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moesim import registry
from moesim.kernels import ops
from moesim.kernels.domain import Domain
from moesim.kernels.rates import Processor, Rates, Setting, rates

if TYPE_CHECKING:
    from moesim.kernels.measurements import Points

class Model(Protocol):
    """The part behind a ``KernelModel``: predicts times from rates and complete shapes (``ops.shapes``) alone.

    ``fitted_on``: part of the name of the device that its constants were fitted on ("" if none were);
    ``fitted_dtypes``: the weights' dtypes in those measurements.
    """

    @property
    def fitted_on(self) -> str: ...

    @property
    def fitted_dtypes(self) -> tuple[str, ...]: ...

    def time_s(self, rates: Rates, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return seconds."""

    def domain(self, op: str) -> Domain | None:
        """Return the range of each shape in which *op* was measured, or None if it never was."""

    def inside(self, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return where *shapes* lie in the measured domain, which may be narrower than its ranges."""

    def fitted(self, points: dict[str, Points], setting: Setting, seed: int) -> Model:
        """Return the model that fits the *points* of each operator."""


@dataclass(frozen=True)
class KernelModel:
    """Predict how long operators take on one processor. Make one with ``bind`` or ``load``."""

    rates: Rates
    model: Model
    dtype: str = "bf16"
    info: dict[str, Any] = field(default_factory=dict, compare=False)
    device: Any = field(default=None, compare=False)

    def time_s(self, op: str, **shapes: Any) -> np.ndarray:
        """Return the seconds of *op* for every row of *shapes*; exactly 0 where there is nothing to do.

        Operators and shape names: ``moesim.kernels.ops``. Raises ``ValueError`` for unknown, missing or negative ones.
        """
        complete = ops.shapes(op, shapes, self.rates)
        idle = ops.idle(op, complete)
        with np.errstate(divide="ignore", invalid="ignore"):  # rows without work may divide by their zeros
            seconds = self.model.time_s(self.rates, op, complete)
        return np.where(idle, 0.0, seconds)

    def domain(self, op: str) -> Domain | None:
        """Return the measured range of each shape of *op*; None if the model was not fitted to measurements."""
        return self.model.domain(op)

    def in_domain(self, op: str, **shapes: Any) -> np.ndarray:
        """Return, for every row, whether its shapes lie inside the measured domain (rows without work do)."""
        complete = ops.shapes(op, shapes, self.rates)
        return ops.idle(op, complete) | self.model.inside(op, complete)


def bind(processor: Processor, model: Any = "tile", dtype: str = "bf16") -> KernelModel:
    """Return the kernel *model* (a part, its name, or a mapping) on *processor* for weights stored as *dtype*."""
    return KernelModel(rates(processor, dtype), registry.make("kernel_model", model), dtype)
