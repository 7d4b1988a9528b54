"""How many points are needed, and which: error against the number of fitted points, and of anchors.

Every fit begins with a stranger's constants (``setting.stranger``).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import setting

from moesim.kernels import fitting
from moesim.kernels.features import axes, rows_of
from moesim.kernels.measurements import Points

POINTS = (30, 60, 125, 250, 500, 1000, 2000, 0)  # 0: all that are for fitting
SHARE = 0.2   # of the points that are anchors at the extremes, where there are some
FEW = 300     # small shapes to which anchors are added
ANCHORS = (0, 10, 30, 100, 300)


def tasks() -> list[tuple[str, str, str, str]]:
    """Return (what, operator, how many, seed): the largest first, as they take longest."""
    curve = [(design, op, str(n), str(seed)) for n in sorted(POINTS, key=lambda n: n or 10**6, reverse=True)
             for op in setting.OPERATORS for design in ("random", "extremes") for seed in range(seeds(n))
             if n or design == "random"]
    return curve + [("anchors", op, str(n), str(seed)) for op in setting.OPERATORS for n in ANCHORS
                    for seed in range(seeds(FEW))]


def seeds(count: int) -> int:
    """Return how many draws are tried of *count* points."""
    return 1 if count == 0 else 2 if count >= 1000 else 3


def table(folder: str, what: str, op: str, count: str, seed: str) -> pd.DataFrame:
    """Return the errors of tile and residual after one fit, on all held-out rows and on the extreme ones."""
    rows, rng = setting.points(folder, op), np.random.default_rng([int(seed), int(count)])
    known = fitting.split(rows) == "fit"
    if what == "anchors":
        small = setting.is_small(rows)
        fit = setting.among(known & small, FEW, rng) | setting.among(known & ~small, int(count), rng)
        tests = {"large": ~known & ~small}
    else:
        fit = drawn(rows, known, int(count), rng, SHARE if what == "extremes" else 0.0)
        tests = {"all": ~known, "extreme": ~known & setting.is_extreme(rows)}
    models = setting.fitted(rows.take(fit), int(seed))
    common = {"what": what, "op": op, "points": int(count) if what == "anchors" else int(fit.sum()), "seed": int(seed),
              "kernel_s": rows.seconds[fit].sum()}
    return pd.DataFrame([{**common, "tested": tested, "model": name, **setting.error(kernels, rows.take(test))}
                         for tested, test in tests.items() for name, kernels in models.items()])


def drawn(rows: Points, known: np.ndarray, count: int, rng: np.random.Generator, share: float) -> np.ndarray:
    """Return which *count* of the *known* rows are fitted: a *share* of them corners of the domain, the rest any."""
    if count == 0:
        return known
    fit = np.zeros_like(known)
    if share:
        candidates = np.flatnonzero(known)
        fit[candidates[corners(sizes_of(rows.take(candidates)), round(share * count), rng)]] = True
    return fit | setting.among(known & ~fit, count - int(fit.sum()), rng)


def sizes_of(rows: Points) -> np.ndarray:
    """Return the sizes of *rows*, base-2 logarithms [rows, sizes]."""
    return rows_of(axes(rows.op, rows.complete(setting.setting().rates)), rows.seconds.shape)


def corners(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return *count* rows of *sizes*, each the one furthest from those before it: corners, then edges, then inside."""
    scaled = (sizes - sizes.mean(axis=0)) / np.maximum(sizes.std(axis=0), 1e-9)
    chosen = [int(np.argmax((scaled**2).sum(axis=1) + 1e-9 * rng.random(len(scaled))))]
    nearest = np.full(len(scaled), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, ((scaled - scaled[chosen[-1]])**2).sum(axis=1))
        chosen.append(int(np.argmax(nearest)))
    return np.array(chosen)
