"""The figures of this study, from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from setting import OPERATORS, noise

from moesim import plots
from moesim.plots import _style as style

COLOUR = {"roofline": style.BLACK, "table": style.GREEN, "tile": style.BLUE, "residual": style.VERMILION,
          "measured_again": style.GREY}
ORDER = ("roofline", "tile", "table", "residual")
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)
# Row of the figure -> case, part (MoE has models where others have shapes), anchors.
CASES = (("random shapes", "random", "all", 0), ("shapes or model left out", "left out", "all", 0),
         ("skew, from balanced", "skewed routing, true loads", "any", 0),
         ("larger, 300 small + 100 anchors", "larger shapes", "300 small", 100),
         ("larger, from all small", "larger shapes", "all small", 0),
         ("larger, from 300 small", "larger shapes", "300 small", 0))


def save_all(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw all figures of *tables* into *folder*."""
    for name, drawn in (("models", models(tables["models"])), ("beyond", beyond(tables)),
                        ("learning", learning(tables["learning"])), ("anchors", anchors(tables["learning"]))):
        plots.save(drawn, folder / f"{name}.png")


def models(table: pd.DataFrame) -> Any:
    """Draw the error of every model: a panel per operator, the noise floor as a band."""
    figure, axes = plots.figure(columns=4, size=(11.5, 3.1))
    table = table[table["part"] == "all"].set_index(["op", "model"])
    for ax, (op, known) in zip(axes[0], OPERATORS.items(), strict=True):
        style.axes(ax)
        _floor(ax, op)
        for i, model in enumerate(ORDER):
            row = table.loc[(op, model)]
            ax.plot([row["median"], row["p90"]], [i, i], color=COLOUR[model], lw=2, alpha=0.45)
            ax.plot(row["mean"], i, "|", color=COLOUR[model], ms=9, mew=1.8)
            ax.plot(row["median"], i, "o", color=COLOUR[model], ms=6)
            ax.annotate(f"{row['median']:.1f}", (row["median"], i), (0, 6), textcoords="offset points", ha="center",
                        fontsize=style.SMALL, color=COLOUR[model])
        _percent(ax.xaxis, ax.set_xscale, ax.set_xlim)
        style.rows(ax, ORDER if ax is axes[0, 0] else [""] * len(ORDER))
        ax.set_ylim(3.6, -0.7)
        ax.set_title(known.words, loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("error of held-out shapes (%)", fontsize=style.NORMAL, color=style.INK)
    residual, roofline, tile = (table.xs(m, level="model")["median"] for m in ("residual", "roofline", "tile"))
    title = (f"Median error: data sheet {roofline.min():.0f} to {roofline.max():.0f} %, eight physical constants "
             f"{tile.min():.1f} to {tile.max():.1f} %, a learned correction {residual.min():.1f} to "
             f"{residual.max():.1f} %")
    return _titled(figure, title, "dot: median, tick: mean, end of the bar: 90th percentile; grey: noise floor (median "
                   "difference of two collections of the same shapes, closest to furthest pair)")


def beyond(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw tile against residual, the further the tested shapes are from the fitted ones."""
    figure, axes = plots.figure(columns=4, size=(11.5, 4.0))
    rows = cases(tables)
    for ax, (op, known) in zip(axes[0], OPERATORS.items(), strict=True):
        style.axes(ax)
        _floor(ax, op)
        for i, (label, *_) in enumerate(CASES):
            some = rows[(rows["op"] == op) & (rows["label"] == label)].set_index("model")
            if some.empty:
                ax.text(1.0, i, "has no routing", fontsize=style.SMALL, color=style.GREY, va="center")
                continue
            for model, at in (("tile", i - 0.16), ("residual", i + 0.16)):
                row = some.loc[model]
                ax.plot([row["median"], row["p90"]], [at, at], color=COLOUR[model], lw=2, alpha=0.4)
                ax.plot(row["median"], at, "o", color=COLOUR[model], ms=5)
        _percent(ax.xaxis, ax.set_xscale, ax.set_xlim, 0.8, 80)
        style.rows(ax, [label for label, *_ in CASES] if ax is axes[0, 0] else [""] * len(CASES))
        ax.set_title(known.words, loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("error (%)", fontsize=style.NORMAL, color=style.INK)
    for model, y in (("tile", 0.10), ("residual", 0.03)):
        axes[0, 2].text(0.98, y, model, color=COLOUR[model], fontsize=style.NORMAL, fontweight="bold", ha="right",
                        transform=axes[0, 2].transAxes)
    moe = rows[rows["op"] == "moe"].set_index(["label", "model"])["median"]
    none, some = (moe[CASES[i][0], "residual"] for i in (5, 3))
    title = (f"The correction helps less the further away; large experts need anchors: {none:.0f} % without, "
             f"{some:.1f} % with 100")
    return _titled(figure, title, "dot: median, end of the bar: 90th percentile; grey: noise floor. All but the first "
                   "row are fitted from a stranger's constants")


def cases(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of ``models`` and ``beyond`` that are drawn and told, with their labels."""
    random = tables["models"][tables["models"]["part"] == "all"].assign(case="random", anchors=0)
    other = tables["beyond"][tables["beyond"]["start"] == "stranger"]
    other = other.assign(part=other["part"].replace({"all six": "all"}), case=other["case"].replace(
        {"model left out": "left out", "shapes left out": "left out"}))
    both = pd.concat([random, other])
    found = [both[(both["case"] == case) & (both["part"] == part) & (both["anchors"] == anchors)].assign(label=label)
             for label, case, part, anchors in CASES]
    return pd.concat(found).groupby(["label", "op", "model"], as_index=False).mean(numeric_only=True)  # of seeds


def learning(table: pd.DataFrame) -> Any:
    """Draw error against fitted points: all held-out shapes above, those in the last octave of a size below."""
    figure, axes = plots.figure(columns=4, rows=2, size=(11.5, 6.0))
    for (op, known), column in zip(OPERATORS.items(), axes.T, strict=True):
        for ax, tested in zip(column, ("all", "extreme"), strict=True):
            style.axes(ax)
            some = table[(table["op"] == op) & (table["tested"] == tested)]
            if tested == "all":
                ax.axhspan(*noise(op), color=style.FAINT, alpha=0.6, lw=0)
                ax.set_title(known.words, loc="left", fontsize=style.NORMAL, color=style.INK)
            for model in ("tile", "residual"):
                _curve(ax, some[some["model"] == model], model)
            ax.set_xscale("log")
            ax.set_xlim(22, 30000)
            _percent(ax.yaxis, ax.set_yscale, ax.set_ylim, 0.7, 32)
            ax.set_xlabel("fitted points" if tested == "extreme" else "", fontsize=style.NORMAL, color=style.INK)
    for ax, words in zip(axes[:, 0], ("all held-out shapes", "those in the last octave"), strict=True):
        ax.set_ylabel(f"{words}:\nmedian error (%)", fontsize=style.NORMAL, color=style.INK)
    for y, (words, model) in zip((0.93, 0.86), (("tile", "tile"), ("residual", "residual")), strict=True):
        axes[0, 0].text(0.97, y, words, transform=axes[0, 0].transAxes, ha="right", fontsize=style.NORMAL,
                        color=COLOUR[model], fontweight="bold")
    gain = 100 * (1 - doubling(table))
    title = (f"From 125 points on the tile model learns no more; every doubling takes {gain.min():.0f} to "
             f"{gain.max():.0f} % off the residual's error")
    return _titled(figure, title, "line: at random, dashed: a fifth of the points are corners of the domain; mean of "
                   "seeds, shade: least to most; grey: noise floor")


def doubling(table: pd.DataFrame) -> pd.Series:
    """Return, by operator, what twice as many points multiply the residual's median error by, from 125 on."""
    some = table[(table["what"] == "random") & (table["tested"] == "all") & (table["model"] == "residual")]
    curve = some[some["points"] >= 125].groupby(["op", "points"], as_index=False)["median"].mean()
    first, last = (curve.groupby("op").nth(i).set_index("op") for i in (0, -1))
    return (last["median"] / first["median"]) ** (1 / np.log2(last["points"] / first["points"]))


def _curve(ax: Any, some: pd.DataFrame, model: str) -> None:
    """Draw the curve of one model under both designs."""
    whole = some["points"].max()
    for what, line in (("random", "-"), ("extremes", "--")):
        drawn = some[(some["what"] == what) | (some["points"] == whole)].groupby("points")["median"]
        mean = drawn.mean()
        ax.plot(mean.index, mean, line, color=COLOUR[model], lw=1.6, marker="o", ms=3)
        if what == "random":
            ax.fill_between(mean.index, drawn.min(), drawn.max(), color=COLOUR[model], alpha=0.15, lw=0)


def anchors(table: pd.DataFrame) -> Any:
    """Draw the error of larger shapes against anchors among them, beside 300 small ones."""
    figure, axes = plots.figure(columns=4, size=(11.5, 3.3))
    table = table[table["what"] == "anchors"]
    for ax, (op, known) in zip(axes[0], OPERATORS.items(), strict=True):
        style.axes(ax)
        for model in ("tile", "residual"):
            drawn = table[(table["op"] == op) & (table["model"] == model)].groupby("points")["median"]
            mean = drawn.mean()
            ax.plot(mean.index, mean, "-", color=COLOUR[model], lw=1.6, marker="o", ms=4)
            ax.fill_between(mean.index, drawn.min(), drawn.max(), color=COLOUR[model], alpha=0.15, lw=0)
        ax.set_xscale("symlog", linthresh=10, linscale=0.5)
        ax.xaxis.set_major_locator(FixedLocator(sorted(table["points"].unique())))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        _percent(ax.yaxis, ax.set_yscale, ax.set_ylim, 1.5, 60)
        ax.set_title(known.words, loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("anchors among larger shapes", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].set_ylabel("median error of larger shapes (%)", fontsize=style.NORMAL, color=style.INK)
    for model, y in (("tile", 0.92), ("residual", 0.83)):
        axes[0, 0].text(0.97, y, model, color=COLOUR[model], fontsize=style.NORMAL, fontweight="bold", ha="right",
                        transform=axes[0, 0].transAxes)
    moe = table[(table["op"] == "moe") & (table["model"] == "residual")].groupby("points")["median"].mean()
    title = f"A few anchors do most of it: large experts are {moe[0]:.0f} % off without, {moe[30]:.1f} % with thirty"
    return _titled(figure, title,
                   "beside 300 small shapes; mean of three seeds, shade: least to most")


def _floor(ax: Any, op: str) -> None:
    """Draw the noise floor of *op* as a vertical band."""
    ax.axvspan(*noise(op), color=style.FAINT, alpha=0.6, lw=0)


def _percent(axis: Any, scale: Any, limit: Any, low: float = 0.4, high: float = 130) -> None:
    """Make an axis one of percent, logarithmic, from *low* to *high*."""
    scale("log")
    axis.set_major_locator(FixedLocator([t for t in TICKS if low <= t <= high]))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())
    limit(low, high)


def _titled(figure: Any, title: str, note: str) -> Any:
    """Give *figure* a title over all its panels, and a *note* below it."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=style.TITLE, fontweight="bold", color=style.INK)
    figure.supxlabel(note, x=0.99, ha="right", fontsize=style.SMALL, color=style.INK)
    return figure
