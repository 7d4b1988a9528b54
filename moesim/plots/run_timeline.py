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
    words = style.WORDS.get(quantity, quantity).removesuffix(" (%)")
    found = f"{words[0].upper()}{words[1:]}: {_typical(sides['measured'], sides['simulated'], quantity, divisor)}"
    return style.finish(ax, style.answer(title, found), "time since the first arrival (s)", name)


def _typical(measured: pd.DataFrame, simulated: pd.DataFrame, quantity: str, divisor: float) -> str:
    """Return in words how far apart the two are, in the ticks in which one is not 0."""
    both = pd.concat([rows.set_index("time_s")[quantity] for rows in (measured, simulated)], axis=1, join="inner")
    busy = both.to_numpy(float)[(both != 0).any(axis=1)] / divisor
    if not len(busy):
        return "never above 0"
    numbers = np.median(np.abs(np.diff(busy))), busy[:, 0].mean()
    error, mean = (f"{number:,.0f}" if number >= 100 else f"{number:.2g}" for number in numbers)
    return f"median error {error}, mean {mean}"
