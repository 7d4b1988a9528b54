"""One latency of every request, simulated against measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moesim.plots import _style as style

_WIDE = 30.0  # largest over smallest time from which axes are logarithmic


def run_scatter(table: pd.DataFrame, ax: Axes | None = None, *, metric: str = "ttft", title: str = "{answer}") -> Axes:
    """Draw a point per request, the line where both are equal, and those 10 % off.

    *table*: ``<metric>_measured_s`` and ``<metric>_simulated_s`` of each request.
    """
    columns = [f"{metric}_measured_s", f"{metric}_simulated_s"]
    known = style.need(table, columns, "run_scatter")[columns].dropna()
    style.need(known, columns, "run_scatter")
    divisor, name = style.scale(known.to_numpy(), f"{metric}_s")
    measured, simulated = known.to_numpy(float).T / divisor
    ax = style.axes(ax, (5.4, 5.0))
    positive = known.to_numpy()[known.to_numpy() > 0] / divisor
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (0.0, 1.0)
    if high > _WIDE * low > 0:
        ax.set(xscale="log", yscale="log")
    low, high = 0.9 * low, 1.1 * high
    for factor, line in ((1.0, "-"), (1.1, ":"), (0.9, ":")):
        ax.plot([low, high], [low * factor, high * factor], line, color=style.INK, lw=0.8)
    ax.scatter(measured, simulated, s=12, alpha=0.6, lw=0, color=style.BLUE)
    ax.set(xlim=(low, high), ylim=(low, high))
    close = float(np.mean(np.abs(simulated - measured) <= 0.1 * measured))
    words = style.WORDS.get(f"{metric}_s", metric)
    return style.finish(ax, style.answer(title, f"{close:.0%} of the requests: simulated {words} within 10%"),
                        f"measured {name}", f"simulated {name}")
