"""Bytes that the links of each class carried."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moesim.plots import _labels
from moesim.plots import _style as style


def links(table: pd.DataFrame, ax: Axes | None = None, *, title: str = "{answer}") -> Axes:
    """Draw the bytes of each link class, one row per placement and mode.

    *table*: placement and/or mode, class, bytes (as ``moesim.metrics.link_class_bytes`` adds them up).
    """
    style.need(table, ("class", "bytes"), "links")
    table = table.assign(_name=style.labels(table))
    wide = _merge(table.pivot_table(index="_name", columns="class", values="bytes", aggfunc="sum", sort=False,
                                    observed=True))
    divisor, unit = style.scale(wide, "bytes")
    ax = style.axes(ax, (style.WIDTH, 1.3 + 0.32 * len(wide)))
    colour = style.colours(wide.columns)
    ax.hlines(np.arange(len(wide)), 0, wide.max(axis=1) / divisor, color=style.FAINT, lw=1, zorder=1)
    for i, name in enumerate(wide):
        ax.scatter(wide[name] / divisor, np.arange(len(wide)), s=36, color=colour[name], marker="osD^vP"[i % 6],
                   zorder=3)
    ax.set_xlim(0, 1.06 * float(wide.max().max()) / divisor)
    style.rows(ax, list(wide.index))
    first = wide.iloc[0] / divisor
    space = _labels.row(ax, -0.25, [(float(x), str(c).replace("_", " "), colour[c])
                                    for c, x in zip(wide.columns, first, strict=True)])
    return style.finish(ax, style.answer(title, _title(wide)),
                        f"bytes carried by all links of a class {unit.split(' ')[-1]}", pad=space)


def _merge(wide: pd.DataFrame) -> pd.DataFrame:
    """Return *wide* with classes that carry the same bytes everywhere as one column, named after all of them."""
    groups: list[list[str]] = []
    for name in wide.columns:
        same = next((g for g in groups if np.allclose(wide[g[0]], wide[name], rtol=1e-9, atol=0)), None)
        if same is None:
            groups.append([str(name)])
        else:
            same.append(str(name))
    return pd.DataFrame({_joined(g): wide[g[0]] for g in groups}, index=wide.index)


def _joined(names: list[str]) -> str:
    """Return "scale up out/in" for scale_up_out and scale_up_in.

    >>> _joined(["scale_up_out", "scale_up_in"]), _joined(["nic_out", "nic_in", "leaf_up"])
    ('scale up out/in', 'nic out/in, leaf up')
    """
    ends: dict[str, list[str]] = {}
    for name in names:
        stem, _, end = name.rpartition("_")
        ends.setdefault(stem or end, []).append(end if stem else "")
    return ", ".join(f"{stem} {'/'.join(e)}".strip().replace("_", " ") for stem, e in ends.items())


def _title(wide: pd.DataFrame) -> str:
    slowest = wide.columns[-1]
    least, most = wide[slowest].idxmin(), wide[slowest].idxmax()
    if least == most or not wide[slowest].max():
        return f"Bytes per link class, {least}"
    return (f"{least} puts {1 - wide[slowest].min() / wide[slowest].max():.0%} fewer bytes on "
            f"{str(slowest).replace('_', ' ')} links than {most}")
