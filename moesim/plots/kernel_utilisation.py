"""How much of the roofline kernels reach, measured and predicted, against the time that the roofline says."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moesim.plots import _style as style


def kernel_utilisation(table: pd.DataFrame, ax: Axes | None = None, *, title: str = "{answer}") -> Axes:
    """Draw roofline / time in percent per octave of roofline time: measured (line, quartiles) and predicted (dashes).

    *table*: rows of ``kernels.fitting.compared`` (op, split, measured_s, predicted_s, roofline_s).
    """
    table = style.held_out(style.need(table, ("op", "measured_s", "predicted_s", "roofline_s"), "kernel_utilisation"))
    ax = style.axes(ax)
    colour = style.colours(table["op"])
    for op, rows in table.groupby("op", sort=False):
        octave = np.round(np.log2(rows["roofline_s"])).rename("octave")
        measured = (100 * rows["roofline_s"] / rows["measured_s"]).groupby(octave)
        predicted = (100 * rows["roofline_s"] / rows["predicted_s"]).groupby(octave).median()
        x = 2.0 ** predicted.index.to_numpy() * 1e6
        ax.fill_between(x, measured.quantile(0.25), measured.quantile(0.75), color=colour[op], alpha=0.15, lw=0)
        ax.plot(x, measured.median(), color=colour[op], lw=1.6, marker="o", ms=3)
        ax.plot(x, predicted, "--", color=colour[op], lw=1.2)
    ax.set(xscale="log", ylim=(0, None))
    for i, op in enumerate(colour):
        ax.annotate(str(op).replace("_", " "), (0.03, 0.93 - 0.07 * i), xycoords="axes fraction", color=colour[op],
                    fontsize=style.NORMAL)
    best = (100 * table["roofline_s"] / table["measured_s"]).groupby(table["op"]).median()
    worst = str(best.idxmin()).replace("_", " ")
    found = f"Half of the {worst} kernels reach {best.min():.0f} % of the roofline or less"
    return style.finish(ax, style.answer(title, found), "time that the roofline says (µs)",
                        "roofline / time (%), measured, predicted (dashed)")
