"""Seconds of the pieces of a layer as somebody measured them on one device, for one model: tables, interpolated.

Where kernels are priced by their shapes (``moesim.kernels``), a profile is asked by numbers of tokens alone.

>>> curve = Curve(np.array([1.0, 2.0, 4.0]), np.array([1e-6, 2e-6, 4e-6]))
>>> curve(np.array([0, 3, 8])).tolist()      # nothing takes no time; beyond the last point the last slope goes on
[0.0, 3e-06, 8e-06]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from moesim.kernels.mixed_attention import MixedAttention


@dataclass(frozen=True)
class Curve:
    """Seconds against a count: linear between points ``at``, ascending, and beyond the last with its slope."""

    at: np.ndarray
    seconds: np.ndarray

    def __call__(self, count: np.ndarray) -> np.ndarray:
        """Return the seconds of every entry of *count*; none take no time."""
        count = np.asarray(count, float)
        found = np.interp(count, self.at, self.seconds)
        beyond = count > self.at[-1]
        if beyond.any():
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.at[-1] - self.at[-2])
            found = found + np.where(beyond, count - self.at[-1], 0.0) * slope
        return np.where(count > 0, found, 0.0)

    def __add__(self, other: Curve) -> Curve:
        at = np.union1d(self.at, other.at)
        return Curve(at, self(at) + other(at))

    def times(self, factor: float) -> Curve:
        """Return *factor* times this curve."""
        return Curve(self.at, factor * self.seconds)


@dataclass(frozen=True)
class ExpertTable:
    """Seconds of a layer's experts: ``seconds`` [tokens, active experts], the axes ascending.

    A device of several has the tokens that give as many rows: its rows over top_k.
    """

    tokens: np.ndarray
    active: np.ndarray
    seconds: np.ndarray

    def __call__(self, tokens: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Return the seconds for *tokens* on *active* experts: linear in both, clipped to the table's least."""
        seconds = np.empty(np.shape(tokens))
        _interpolate(self.tokens, self.active, self.seconds, np.asarray(tokens, float), active, seconds)
        return seconds


@njit(cache=True)
def _interpolate(rows, columns, table, tokens, active, seconds):  # type: ignore[no-untyped-def]
    """Fill *seconds* from *table* [rows, columns] at *tokens* and *active* (all of one shape)."""
    for at, t in np.ndenumerate(tokens):
        seconds[at] = 0.0
        if active[at] > 0:
            i, u = _place(rows, t)
            j, v = _place(columns, active[at])
            low = table[i, j] * (1 - v) + table[i, j + 1] * v
            high = table[i + 1, j] * (1 - v) + table[i + 1, j + 1] * v
            seconds[at] = low * (1 - u) + high * u


@njit(cache=True)
def _place(axis, value):  # type: ignore[no-untyped-def]
    """Return the entry of *axis* below *value*, and where it lies to the next (0 to 1; beyond 1 above the last)."""
    value = max(value, axis[0])
    lower = min(max(np.searchsorted(axis, value, side="right") - 1, 0), len(axis) - 2)
    return lower, (value - axis[lower]) / (axis[lower + 1] - axis[lower])


@dataclass(frozen=True)
class LayerProfile:
    """A model's pieces on one device of a tensor-parallel group.

    By tokens: ``opening`` (embedding, last norm; once per step), ``projections`` (of an attention block, with its
    norm), ``feed_forward`` (of a layer without experts, with its norm), ``expert_norm`` (of a layer with experts). By
    sequences: ``head`` (output head, sampler). ``experts``: None if the model has none. ``source``: in words.
    """

    source: str
    opening: Curve
    projections: Curve
    feed_forward: Curve | None
    expert_norm: Curve
    head: Curve
    attention: MixedAttention
    experts: ExpertTable | None
