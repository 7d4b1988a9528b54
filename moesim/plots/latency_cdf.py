"""Latency of requests as cumulative distributions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moesim.plots import _style as style


def latency_cdf(table: pd.DataFrame, ax: Axes | None = None, *, column: str = "tpot_s",
                title: str = "{answer}") -> Axes:
    """Draw the share of requests whose *column* is at most x, a curve per placement and mode.

    *table*: request tables (``Result.requests``) of one run or more, with placement and/or mode added; *column* is
    ttft_s, tpot_s or e2e_s.
    """
    style.need(table, (column,), "latency_cdf")
    table = table.assign(_name=style.labels(table)).dropna(subset=[column])
    style.need(table, (column,), "latency_cdf")
    divisor, name = style.scale(table[column], column)
    curves = {str(key): np.sort(table.loc[table["_name"] == key, column].to_numpy(float)) / divisor
              for key in table["_name"].unique()}
    ax = style.axes(ax)
    colour = style.colours(curves)
    for key, values in curves.items():
        ax.step(np.concatenate([values[:1], values]), np.linspace(0, 100, len(values) + 1), where="post",
                color=colour[key], lw=1.8)
    _names(ax, curves, colour)
    ax.set_ylim(0, 101)
    style.finish(ax, style.answer(title, _title(curves, column)), name, "requests (%)")
    return ax


def _names(ax: Axes, curves: dict[str, np.ndarray], colour: dict[str, str]) -> None:
    """Name the curves at the right edge, from fast (top) to slow, each with a line to its curve at that height."""
    slow = sorted(curves, key=lambda key: float(np.median(curves[key])))
    for i, key in enumerate(slow):
        level = 92 - 84 * (i + 0.5) / len(slow)
        ax.annotate(key, (float(np.percentile(curves[key], level)), level), (1.02, level / 101),
                    textcoords="axes fraction", va="center", fontsize=style.NORMAL, color=colour[key],
                    arrowprops={"arrowstyle": "-", "lw": 0.7, "color": colour[key], "shrinkA": 2, "shrinkB": 0},
                    annotation_clip=False)


def _title(curves: dict[str, np.ndarray], column: str) -> str:
    words = style.WORDS.get(column, column)
    median = {key: float(np.median(values)) for key, values in curves.items()}
    fast, slow = min(median, key=median.__getitem__), max(median, key=median.__getitem__)
    if fast == slow:
        return f"Half of the requests of {fast} have a {words} of {median[fast]:.3g} or less"
    return f"Median {words}: {fast} is {1 - median[fast] / median[slow]:.0%} below {slow}"
