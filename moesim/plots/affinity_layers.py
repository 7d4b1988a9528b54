"""Inter-layer affinity of every pair of layers: mutual information beside what shuffled tokens give."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moesim.plots import _style as style


def affinity_layers(table: pd.DataFrame, ax: Axes | None = None, *, title: str = "{answer}") -> Axes:
    """Draw, per pair of adjacent layers, mutual information as a share of the next expert's entropy.

    *table*: layer (the first of the pair), mutual_information_nat, null_nat (tokens of one layer shuffled),
    entropy_nat (of the next layer's first choice).
    """
    style.need(table, ("layer", "mutual_information_nat", "null_nat", "entropy_nat"), "affinity_layers")
    ax = style.axes(ax)
    known, null = (100 * table[c] / table["entropy_nat"] for c in ("mutual_information_nat", "null_nat"))
    ends = []
    for values, name, colour in ((known, "this trace", style.BLUE), (null, "tokens shuffled", style.GREY)):
        ax.plot(table["layer"], values, color=colour, marker="o", ms=4, lw=1.5)
        ends.append((values.iloc[-1], name, colour))
    for value, name, colour in ends:
        ax.annotate(name, (table["layer"].iloc[-1], value), (8, 0), textcoords="offset points", va="center",
                    fontsize=style.NORMAL, color=colour)
    ax.set_ylim(0, 1.12 * max(known.max(), null.max()))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    found = (f"A token's expert tells {known.mean():.0f}% of its expert in the next layer "
             f"(shuffled tokens: {null.mean():.2g}%)")
    return style.finish(ax, style.answer(title, found), "layer, with the next one",
                        "mutual information / entropy (%)")
