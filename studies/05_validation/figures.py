"""The figures of this study that are not in a report, from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ablations
import gpt_oss
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from setting import RUNS, SHOWN

from moesim import plots
from moesim.plots import _style as style

COLOUR = {"ttft": style.BLUE, "tpot": style.VERMILION, "e2e": style.GREEN}
TITLES = {"llama": "Llama-3.1-8B, one GPU", "qwen": "Qwen3-30B-A3B, two GPUs"}
PER_CENT = (-90, -30, -10, -3, 0, 3, 10, 30, 90)
WORKLOADS = {(1024, 1024): ("1k in, 1k out", "o", style.BLUE), (1024, 8192): ("1k in, 8k out", "s", style.GREEN),
             (8192, 1024): ("8k in, 1k out", "^", style.VERMILION)}


def save_all(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw all figures of *tables* into *folder*."""
    folder.mkdir(exist_ok=True)
    plots.save(left_out(tables["ablations"]), folder / "ablations.png")
    plots.save(points(tables["gpt_oss"]), folder / "gpt_oss.png")


def left_out(table: pd.DataFrame) -> Any:
    """Draw the errors of the means without one thing after the other: a panel per run."""
    figure, axes = plots.figure(columns=2, size=(11.5, 5.2))
    means = table[table["statistic"] == "mean"].set_index(["run", "left_out", "metric"])
    rows = [*ablations.ALL, *ablations.QWEN]
    for ax, name in zip(axes[0], RUNS, strict=True):
        style.axes(ax)
        ax.axvline(0, color=style.FAINT, lw=1, zorder=0)
        for i, what in enumerate(rows):
            for shift, metric in zip((-0.22, 0, 0.22), SHOWN, strict=True):
                if (name, what, metric) in means.index:
                    row = means.loc[(name, what, metric)]
                    ax.errorbar(row["error_percent"], i + shift, xerr=row["error_sd"], fmt="o", ms=4, lw=1.2,
                                color=COLOUR[metric], label=SHOWN[metric] if i == 0 else None)
        ax.set_xscale("symlog", linthresh=3, linscale=0.8)
        ax.xaxis.set_major_locator(FixedLocator(PER_CENT))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+.0f}" if x else "0"))
        ax.set_xlim(-120, 120)
        style.rows(ax, rows if ax is axes[0, 0] else [""] * len(rows))
        ax.set_title(TITLES[name], loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("error of the mean (%), bars: standard deviation", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].legend(fontsize=style.SMALL, frameon=False, loc="lower left")
    figure.suptitle("What each part of the model is worth: the runs without it", x=0.01, ha="left",
                    fontsize=style.TITLE, fontweight="bold", color=style.INK)
    return figure


def points(table: pd.DataFrame) -> Any:
    """Draw simulated against measured time per output token of the published points."""
    chosen = table[table["routing"] == gpt_oss.CHOSEN]
    figure, axes = plots.figure(size=(5.6, 4.6))
    ax = style.axes(axes[0, 0])
    ends = np.array([5.0, 50.0])
    ax.fill_between(ends, 0.9 * ends, 1.1 * ends, color=style.FAINT, alpha=0.6, lw=0, label="within 10 %")
    ax.plot(ends, ends, color=style.GREY, lw=1)
    for (isl, osl), (label, marker, colour) in WORKLOADS.items():
        some = chosen[(chosen["isl"] == isl) & (chosen["osl"] == osl)]
        ax.plot(some["tpot_ms"], some["simulated_tpot_ms"], marker, color=colour, ms=6, alpha=0.85, label=label)
    for axis, scale in ((ax.xaxis, ax.set_xscale), (ax.yaxis, ax.set_yscale)):
        scale("log")
        axis.set_major_locator(FixedLocator([5, 10, 20, 40]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set(xlim=tuple(ends), ylim=tuple(ends))
    ax.legend(fontsize=style.SMALL, frameon=False)
    off = gpt_oss.judged(table).set_index("routing").loc[gpt_oss.CHOSEN]
    style.finish(ax, f"gpt-oss-120b on one H200: {off['zero_shot']:.1f} % off, nothing fitted",
                 "measured time per output token (ms)", "simulated (ms)")
    return figure
