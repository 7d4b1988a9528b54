"""The figure of what a miss should become: tokens/s by the share of experts that fit, for every answer."""

from __future__ import annotations

from typing import Any

import engine
import numpy as np
import pandas as pd

from moesim import plots
from moesim.plots import _style as style

TITLE = "A host that computes its experts beats every copy, and answers stay what they are"
COLOURS = {"fetch": style.BLACK, "fetch, prefetched": style.GREY, "host": style.BLUE, "cheapest": style.PURPLE,
           "defer": style.SKY, "low precision": style.ORANGE, "skip": style.VERMILION, "reroute": style.GREEN}
NAMES = {"mixtral-8x7b": "Mixtral-8x7B, 8 experts, top-2 (synthetic routing)",
         "deepseek-v2-lite": "DeepSeek-V2-Lite, 64, top-6 (synthetic routing)",
         "reference-moe-scaled": "32 experts, top-2, wide (captured routing, sizes a what-if)"}
GAP = 0.062  # of the height of a panel, between two names


def misses(table: pd.DataFrame) -> Any:
    """Draw a panel for each model and batch; names say what share of choices gets another answer at 25 %."""
    figure, axes = plots.figure(columns=3, rows=len(NAMES), size=(14.4, 11.0))
    for row, (model, name) in zip(axes, NAMES.items(), strict=True):
        of_model = table[table["model"] == model]
        span = (of_model["tokens_per_s"].min() * 0.8, of_model["tokens_per_s"].max() * 1.25)
        for ax, batch in zip(row, engine.BATCHES, strict=True):
            _panel(style.axes(ax), of_model[of_model["batch"] == batch], span)
            requests = f"{batch} requests at a time" if batch > 1 else "1 request at a time"
            ax.set_title(f"{name if batch == 1 else ''}\n{requests}", loc="left", fontsize=style.NORMAL,
                         color=style.INK)
        row[0].set_ylabel("decoded tokens/s", fontsize=style.NORMAL, color=style.INK)
    for ax in axes[-1]:
        ax.set_xlabel("experts that fit (%); in brackets: choices answered otherwise, at 25 %", fontsize=style.SMALL,
                      color=style.INK)
    return style.heading(figure, TITLE)


def _panel(ax: Any, some: pd.DataFrame, span: tuple[float, float]) -> None:
    ends, ran = {}, some["way"] == "cheapest"  # only where a batch is large enough for copies to pay
    as_host = ran.any() and np.allclose(some.loc[ran, "tokens_per_s"], some.loc[some["way"] == "host", "tokens_per_s"])
    for way, points in (some[~ran] if as_host else some).groupby("way", sort=False):
        exact = way in engine.EXACT
        ax.plot(100 * points["share"], points["tokens_per_s"], color=COLOURS[way], ls="-" if exact else "--",
                marker="o", ms=3, lw=1.6)
        changed = points.loc[np.isclose(points["share"], 0.25), "changed"].iloc[0]
        text = way if exact else f"{way} ({100 * changed:.0f} %)"
        text = "host = cheapest" if way == "host" and as_host else text
        ends[way] = (points["tokens_per_s"].iloc[-1], text)
    ax.set_yscale("log")
    ax.set_xlim(8, 118)
    ax.set_xticks([12.5, 25, 50, 75], ["12.5", "25", "50", "75"])
    low, high = span
    ax.set_ylim(low, high)
    ticks = [t for t in (1, 3, 10, 30, 100, 300, 1000) if low <= t <= high]
    ax.set_yticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    places = _apart({way: np.log(y / low) / np.log(high / low) for way, (y, _) in ends.items()})
    for way, (_, text) in ends.items():
        ax.annotate(text, (75, ends[way][0]), xytext=(0.68, places[way]), textcoords="axes fraction", va="center",
                    fontsize=style.SMALL, color=COLOURS[way],
                    arrowprops={"arrowstyle": "-", "lw": 0.5, "color": style.FAINT, "shrinkA": 0, "shrinkB": 4})


def _apart(heights: dict[str, float]) -> dict[str, float]:
    """Return *heights* (of names, 0 to 1) moved so that none covers another, in the same order."""
    order = sorted(heights, key=heights.__getitem__)
    placed = np.array([heights[way] for way in order])
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + GAP)
    placed -= max(placed[-1] - 0.98, 0)
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = min(placed[i], placed[i + 1] - GAP)
    return dict(zip(order, placed, strict=True))
