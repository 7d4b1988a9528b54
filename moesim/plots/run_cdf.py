"""One latency of a measured run and of its simulation, as cumulative distributions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moesim.plots import _style as style


def run_cdf(table: pd.DataFrame, ax: Axes | None = None, *, column: str = "ttft_s", title: str = "{answer}") -> Axes:
    """Draw the share of requests whose *column* is at most x, measured and simulated.

    *table*: source ("measured" or "simulated") and *column* of each request.
    """
    measured, simulated = (np.sort(rows[column].to_numpy(float)) for rows in style.sides(table, column, "run_cdf"))
    divisor, name = style.scale(np.concatenate([measured, simulated]), column)
    ax = style.axes(ax)
    for values, label, colour, line in ((measured, "measured", style.INK, "-"),
                                        (simulated, "simulated", style.VERMILION, "--")):
        ax.step(np.concatenate([values[:1], values]) / divisor, np.linspace(0, 100, len(values) + 1), line,
                where="post", color=colour, lw=1.8, label=label)
    ax.legend(loc="lower right", frameon=False, fontsize=style.NORMAL)
    ax.set_ylim(0, 101)
    gap = _gap(measured, simulated)
    words = style.WORDS.get(column, column)
    found = f"{words[0].upper()}{words[1:]}: the two curves are at most {gap:.0%} of the requests apart"
    return style.finish(ax, style.answer(title, found), name, "requests (%)")


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest vertical distance of the two distributions (Kolmogorov and Smirnov's)."""
    at = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max())
