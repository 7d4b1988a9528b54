"""The figure of this study, from its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from replays import PAGING

from moesim import plots
from moesim.plots import _style as style

COLOURS = {"mark0": style.VERMILION, "mark_predict": style.BLUE}


def drawn(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Return all figures of *tables*."""
    return {"bits": bits(tables["bits"])}


def save_all(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw all figures of *tables* into *folder*."""
    for name, figure in drawn(tables).items():
        plots.save(figure, folder / f"{name}.png")


def bits(table: pd.DataFrame) -> Any:
    """Draw faults over OPT's by the share of wrong bits of both kinds, with bounds: a panel for each room."""
    figure, axes = plots.figure(columns=len(PAGING), size=(9.6, 3.6))
    for ax, (experts, room) in zip(axes[0], PAGING, strict=True):
        style.axes(ax)
        some = table[(table["experts"] == experts) & (table["room"] == room)]
        for policy, name in (("mark0", "MARK0"), ("mark_predict", "MARK&PREDICT")):
            points = some[(some["policy"] == policy) & (some["wrong"] == "both")]
            ax.plot(100 * points["error"], points["ratio"], color=COLOURS[policy], lw=1.6, marker="o", ms=3, label=name)
            ax.plot(100 * points["error"], points["bound"], color=COLOURS[policy], lw=1, ls=":",
                    label=f"{name}: its bound")
        for policy in ("lru", "lfru"):
            level = float(some.loc[some["policy"] == policy, "ratio"].iloc[0])
            ax.axhline(level, color=style.GREY, lw=1)
            ax.annotate(policy.upper(), (1.01, level), xycoords=("axes fraction", "data"), fontsize=style.SMALL,
                        va="bottom" if policy == "lru" else "top", color=style.INK, annotation_clip=False)
        ax.set_ylim(0.9, 4)
        ax.set_title(f"{room} of {experts} experts fit", loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("bits that are wrong (%)", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].set_ylabel("faults / OPT", fontsize=style.NORMAL, color=style.INK)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=style.SMALL, ncols=4,
                  loc="outside lower left")
    return style.heading(figure, "One exact bit per use saves two fifths of LRU's faults or more; with four in "
                           "ten wrong, nothing")
