"""The figures of this study, from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import setting

from moesim import plots
from moesim.plots import _style as style

COLOURS = {"random": style.GREY, "frequency": style.ORANGE, "dynamic": style.BLUE, "lru": style.SKY,
           "mark0": style.VERMILION, "mark_predict": style.BLUE}
POINTS = {"Mixtral-offloading, no cache": (0.97, 1.00, "right"), "LRU, 4 of 8": (0.48, 1.36, "right"),
          "and prefetching": (0.085, 1.75, "center"), "MoE-Infinity": (0.815, 1.5, "left"),
          "Fiddler: over 3": (0.77, 2.6, "right")}  # where their names stand


def drawn(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Return all figures of *tables*."""
    return {"readme": readme(tables["readme"]), "expertflow": expertflow(tables["expertflow"]),
            "bits": bits(tables["bits"]), "residency": residency(tables["residency"]),
            "links": links(tables["lines"], tables["points"])}


def save_all(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw all figures of *tables* into *folder*."""
    folder.mkdir(exist_ok=True)
    for name, figure in drawn(tables).items():
        plots.save(figure, folder / f"{name}.png")


def readme(table: pd.DataFrame) -> Any:
    """Draw hit ratios by capacity: LRU, Belady by what it sees, and the published rows."""
    figure, axes = plots.figure(size=(6.4, 3.8))
    ax = style.axes(axes[0, 0])
    wide = table.pivot(index="policy", columns="capacity", values="hit_percent")
    names = {"lru": "LRU", "belady, window 2": "2 requests", "belady, window 3": "3", "belady, window 4": "4",
             "belady, forced": "all of them"}
    shades = (style.GREY, "#9ecae1", "#6baed6", "#3182bd", "#08519c")
    for (policy, name), colour in zip(names.items(), shades, strict=True):
        label = name if policy == "lru" else f"Belady that sees {name}"
        ax.plot(wide.columns, wide.loc[policy], color=colour, lw=1.6, label=label)
    for policy, mark in (("lru", "o"), ("belady", "D")):
        ax.plot(wide.columns, setting.READ_ME[policy], mark, color=style.BLACK, ms=5, mfc="none",
                label=f"published: {'LRU' if policy == 'lru' else 'Belady'}")
    ax.set_xticks(list(wide.columns))
    ax.legend(frameon=False, fontsize=style.SMALL)
    style.finish(ax, "Read-ME's \"Belady\" knows about three requests, not the future", "experts of six that fit",
                 "hits (%)")
    return figure


def expertflow(table: pd.DataFrame) -> Any:
    """Draw PLEC's hits by the recall of its predictor, LRU's, and what was published: a panel for each setting."""
    settings = [(16, 4), (16, 16), (8, 16)]
    figure, axes = plots.figure(columns=3, size=(9.6, 3.4))
    for ax, (slots, batch) in zip(axes[0], settings, strict=True):
        style.axes(ax)
        some = table[(table["slots"] == slots) & (table["batch"] == batch)]
        plec, lru = some[some["policy"] == "plec"], some.loc[some["policy"] == "lru", "hit_percent"].iloc[0]
        ax.plot(plec["recall"], plec["hit_percent"], color=style.BLUE, marker="o", ms=3, label="PLEC")
        ax.axhline(lru, color=style.ORANGE, label="LRU")
        for policy, colour in (("plec", style.BLUE), ("lru", style.ORANGE)):
            ax.axhline(setting.EXPERT_FLOW[policy, slots, batch], color=colour, ls=":",
                       label=f"published: {policy.upper()}")
        ax.set_ylim(20, 102)
        ax.set_title(f"{slots} slots, batch {batch}", loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("recall of the predictor", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].set_ylabel("hits (%)", fontsize=style.NORMAL, color=style.INK)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=style.SMALL, ncols=4,
                  loc="outside lower left")
    return _titled(figure, "ExpertFlow: LRU's fall with the batch is found; where little fits, no recall gives what "
                           "was published")


def bits(table: pd.DataFrame) -> Any:
    """Draw faults over OPT's by the share of wrong bits of both kinds, with bounds: a panel for each room."""
    figure, axes = plots.figure(columns=len(setting.PAGING), size=(9.6, 3.6))
    for ax, (experts, room) in zip(axes[0], setting.PAGING, strict=True):
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
    return _titled(figure, "One exact bit per use saves two fifths of LRU's faults or more; with four in "
                           "ten wrong, nothing")


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
    return _titled(figure, "Knowing the request helps where few experts fit, knowing the average where most do")


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


def _titled(figure: Any, title: str) -> Any:
    figure.suptitle(title, x=0.01, ha="left", fontsize=style.TITLE, fontweight="bold", color=style.INK)
    return figure
