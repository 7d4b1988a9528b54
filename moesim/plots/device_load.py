"""Load per device: how unevenly each placement spreads the tokens of a layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moesim.plots import _style as style


def device_load(table: pd.DataFrame, ax: Axes | None = None, *, title: str = "{answer}") -> Axes:
    """Draw the load of every device in every layer, one row per placement, as a multiple of the layer's mean.

    *table*: placement, layer, device, tokens (routed to experts of that device). The bar and the number are
    max/mean, averaged over layers.
    """
    style.need(table, ("placement", "layer", "device", "tokens"), "device_load")
    groups = table.groupby(["placement", "layer"], sort=False)["tokens"]
    table = table.assign(relative=table["tokens"] / groups.transform("mean"))
    worst = table.groupby(["placement", "layer"], sort=False)["relative"].max().groupby("placement", sort=False).mean()
    ax = style.axes(ax, (style.WIDTH, 1.2 + 0.42 * len(worst)))
    for row, (name, value) in enumerate(worst.items()):
        part = table[table["placement"] == name]
        shift = (part["device"].rank(method="dense").to_numpy() - 1) / max(part["device"].nunique() - 1, 1) - 0.5
        ax.scatter(part["relative"], row + 0.6 * shift, s=5, color=style.BLUE, alpha=0.45, lw=0)
        ax.vlines(value, row - 0.38, row + 0.38, color=style.VERMILION, lw=2)
        ax.annotate(f"{value:.2f}", (1, row), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                    va="center", fontsize=style.NORMAL, color=style.VERMILION, fontweight="bold", annotation_clip=False)
    ax.axvline(1, color=style.GREY, lw=0.8, zorder=0)
    ax.annotate("max/mean", (1, -0.6), (6, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                fontsize=style.SMALL, color=style.VERMILION, annotation_clip=False)
    ax.set_xlim(0, 1.04 * table["relative"].max())
    style.rows(ax, [str(name).replace("_", " ") for name in worst.index])
    return style.finish(ax, style.answer(title, _title(worst)), "tokens of a device in a layer / mean of the layer's "
                                                                "devices (a dot per device and layer)")


def _title(worst: pd.Series) -> str:
    if len(worst) == 1:
        return f"The busiest device has {worst.iloc[0]:.2f}x the mean load"
    best, least = worst.idxmin(), worst.idxmax()
    return (f"The busiest device has {worst.min():.2f}x the mean load with {str(best).replace('_', ' ')}, "
            f"{np.max(worst):.2f}x with {str(least).replace('_', ' ')}")
