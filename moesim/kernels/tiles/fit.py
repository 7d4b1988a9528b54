"""Fit the constants of tile formulas to measured times.

Minimises the mean |log(predicted / measured)| by Nelder-Mead over the logarithms of the constants, on rows drawn
evenly over octaves of time: small launch-bound rows, which are most of any table, would decide everything otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize

from moesim.kernels.measurements import Points
from moesim.units import text

SECONDS = {"launch", "split", "sequence"}
# Upper limits of shares. Memory: 0.9, the best single kernel of the H200 tables (4.29 of 4.8 TB/s).
LIMITS = {"compute": 1.0, "wave": 1.0, "stream": 0.9, "write": 0.9, "elementwise": 0.9, "alone": 0.9, "unaligned": 1.0}
FIXED = {"split_below", "unpack"}  # FlashAttention-3's rule for splitting; needs weights of less than a byte
PER_OCTAVE = 300
_RESTARTS = 3          # a collapsed simplex is not a minimum
_STEPS = 450           # evaluations of one start
_TRIES = 60            # random starts tried, the best of which is begun with: another machine may be far from H200
_SPREAD = 1.5          # of their logarithms
_PULL = 1e-3           # error per squared logarithm: constants that the points say nothing about stay where they were


def constants_of(start: Any, predict: Callable[[Any, Points], np.ndarray], points: Points, seed: int) -> Any:
    """Return the constants, a part like *start*, with which *predict* comes nearest to *points*."""
    names = [f.name for f in dataclasses.fields(start) if f.name not in FIXED and _moves(f.name, points)]
    origin = np.array([getattr(start, n) for n in names])
    points = points.take(even(points.seconds, seed))

    def constants(z: np.ndarray) -> Any:
        short = (float(f"{v:.4g}") for v in origin * np.exp(z))  # files stay readable
        values = {n: min(v, LIMITS.get(n, np.inf)) for n, v in zip(names, short, strict=True)}
        return dataclasses.replace(start, **{n: text(v, "second") if n in SECONDS else v for n, v in values.items()})

    def loss(z: np.ndarray) -> float:
        missed = np.abs(np.log(predict(constants(z), points) / points.seconds)).mean()
        return float(missed + _PULL * (z**2).mean())

    rng = np.random.default_rng(seed)
    tries = np.vstack([np.zeros(len(names)), rng.normal(0, _SPREAD, (_TRIES, len(names)))])
    best = min(tries, key=loss)
    for _ in range(_RESTARTS):
        simplex = best + 0.3 * np.vstack([np.zeros(len(names)), np.eye(len(names))])
        best = minimize(loss, best, method="Nelder-Mead", options={
            "maxfev": _STEPS, "initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-5}).x
    return constants(best)


def _moves(name: str, points: Points) -> bool:
    """Return whether *points* say anything about the constant *name*."""
    if name != "remote":
        return True
    return "rows" in points.shapes and bool((points.shapes["rows"] > points.shapes["tokens_per_expert"].sum(-1)).any())


def even(seconds: np.ndarray, seed: int) -> np.ndarray:
    """Return at most ``PER_OCTAVE`` rows of each octave of time."""
    rng = np.random.default_rng(seed)
    octave = np.floor(np.log2(seconds))
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(octave == o))[:PER_OCTAVE]
                                   for o in np.unique(octave)]))
