"""Predicted against measured kernel times, a colour per operator."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moesim.plots import _style as style


def kernel_prediction(table: pd.DataFrame, ax: Axes | None = None, *, title: str = "{answer}") -> Axes:
    """Draw each measured time and its prediction, with the line where they are equal and those a factor 1.5 off.

    *table*: rows of ``kernels.fitting.compared`` (op, split, measured_s, predicted_s); rows that were fitted are left
    out if there are others.
    """
    table = style.held_out(style.need(table, ("op", "measured_s", "predicted_s"), "kernel_prediction"))
    ax = style.axes(ax, (6.0, 5.2))
    colour = style.colours(table["op"])
    for op, rows in table.groupby("op", sort=False):
        ax.scatter(rows["measured_s"] * 1e6, rows["predicted_s"] * 1e6, s=5, alpha=0.35, lw=0, color=colour[op],
                   rasterized=True)
    ends = np.array([table["measured_s"].min(), table["measured_s"].max()]) * 1e6
    for factor, line in ((1.0, "-"), (1.5, ":"), (1 / 1.5, ":")):
        ax.plot(ends, ends * factor, line, color=style.INK, lw=0.8)
    ax.set(xscale="log", yscale="log")
    for i, op in enumerate(colour):
        ax.annotate(str(op).replace("_", " "), (0.03, 0.95 - 0.06 * i), xycoords="axes fraction", color=colour[op],
                    fontsize=style.NORMAL)
    close = 100 * (np.abs(np.log(table["predicted_s"] / table["measured_s"])) < np.log(1.1)).mean()
    return style.finish(ax, style.answer(title, f"{close:.0f} % of the predicted kernel times are within 10 %"),
                        "measured (µs)", "predicted (µs)")
