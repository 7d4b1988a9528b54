"""Inter-layer affinity: where the tokens of an expert go in the next layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.optimize import linear_sum_assignment

from moesim.plots import _style as style


def affinity(table: pd.DataFrame, ax: Axes | None = None, *, layer: int | None = None,
             title: str = "{answer}") -> Axes:
    """Draw P(first choice in the next layer | first choice in *layer*) as a heat map.

    *table*: layer, expert, next_expert, tokens (pairs that do not occur may be left out). Without *layer* the one
    that tells most about its successor. Rows are clustered; columns stand where their partner row stands.
    """
    style.need(table, ("layer", "expert", "next_expert", "tokens"), "affinity")
    counts = {int(i): _matrix(table[table["layer"] == i]) for i in table["layer"].unique()}
    layer = max(counts, key=lambda i: _hit(counts[i]) - _popular(counts[i])) if layer is None else layer
    if layer not in counts:
        raise ValueError(f"affinity: layer {layer} is not in the table, which has {min(counts)}..{max(counts)}; "
                         f"choose one of them")
    chosen = counts[layer]
    share = chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1)
    rows, columns = _order(chosen, share)
    ax = style.axes(ax, (5.4, 4.8))
    image = ax.imshow(share[np.ix_(rows, columns)], cmap="Blues", vmin=0, aspect="equal", interpolation="nearest")
    bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0.1, 0.03, 0.8)))
    bar.set_label("P(next expert | expert)", fontsize=style.NORMAL)
    bar.ax.tick_params(labelsize=style.SMALL)
    bar.outline.set_visible(False)
    found = (f"Layer {layer} to {layer + 1}: the likeliest next expert is right for {_hit(chosen):.0%} of tokens, "
             f"the most popular one for {_popular(chosen):.0%}")
    _experts(ax, rows, columns)
    here, there = (f"first choice in layer {i} (expert)" for i in (layer, layer + 1))
    return style.finish(ax, style.answer(title, found), there, here)


def _matrix(part: pd.DataFrame) -> np.ndarray:
    size = int(max(part["expert"].max(), part["next_expert"].max())) + 1
    counts = np.zeros((size, size))
    np.add.at(counts, (part["expert"], part["next_expert"]), part["tokens"])
    return counts


def _hit(counts: np.ndarray) -> float:
    """Return how often the most likely successor is the right one."""
    return float(counts.max(axis=1).sum() / max(counts.sum(), 1))


def _popular(counts: np.ndarray) -> float:
    """Return how often the most popular successor is the right one."""
    return float(counts.sum(axis=0).max() / max(counts.sum(), 1))


def _order(counts: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows so that similar ones are neighbours, and columns so that partners lie on the diagonal."""
    rows = leaves_list(linkage(share, method="average", optimal_ordering=True)) if len(share) > 2 \
        else np.arange(len(share))
    _, partner = linear_sum_assignment(-counts[rows])
    return rows, partner


def _experts(ax: Axes, rows: np.ndarray, columns: np.ndarray) -> None:
    """Label rows and columns with expert numbers, every one if there is room."""
    every = max(1, -(-len(rows) // 32))
    ticks = np.arange(0, len(rows), every)
    size = 6.5 if len(ticks) > 16 else style.SMALL
    ax.set_xticks(ticks, columns[ticks], rotation=90, fontsize=size)
    ax.set_yticks(ticks, rows[ticks], fontsize=size)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
