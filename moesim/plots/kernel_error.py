"""Error of predicted kernel times against their size: where a model is wrong, and to which side."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moesim.plots import _style as style


def kernel_error(table: pd.DataFrame, ax: Axes | None = None, *, title: str = "{answer}") -> Axes:
    """Draw predicted / measured - 1 in percent per octave of measured time: median (line), middle 80 % (band).

    *table*: rows of ``kernels.fitting.compared`` (op, split, measured_s, predicted_s).
    """
    table = style.held_out(style.need(table, ("op", "measured_s", "predicted_s"), "kernel_error"))
    ax = style.axes(ax)
    colour = style.colours(table["op"])
    error = 100 * (table["predicted_s"] / table["measured_s"] - 1)
    octave = np.round(np.log2(table["measured_s"])).rename("octave")
    for op in colour:
        mine = table["op"] == op
        grouped = error[mine].groupby(octave[mine])
        x = 2.0 ** np.array(sorted(grouped.groups), dtype=float) * 1e6
        ax.fill_between(x, grouped.quantile(0.1), grouped.quantile(0.9), color=colour[op], alpha=0.15, lw=0)
        ax.plot(x, grouped.median(), color=colour[op], lw=1.6, marker="o", ms=3)
    ax.axhline(0, color=style.INK, lw=0.8)
    ax.set_xscale("log")
    for i, op in enumerate(colour):
        ax.annotate(str(op).replace("_", " "), (0.97, 0.93 - 0.07 * i), xycoords="axes fraction", ha="right",
                    color=colour[op], fontsize=style.NORMAL)
    median = error.abs().groupby(table["op"]).median()
    found = (f"Median error {median.min():.1f} to {median.max():.1f} %, largest for "
             f"{str(median.idxmax()).replace('_', ' ')}")
    return style.finish(ax, style.answer(title, found), "measured (µs)", "predicted / measured - 1 (%)")
