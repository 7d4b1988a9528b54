"""The figures of this study, from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from setting import CAPACITIES

from moesim import plots
from moesim.plots import _style as style

COLOUR = {"random": style.GREY, "lru": style.BLUE, "lfu": style.SKY, "lfru": style.GREEN, "static": style.ORANGE,
          "eam": style.PURPLE, "hobbit": style.YELLOW, "mark_predict": style.VERMILION, "belady": style.BLACK,
          "belady, forced": style.BLACK}
DASHED = ("belady, forced", "mark_predict")  # see the future


def save_all(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw all figures of *tables* into *folder*."""
    folder.mkdir(exist_ok=True)
    for name, drawn in (("misses", misses(tables["grid"])), ("bits", bits(tables["bits"])),
                        ("rerouting", rerouting(tables["rerouting"]))):
        plots.save(drawn, folder / f"{name}.png")


def misses(table: pd.DataFrame) -> Any:
    """Draw misses over Belady's by capacity: a panel for each trace and three batches."""
    traces, batches = list(table["trace"].unique()), (1, 4, 16)
    figure, axes = plots.figure(columns=3, rows=len(traces), size=(10.5, 3.4 * len(traces)))
    for row, trace in zip(axes, traces, strict=True):
        for ax, batch in zip(row, batches, strict=True):
            style.axes(ax)
            some = table[(table["trace"] == trace) & (table["batch"] == batch)]
            for policy, points in some.groupby("policy", sort=False):
                ax.plot([int(c[:-1]) for c in points["capacity"]], 100 * points["miss_fraction"], color=COLOUR[policy],
                        ls="--" if policy in DASHED else "-", marker="o", ms=3, lw=1.4, label=policy)
            ax.set_ylim(bottom=0)
            ax.set_title(f"{trace}, {batch} request{'s' * (batch > 1)}", loc="left", fontsize=style.NORMAL,
                         color=style.INK)
            ax.set_xticks([int(c[:-1]) for c in CAPACITIES])
    for ax in axes[-1]:
        ax.set_xlabel("experts of a layer that fit (%)", fontsize=style.NORMAL, color=style.INK)
    for ax in axes[:, 0]:
        ax.set_ylabel("misses / expert uses (%)", fontsize=style.NORMAL, color=style.INK)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=style.SMALL, ncols=10,
                  loc="outside lower left")
    return _titled(figure, "What the policy is worth shrinks as the batch grows and as less fits (Belady and what is "
                           "dashed see the future)", "")


def bits(table: pd.DataFrame) -> Any:
    """Draw misses over forced Belady's by the share of wrong bits: a panel for each trace."""
    traces = list(table["trace"].unique())
    figure, axes = plots.figure(columns=len(traces), size=(4.2 * len(traces) + 1.6, 3.6))
    marks = {"both": "-", "missed": "--", "spurious": ":"}
    for ax, trace in zip(axes[0], traces, strict=True):
        style.axes(ax)
        some = table[table["trace"] == trace]
        for policy in ("mark0", "mark_predict"):
            for wrong, line in marks.items():
                points = some[(some["policy"] == policy) & (some["wrong"] == wrong)]
                ax.plot(100 * points["error"], points["ratio"], line, lw=1.5, label=f"{policy}, {wrong}",
                        color=style.VERMILION if policy == "mark0" else style.BLUE)
        for policy in ("lru", "lfru"):
            level = float(some.loc[some["policy"] == policy, "ratio"].iloc[0])
            ax.axhline(level, color=style.GREY, lw=1)
            ax.text(0, level, policy, ha="left", va="bottom", fontsize=style.SMALL, color=style.INK)
        ax.set_title(trace, loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("bits that are wrong (%)", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].set_ylabel("misses / those of Belady, forced", fontsize=style.NORMAL, color=style.INK)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=style.SMALL,
                  loc="outside right center")
    return _titled(figure, "One bit per use beats LRU and LFRU as long as few of the bits are wrong",
                   "30 % of a layer's experts fit, one request at a time")


def rerouting(table: pd.DataFrame) -> Any:
    """Draw the hits of LRU by the share of swapped choices, one request: a panel for each room."""
    panels = list(table[table["batch"] == 1].groupby("capacity", sort=False))
    figure, axes = plots.figure(columns=len(panels), size=(4.2 * len(panels), 3.8))
    lines = {1: ("the best expert always", style.BLUE, (-9, 4)), 0: ("none always", style.ORANGE, (4, -10))}
    for ax, (capacity, some) in zip(axes[0], panels, strict=True):
        style.axes(ax)
        belady = 100 * (1 - (1 - some["hit_ratio"].iloc[0]) / some["over_belady"].iloc[0])
        ax.axhline(belady, color=style.BLACK, ls="--", lw=1)
        ax.text(100 * some["swapped_share"].max(), belady, "Belady, nothing swapped", ha="right", va="top",
                fontsize=style.SMALL, color=style.INK)
        for keep, (name, colour, away) in lines.items():
            points = 100 * pd.concat([some.iloc[:1], some[some["keep"] == keep]])[["swapped_share", "hit_ratio"]]
            ax.plot(*points.to_numpy().T, color=colour, marker="o", ms=3, lw=1.4, label=name)
            for window, point in zip(some.loc[some["keep"] == keep, "window"], points.to_numpy()[1:], strict=True):
                last = keep == 1 and window == some["window"].max()  # the two before are near
                ax.annotate(f"{window}", point, (-2, 6) if last else away, textcoords="offset points",
                            fontsize=style.SMALL, color=colour)
        ax.set_title(f"{capacity[:-1]} % of the experts fit", loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("choices that are not the gate's (%)", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].set_ylabel("hits (%)", fontsize=style.NORMAL, color=style.INK)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=style.SMALL, ncols=2,
                  loc="outside lower left")
    return _titled(figure, "Choosing by what is there hits more than Belady, for one choice in six or more",
                   "reference-moe, LRU, top-2 of 32; numbers: candidates looked at")


def _titled(figure: Any, title: str, note: str) -> Any:
    figure.suptitle(title, x=0.01, ha="left", fontsize=style.TITLE, fontweight="bold", color=style.INK)
    figure.supxlabel(note, x=0.99, ha="right", fontsize=style.SMALL, color=style.INK)
    return figure
