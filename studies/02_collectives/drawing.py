"""Figures of this study, from its tables alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke

from moesim import plots
from moesim.plots import _style as style

MIB = 2**20
COLOURS = {"flat": style.BLUE, "2DH": style.VERMILION, "hierarchical, one copy": style.ORANGE,
           "bi-level": style.PURPLE, "PXN": style.GREEN}
PART_COLOURS = {"startup": style.GREY, "messages": style.ORANGE, "copies": style.PURPLE, "NIC": style.BLUE,
                "NVLink": style.GREEN}
SCHEME_COLOURS = {"per expert": style.BLACK, "per device": style.BLUE, "per node": style.ORANGE,
                  "per node, at most 4": style.VERMILION}


def size_name(size: float) -> str:
    """Return *size* in KiB or MiB."""
    return f"{size / MIB:g} MiB" if size >= MIB else f"{size / 1024:g} KiB"


def time_name(seconds: float) -> str:
    """Return *seconds* in us or ms, two or three digits."""
    return f"{seconds * 1e6:.0f} µs" if seconds < 9.995e-4 else f"{seconds * 1e3:.1f} ms"


def crossover_map(ratio: pd.DataFrame, others: Mapping[str, pd.DataFrame], gain: pd.DataFrame,
                  published: Sequence[tuple[int, int, bool]], titles: Sequence[str]) -> Any:
    """Draw *ratio* flat / 2DH with the line of 1 (of *others* too), and below it the *gain* of PXN.

    *published*: (GPUs, bytes, whether 2DH was measured to be faster).
    """
    figure, axes = plots.figure(rows=2, size=(7.2, 10.4))
    two = LinearSegmentedColormap.from_list("two", [style.SKY, "white", style.ORANGE])
    _cells(axes[0, 0], ratio, two, np.log2(ratio.to_numpy()), 2.0)
    for label, table in others.items():
        _line(axes[0, 0], table, label)
    for gpus, size, won in published:
        at = (list(ratio.columns).index(gpus), list(ratio.index).index(size))
        axes[0, 0].add_patch(Circle(at, 0.42, fill=False, lw=2.2, color=style.VERMILION if won else style.BLUE))
    one = LinearSegmentedColormap.from_list("one", ["white", style.GREEN])
    _cells(axes[1, 0], gain, one, gain.to_numpy() - 1, 0.8, low=0.0)
    for ax, title in zip(axes[:, 0], titles, strict=True):
        style.finish(ax, title, "GPUs (8 a node)", "bytes that each GPU sends")
    axes[0, 0].annotate("Numbers: time of flat / time of 2DH. Lines: equal times, for a message cost as "
                        "written.\nRings: measured by Tutel (red: 2DH was faster, blue: flat was faster).",
                        (0, -0.16), xycoords="axes fraction", fontsize=style.SMALL, color=style.INK, va="top")
    return figure


def _cells(ax: Any, table: pd.DataFrame, colours: Any, values: np.ndarray, top: float,
           low: float | None = None) -> None:
    """Draw *table* as coloured cells with its numbers; colours are of *values*."""
    style.axes(ax)
    ax.imshow(values, cmap=colours, vmin=-top if low is None else low, vmax=top, aspect="auto", origin="lower")
    for (row, column), number in np.ndenumerate(table.to_numpy()):
        paper = colours(_share(float(values[row, column]), low, top))
        ax.text(column, row, f"{number:.2f}" if number < 9.995 else f"{number:.1f}", ha="center", va="center",
                fontsize=style.SMALL, color=style.INK, zorder=5,
                path_effects=[withStroke(linewidth=2.5, foreground=paper)])
    ax.set_xticks(range(table.shape[1]), [f"{n:,}" for n in table.columns])
    ax.set_yticks(range(table.shape[0]), [size_name(s) for s in table.index])


def _share(value: float, low: float | None, top: float) -> float:
    """Return where *value* is between *low* (None: -top) and *top*, 0 to 1."""
    bottom = -top if low is None else low
    return float(np.clip((value - bottom) / (top - bottom), 0, 1))


def _line(ax: Any, table: pd.DataFrame, label: str) -> None:
    """Draw where flat and 2DH take the same time; *label* ends in "taken" for the one that the cells show."""
    taken = label.endswith("taken")
    values = np.log2(table.to_numpy()[:, 1:])  # one node: nothing to choose
    x = np.arange(1, table.shape[1])
    ax.contour(x, np.arange(table.shape[0]), values, levels=[0.0], colors=[style.INK],
               linewidths=2.0 if taken else 1.0, linestyles="solid" if taken else "dashed")
    row = {"1": 8.62, "2": 5.55, "3": 4.38}[label[0]]
    at = np.array([np.interp(0.0, column, np.arange(len(column))) for column in (-values).T])
    order = np.argsort(at)
    ax.annotate(label, (float(np.interp(row, at[order], x[order])), row), (0, 0), textcoords="offset points",
                fontsize=style.SMALL, color=style.INK, ha="center", va="center",
                fontweight="bold" if taken else "normal",
                bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85})


def time_lines(table: pd.DataFrame, gpus: Sequence[int], title: str) -> Any:
    """Draw time against size, one panel per number of *gpus*, one line per algorithm."""
    figure, axes = plots.figure(columns=len(gpus), size=(3.6 * len(gpus), 4.4))
    for ax, n in zip(axes[0], gpus, strict=True):
        style.axes(ax)
        part = table[table["gpus"] == n]
        for name, rows in part.groupby("algorithm", sort=False):
            ax.loglog(rows["size_bytes"], rows["time_s"], color=COLOURS[str(name)], lw=1.6)
        ax.set_ylim(0.9 * table["time_s"][table["gpus"].isin(gpus)].min(), 2.0 * table["time_s"].max())
        ax.set_xlim(part["size_bytes"].min() / 1.5, part["size_bytes"].max() * 1.5)
        ax.set_xticks([2**16, MIB, 16 * MIB, 256 * MIB], ["64 KiB", "1 MiB", "16 MiB", "256 MiB"])
        ax.set_xticks([], minor=True)
        ax.set_yticks([1e-4, 1e-3, 1e-2], ["100 µs", "1 ms", "10 ms"])
        ax.text(0.04, 0.96, f"{n:,} GPUs", transform=ax.transAxes, fontsize=style.TITLE, va="top", color=style.INK)
    _names(axes[0, -1], table[table["gpus"] == gpus[-1]])
    figure.suptitle(title, x=0.01, ha="left", fontsize=style.TITLE, fontweight="bold", color=style.INK)
    figure.supxlabel("bytes that each GPU sends", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].set_ylabel("time of the all-to-all", fontsize=style.NORMAL, color=style.INK)
    return figure


def _names(ax: Any, part: pd.DataFrame) -> None:
    """Name the lines of the last panel, from top to bottom: flat above its line, the others below theirs."""
    order = part.groupby("algorithm")["time_s"].first().sort_values(ascending=False)
    first = part["size_bytes"].min()
    for i, (name, y) in enumerate(order.items()):
        up = 7 if i == 0 else -1.25 * style.SMALL * (i - 1) - 12
        text = f"{name}, above" if i == 1 else f"{name}, below" if i == len(order) - 1 else str(name)
        ax.annotate(text, (first, y if i == 0 else order.iloc[1]), (2, up), textcoords="offset points",
                    fontsize=style.SMALL + 0.5, color=COLOURS[str(name)], va="bottom" if i == 0 else "center")


def part_bars(table: pd.DataFrame, title: str) -> Any:
    """Draw where the time of every algorithm goes, relative to flat: one panel per size, groups of GPUs."""
    sizes, gpus = sorted(table["size_bytes"].unique()), sorted(table["gpus"].unique())
    names = list(dict.fromkeys(table["algorithm"]))
    figure, axes = plots.figure(columns=len(sizes), size=(10.8, 4.6))
    for ax, size in zip(axes[0], sizes, strict=True):
        style.axes(ax)
        ticks = []
        for g, n in enumerate(gpus):
            for i, name in enumerate(names):
                y = g * (len(names) + 0.8) + i
                rows = table[(table["size_bytes"] == size) & (table["gpus"] == n)]
                _bar(ax, y, rows[rows["algorithm"] == name], rows.loc[rows["algorithm"] == "flat", "time_s"].sum())
                ticks.append((y, f"{n:,} GPUs  {name}" if i == 0 else name))
        ax.set_yticks(*zip(*ticks, strict=True), fontsize=style.NORMAL)
        ax.set_ylim(ticks[-1][0] + 0.6, -0.6)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0, labelleft=ax is axes[0, 0])
        ax.set_xlim(0, 1.62)
        ax.set_xticks([0, 0.5, 1.0])
        ax.set_title(size_name(size), loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("time relative to flat", fontsize=style.NORMAL, color=style.INK)
    figure.suptitle(title, x=0.01, ha="left", fontsize=style.TITLE, fontweight="bold", color=style.INK)
    handles = [axes[0, 0].barh(0, 0, color=colour) for colour in PART_COLOURS.values()]
    figure.legend(handles, list(PART_COLOURS), loc="outside lower center", ncols=len(handles), frameon=False,
                  fontsize=style.NORMAL)
    return figure


def _bar(ax: Any, y: float, rows: pd.DataFrame, flat_s: float) -> None:
    """Draw the parts of one time, stacked, and write the time behind them."""
    left = 0.0
    for part, colour in PART_COLOURS.items():
        width = float(rows.loc[rows["part"] == part, "time_s"].sum()) / flat_s
        ax.barh(y, width, 0.82, left, color=colour)
        left += width
    ax.text(left + 0.02, y, time_name(left * flat_s), va="center", fontsize=style.SMALL, color=style.INK)


def schemes(table: pd.DataFrame, token_bytes: float, titles: Sequence[str]) -> Any:
    """Draw copies over the port per token, and the time for few and many tokens, against the number of nodes."""
    figure, axes = plots.figure(columns=3, size=(12.4, 4.4))
    few, many = sorted(table["tokens"].unique())
    panels = [(many, table["nic_bytes"] / (table["tokens"] * token_bytes), "copies over the port, per token"),
              (few, table["time_s"] * 1e6, f"dispatch of {few:,} tokens per GPU (µs)"),
              (many, table["time_s"] * 1e3, f"dispatch of {many:,} tokens per GPU (ms)")]
    for ax, (tokens, values, name), title in zip(axes[0], panels, titles, strict=True):
        style.axes(ax)
        for scheme, colour in SCHEME_COLOURS.items():
            rows = (table["tokens"] == tokens) & (table["scheme"] == scheme)
            ax.plot(np.log2(table["nodes"][rows]), values[rows], color=colour, lw=1.8, marker="o", ms=3.5)
        nodes = sorted(table["nodes"].unique())
        ax.set_xticks(np.log2(nodes), [f"{n}" for n in nodes])
        ax.set_ylim(0, None)
        style.finish(ax, title, "nodes of 8 H800", name)
    _scheme_names(axes[0, 2], table[(table["tokens"] == many) & (table["nodes"] == table["nodes"].max())])
    return figure


def _scheme_names(ax: Any, last: pd.DataFrame) -> None:
    """Write the names of the schemes to the right of their *last* points."""
    texts = {"per expert": ("once per expert (deepep_ll)", 7), "per device": ("once per device (flat, PXN)", -5),
             "per node": ("once per node", 0), "per node, at most 4": ("once per node, at most 4 nodes", 0)}
    for scheme, (text, up) in texts.items():
        row = last[last["scheme"] == scheme].iloc[0]
        ax.annotate(text, (np.log2(row["nodes"]), row["time_s"] * 1e3), (7, up), textcoords="offset points",
                    fontsize=style.SMALL + 0.5, color=SCHEME_COLOURS[scheme], va="center", annotation_clip=False)
