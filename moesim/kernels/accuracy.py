"""How far predicted times are from measured ones."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from moesim.config import Spec


class Accuracy(Spec):
    """Absolute relative error in percent, signed bias (median of predicted / measured - 1, percent), rows compared."""

    median: float = Field(ge=0)
    mean: float = Field(ge=0)
    p90: float = Field(ge=0)
    bias: float
    rows: int = Field(gt=0)


class Noise(Spec):
    """How far two measurements of one point are from each other, percent: median, mean, p90; ``source``: which two."""

    median: float = Field(ge=0)
    mean: float = Field(ge=0)
    p90: float = Field(ge=0)
    source: str


def accuracy(predicted_s: np.ndarray, measured_s: np.ndarray) -> Accuracy:
    """Compare times.

    >>> accuracy(np.array([1.1, 2.0, 2.7]), np.array([1.0, 2.0, 3.0])).median
    10.0
    """
    relative = 100 * (predicted_s / measured_s - 1)
    size = np.abs(relative)
    found = (np.median(size), size.mean(), np.percentile(size, 90), np.median(relative))
    median, mean, p90, bias = (round(float(value), 2) for value in found)
    return Accuracy(median=median, mean=mean, p90=p90, bias=bias, rows=len(size))
