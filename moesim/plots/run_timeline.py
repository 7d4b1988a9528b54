"""How an engine was doing over time, measured and simulated."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moesim.plots import _style as style


def run_timeline(table: pd.DataFrame, ax: Axes | None = None, *, quantity: str = "output_tok_per_s",
                 title: str = "{answer}") -> Axes:
    """Draw *quantity* over time, measured and simulated.

    *table*: source ("measured" or "simulated"), time_s (end of a tick) and *quantity*: output_tok_per_s,
    prompt_tok_per_s, running, waiting or kv_used.
    """
    style.need(table, ("time_s",), "run_timeline")
    sides = dict(zip(("measured", "simulated"), style.sides(table, quantity, "run_timeline"), strict=True))
    ax = style.axes(ax, (style.WIDTH, 2.8))
    divisor, name = style.scale(table[quantity], quantity)
    for (label, rows), colour, line in zip(sides.items(), (style.INK, style.VERMILION), ("-", "--"), strict=True):
        ax.plot(rows["time_s"], rows[quantity] / divisor, line, color=colour, lw=1.6, label=label)
    ax.set_ylim(bottom=0)
    ax.margins(x=0.01)
    ax.legend(loc="best", frameon=False, fontsize=style.NORMAL)
    means = [float(np.mean(rows[quantity])) for rows in sides.values()]
    words = style.WORDS.get(quantity, quantity).removesuffix(" (%)")
    error = f" ({means[1] / means[0] - 1:+.1%})" if means[0] > 0 else ""
    shown = [f"{mean / divisor:,.3g}" if mean / divisor < 1000 else f"{mean / divisor:,.0f}" for mean in means]
    found = f"{words[0].upper()}{words[1:]}: {shown[0]} measured, {shown[1]} simulated{error}, mean over time"
    return style.finish(ax, style.answer(title, found), "time since the first arrival (s)", name)
