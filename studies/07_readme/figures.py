"""The figure of this study, from its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from replays import READ_ME

from moesim import plots
from moesim.plots import _style as style


def drawn(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Return all figures of *tables*."""
    return {"hits": hits(tables["hits"])}


def save_all(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw all figures of *tables* into *folder*."""
    for name, figure in drawn(tables).items():
        plots.save(figure, folder / f"{name}.png")


def hits(table: pd.DataFrame) -> Any:
    """Draw hit ratios by capacity: LRU, Belady by what it sees, and the published rows."""
    figure, axes = plots.figure(size=(7.6, 3.8))
    ax = style.axes(axes[0, 0])
    wide = table.pivot(index="policy", columns="capacity", values="hit_percent")
    names = {"lru": "LRU", "belady, window 2": "sees 2 requests", "belady, window 3": "sees 3",
             "belady, window 4": "sees 4", "belady, forced": "sees all"}
    shades, at = (style.GREY, "#9ecae1", "#6baed6", "#3182bd", "#08519c"), 0.0
    for (policy, name), colour in zip(names.items(), shades, strict=True):
        ax.plot(wide.columns, wide.loc[policy], color=colour, lw=1.6)
        at = max(float(wide.loc[policy].iloc[-1]), at + 2.9)  # names do not touch
        ax.annotate(name, (5.06, at), color=colour, fontsize=style.SMALL, va="center", annotation_clip=False)
    for policy, mark in (("lru", "o"), ("belady", "D")):
        ax.plot(wide.columns, READ_ME[policy], mark, color=style.BLACK, ms=5, mfc="none",
                label=f"published: {'LRU' if policy == 'lru' else 'Belady'}")
    ax.set_xticks(list(wide.columns))
    ax.legend(frameon=False, fontsize=style.SMALL, loc="lower right")
    style.finish(ax, "Read-ME's \"Belady\" sees about three requests, not the future", "experts of six that fit",
                 "hits (%)")
    return figure
