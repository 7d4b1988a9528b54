"""Figures of this study, from its tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from moesim import plots
from moesim.plots import _style as style

COLOURS = {"SN40L": style.BLUE, "DGX A100": style.VERMILION, "DGX H100": style.ORANGE}


def capacity(table: pd.DataFrame) -> Any:
    """Draw the latency of one prompt against the number of experts, to where they no longer fit."""
    figure, axes = plots.figure(size=(7.2, 4.2))
    ax = style.axes(axes[0, 0])
    for name, some in table.groupby("machine", sort=False):
        known = some.dropna(subset=["batch_s"])
        ax.plot(known["experts"], 1e3 * known["batch_s"], color=COLOURS[name], lw=1.8)
        last = known.iloc[-1]
        ax.plot(last["experts"], 1e3 * last["batch_s"], "o" if name == "SN40L" else "X", ms=7, color=COLOURS[name])
        words = "DDR full" if name == "SN40L" else "host memory full"
        ax.annotate(f"{name}: {words} at {last['experts']:.0f}", (last["experts"], 1e3 * last["batch_s"]),
                    xytext=(8, 0) if name != "SN40L" else (-8, 10), textcoords="offset points", fontsize=style.NORMAL,
                    color=COLOURS[name], va="center", ha="left" if name != "SN40L" else "right")
    near = {name: some["near"].iloc[0] for name, some in table.groupby("machine")}
    for name in ("SN40L", "DGX A100"):
        ax.axvline(near[name], color=COLOURS[name] if name == "SN40L" else style.GREY, lw=0.8, ls=":")
    ax.set_xscale("log")
    ax.set_xticks([10, 20, 50, 100, 200, 500, 1000], ["10", "20", "50", "100", "200", "500", "1000"])
    ax.minorticks_off()
    ax.set_ylim(0, None)
    style.finish(ax, f"A DGX has no room for more than {near['DGX A100']} experts near its GPUs; then each miss costs "
                     "more than an answer", "experts, equally popular (dotted: as many as fit into HBM)",
                 "one prompt, 20 tokens (ms)")
    return figure


def speedup(table: pd.DataFrame) -> Any:
    """Draw Table V: published, the model in the paper's accounting, the model with all links of the GPUs' node."""
    table = table[table["router"] == "stated"]
    figure, axes = plots.figure(size=(7.2, 4.0))
    ax = style.axes(axes[0, 0])
    labels = [f"{r.machine}, {r.prompts} prompt{'s' * (r.prompts > 1)}, {r.tokens} tokens" for r in table.itertuples()]
    series = (("published", "published", style.BLACK), ("model", "model, one link", style.BLUE),
              ("fair", "model, all links", style.ORANGE))
    for i, (column, words, colour) in enumerate(series):
        at = [row + 0.26 * (i - 1) for row in range(len(table))]
        ax.barh(at, table[column], height=0.24, color=colour, label=words)
        for y, value in zip(at, table[column], strict=True):
            ax.annotate(f"{value:.1f}", (value, y), xytext=(3, 0), textcoords="offset points", va="center",
                        fontsize=style.SMALL, color=style.INK)
    style.rows(ax, labels)
    ax.legend(frameon=False, fontsize=style.NORMAL, loc="lower right")
    style.finish(ax, f"SN40L's gain is {table['model'].min():.1f} to {table['model'].max():.1f} if a DGX copies over "
                     f"one link, {table['fair'].min():.1f} to {table['fair'].max():.1f} if over all",
                 "times slower than SN40L")
    return figure


def launches(table: pd.DataFrame, published: Mapping[tuple[str, str], tuple[float, float]]) -> Any:
    """Draw both ratios of Fig. 10 against the cost of a launch, decode and prefill; bands: the published ranges."""
    figure, axes = plots.figure(columns=2, size=(9.6, 4.0))
    series = {"orchestration": ("host over hardware launches", style.GREEN, ("orchestration",)),
              "fusion": ("unfused over fused", style.VERMILION, ("fusion", "fusion_ahead"))}
    for ax, (phase, some) in zip(axes[0], table.groupby("phase"), strict=True):
        style.axes(ax)
        some = some[some["launch_s"] > 0]
        for ratio, (words, colour, columns) in series.items():
            ax.axhspan(*published[phase, ratio], color=colour, alpha=0.12, lw=0)
            for column, line in zip(columns, ("-", "--"), strict=False):
                ax.plot(1e6 * some["launch_s"], some[column], line, color=colour, lw=1.8,
                        label=words + (", launched ahead" if line == "--" else ""))
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(0.9, 300)
        for axis, ticks in ((ax.xaxis, (5, 10, 20, 50, 100, 200, 400)), (ax.yaxis, (1, 2, 5, 10, 20, 50, 100, 200))):
            axis.set_ticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
        style.finish(ax, phase, "cost of a launch (µs)", "ratio of times" if phase == "decode" else "")
    axes[0, 0].legend(frameon=False, fontsize=style.NORMAL, loc="upper left")
    figure.suptitle("No one cost of a launch is in all published ranges (bands)", x=0.01, ha="left",
                    fontsize=style.TITLE, fontweight="bold", color=style.INK)
    return figure
