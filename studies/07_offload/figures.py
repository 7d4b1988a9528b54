"""The figures of this study, from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import miss_figure
import pandas as pd

from moesim import plots
from moesim.plots import _style as style

COLOURS = {"random": style.GREY, "frequency": style.ORANGE, "dynamic": style.BLUE}
POINTS = {"Mixtral-offloading, no cache": (0.97, 1.00, "right"), "LRU, 4 of 8": (0.48, 1.36, "right"),
          "and prefetching": (0.085, 1.75, "center"), "MoE-Infinity": (0.815, 1.5, "left"),
          "Fiddler: over 3": (0.77, 2.6, "right")}  # where their names stand


def drawn(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Return all figures of *tables*."""
    return {"misses": miss_figure.misses(tables["engine"]), "residency": residency(tables["residency"]),
            "links": links(tables["lines"], tables["points"])}


def save_all(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw all figures of *tables* into *folder*."""
    for name, figure in drawn(tables).items():
        plots.save(figure, folder / f"{name}.png")


def residency(table: pd.DataFrame) -> Any:
    """Draw the share of uses on the GPUs, replayed and published, by the share of experts there."""
    figure, axes = plots.figure(columns=2, size=(9.2, 3.6))
    for ax, column, name in zip(axes[0], ("on_gpu", "published"), ("replayed: uses on the GPUs",
                                                                   "published: time saved"), strict=True):
        style.axes(ax)
        for policy, points in table.groupby("policy", sort=False):
            ax.plot(100 * points["share"], 100 * points[column], color=COLOURS[policy], marker="o", ms=3, label=policy)
        ax.set_title(name, loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("experts on the GPUs (%)", fontsize=style.NORMAL, color=style.INK)
        ax.set_ylabel("of what all of them there would be (%)", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].legend(frameon=False, fontsize=style.SMALL)
    return style.heading(figure, "Knowing the request helps where few experts fit, knowing the average where most do")


def links(lines: pd.DataFrame, points: pd.DataFrame) -> Any:
    """Draw tokens/s by the share of misses for each way to serve one; published numbers as points."""
    figure, axes = plots.figure(size=(7.6, 4.4))
    ax = style.axes(axes[0, 0])
    for (name, some), colour in zip(lines.groupby("miss", sort=False), style.CYCLE, strict=False):
        ax.plot(100 * some["missing"], some["tokens_per_s"], color=colour, lw=1.6, label=name)
    for row in points.itertuples():
        ax.plot(100 * row.missing, row.tokens_per_s, "D", color=style.BLACK, ms=5)
        x, y, side = POINTS[row.system]
        ax.text(100 * x, y, row.system, ha=side, fontsize=style.SMALL, color=style.INK)
    ax.set_yscale("log")
    ax.set_ylim(0.25, 40)
    ax.set_yticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=style.SMALL)
    style.finish(ax, "How a miss is served decides more than how many there are", "expert uses that miss (%)",
                 "tokens/s, Mixtral-8x7B, one request")
    return figure
