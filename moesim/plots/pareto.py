"""What balance costs: load imbalance against traffic, with the points that nothing beats in both."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moesim.plots import _labels
from moesim.plots import _style as style


def pareto(table: pd.DataFrame, ax: Axes | None = None, *, x: str = "load_max_over_mean", y: str = "cross_top1",
           label: str | None = None, zero: bool = False, title: str = "{answer}") -> Axes:
    """Draw each row of *table* at (*x*, *y*), both better when smaller, with its name, and the Pareto front.

    *label* is the column with the names (default: placement and mode, or the axes of a sweep). With *zero* the y axis
    begins at 0. Columns that end in _s or _bytes are SI and scaled for the axis. Raises ``ValueError`` on a missing
    column.
    """
    style.need(table, [x, y, *([label] if label else [])], "pareto")
    ax = style.axes(ax)
    names = table[label].astype(str) if label else style.labels(table)
    (dx, x_name), (dy, y_name) = style.scale(table[x], x), style.scale(table[y], y)
    at, up = table[x].to_numpy(float) / dx, table[y].to_numpy(float) / dy
    best = front(at, up)
    order = np.flatnonzero(best)[np.argsort(at[best], kind="stable")]
    stairs = np.column_stack([np.repeat(at[order], 2)[1:], np.repeat(up[order], 2)[:-1]])
    ax.plot(*stairs.T, color=style.FAINT, lw=2, zorder=1)
    colour = np.where(best, style.VERMILION, style.BLUE)
    ax.scatter(at, up, s=34, c=colour, zorder=3)
    ax.margins(0.12, 0.15)
    if zero:
        ax.set_ylim(0, 1.15 * up.max())
    style.finish(ax, style.answer(title, _title(list(names), x, y, table)), x_name, y_name)
    _labels.beside(ax, at, up, list(names), list(colour), stairs)
    ax.annotate("better", (0.0, 0.0), (26, 24), xycoords="axes fraction", textcoords="offset points",
                fontsize=style.SMALL, color=style.GREY,
                arrowprops={"arrowstyle": "->", "color": style.GREY, "lw": 0.8, "shrinkB": 4})
    return ax


def front(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which points no other beats (not worse in both, better in one), smaller being better: bool [points].

    >>> front(np.array([1.0, 2.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0, 1.0])).tolist()
    [True, True, False, False]
    """
    not_worse = (x[:, None] <= x) & (y[:, None] <= y)
    better = (x[:, None] < x) | (y[:, None] < y)
    return np.logical_not((not_worse & better).any(axis=0))


def _title(names: list[str], x: str, y: str, table: pd.DataFrame) -> str:
    """Say what the point with the least *y* gains over the most balanced one, and for what *x*."""
    load, traffic = table[x].to_numpy(float), table[y].to_numpy(float)
    least, calm = int(traffic.argmin()), int(load.argmin())
    if load[least] == load[calm] or traffic[least] == traffic[calm]:
        return f"{names[least]} is best in both"
    what = "bytes" if "bytes" in y else "crossings" if y.startswith("cross") else style.WORDS.get(y, y)
    return (f"{names[least]} has {1 - traffic[least] / traffic[calm]:.0%} fewer {what} than {names[calm]}, "
            f"at load imbalance {load[least]:.2f} against {load[calm]:.2f}")
