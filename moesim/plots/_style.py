"""What all figures share: colours, sizes, scaled axes with units, saving. No global matplotlib state is touched."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito, "Color Universal Design" (2008): told apart with every common kind of colour vision.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#000000"
GREY, FAINT, INK = "#8C8C8C", "#D9D9D9", "#262626"
CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)

DPI = 150  # figures are shown at 100 %: 7.2 inches are 1080 pixels
SMALL, NORMAL, TITLE = 8.0, 9.0, 10.5  # points
WIDTH, HEIGHT = 7.2, 4.0  # inches of one figure

PREFIXES = {"s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
            "bytes": ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))}

WORDS = {  # column -> what its axis is called; a suffix (_s, _bytes, _tok_per_s) gives the unit
    "load_max_over_mean": "load imbalance, busiest device / mean",
    "cross_top1": "first choices that change device (%)",
    "cross_all": "pairs of choices that change device (%)",
    "cross_node_top1": "first choices that change node (%)",
    "bytes_leaf_up": "bytes from leaf to spine", "bytes_nic_out": "bytes from device to leaf",
    "fanout": "devices per token and layer",
    "node_fanout": "nodes per token and layer",
    "ttft_s": "time to first token", "tpot_s": "time per output token", "e2e_s": "time to last token",
    "throughput_tok_per_s": "throughput (output tokens/s)", "output_tok_per_s": "output tokens/s",
    "prompt_tok_per_s": "prompt tokens/s", "running": "requests that run", "waiting": "requests that wait",
    "kv_used": "KV memory in use (%)", "time_s": "time since the first arrival",
}


def figure(columns: int = 1, rows: int = 1, size: tuple[float, float] | None = None,
           heights: Sequence[float] | None = None) -> tuple[Figure, np.ndarray]:
    """Return a figure of *size* (inches) and its Axes, [rows, columns]. It belongs to nobody else: no pyplot."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=size or (WIDTH * columns, HEIGHT * rows), dpi=DPI, layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=heights)


def axes(ax: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    """Return *ax*, or the only Axes of a new figure, with the look that all figures have."""
    ax = ax if ax is not None else figure(size=size)[1][0, 0]
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(labelsize=NORMAL, colors=INK, length=3)
    return ax


def finish(ax: Axes, title: str, x: str = "", y: str = "", pad: float = 6.0) -> Axes:
    """Name the axes of *ax* and give it its title. Call it last: what is drawn leaves the title its width."""
    ax.set_xlabel(x, fontsize=NORMAL, color=INK)
    ax.set_ylabel(y, fontsize=NORMAL, color=INK)
    return _headline(ax, title, pad)


def heading(figure: Figure, title: str) -> Figure:
    """Return *figure* with *title* over all of its Axes."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=TITLE, fontweight="bold", color=INK)
    return figure


def answer(title: str, found: str) -> str:
    """Return *title* with ``{answer}`` replaced by what the plot *found*: what every plot's option title means."""
    return title.replace("{answer}", found if title.startswith("{answer}") else found[0].lower() + found[1:])


def _headline(ax: Axes, title: str, pad: float) -> Axes:
    """Set the title of *ax* *pad* points above it, on as many lines as needed.

    It starts at the left of the axes, or, where there is no name of the y axis, of the labels beside it.
    """
    settle(ax)
    frame, box = ax.get_window_extent(), ax.get_tightbbox()
    left = 0.0 if ax.get_ylabel() or box is None else (box.x0 - frame.x0) / frame.width
    width = frame.width * (1 - left) / ax.figure.dpi * 72  # points
    text = textwrap.fill(title, max(20, int(width / (0.63 * TITLE))))  # 0.63: mean width of a bold letter
    ax.set_title(text, loc="left", x=left, pad=pad, fontsize=TITLE, fontweight="bold", color=INK)
    return ax


def settle(ax: Axes) -> None:
    """Let the layout of the figure find its place, so that positions on the page are known."""
    figure = ax.get_figure(root=True)
    assert figure is not None, "Axes outside a figure have no place"
    engine = figure.get_layout_engine()
    if engine is None:
        figure.draw_without_rendering()
    else:
        engine.execute(figure)


def rows(ax: Axes, labels: Sequence[str]) -> None:
    """Make the y axis of *ax* a list of *labels*, the first on top, without a line."""
    ax.set_yticks(range(len(labels)), labels, fontsize=NORMAL)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def need(table: pd.DataFrame, columns: Iterable[str], plot: str) -> pd.DataFrame:
    """Return *table*. Raises ``ValueError`` if it is empty or lacks one of *columns*."""
    missing = [c for c in columns if c not in table]
    if missing:
        raise ValueError(f"{plot}: the table has no column {', '.join(missing)}; it has "
                         f"{', '.join(map(str, table.columns))}; see the docstring of moesim.plots.{plot}")
    if table.empty:
        raise ValueError(f"{plot}: the table has no rows; give it at least one")
    return table


def sides(table: pd.DataFrame, column: str, plot: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the measured and the simulated rows of *table* (column source) that have a value in *column*."""
    need(table, ("source", column), plot)
    known = table.dropna(subset=[column])
    return tuple(need(known[known["source"] == s], (), plot) for s in ("measured", "simulated"))  # type: ignore[return-value]


def held_out(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of *table* that were not fitted (column split), or all if it has no others."""
    unseen = table["split"] != "fit" if "split" in table else pd.Series(True, table.index)
    return table[unseen] if unseen.any() else table


def keys(table: pd.DataFrame) -> list[str]:
    """Return which of the columns that tell points apart *table* has: placement, mode."""
    return [c for c in ("placement", "mode") if c in table]


def labels(table: pd.DataFrame) -> pd.Series:
    """Return one text per row that tells it apart: placement and, where it differs, the mode; else a sweep's axes."""
    columns = [c for c in keys(table) if c == "placement" or table[c].nunique() > 1] or _axes(table)
    if not columns:
        raise ValueError("the table has no column placement or mode to label its rows with; add one")
    return table[columns].astype(str).agg(", ".join, axis=1).str.replace("_", " ")


def _axes(table: pd.DataFrame) -> list[str]:
    """Return the axes of a sweep's *table* that vary: dotted paths, parts and modes by name, the seed."""
    return [c for c in map(str, table) if c not in ("warnings", "error") and table[c].nunique() > 1
            and ("." in c or c == "seed" or not pd.api.types.is_numeric_dtype(table[c]))]


def colours(names: Iterable[Any]) -> dict[Any, str]:
    """Return a colour for each of *names*, in order; the ninth has that of the first again."""
    return {name: CYCLE[i % len(CYCLE)] for i, name in enumerate(dict.fromkeys(names))}


def scale(values: Any, column: str) -> tuple[float, str]:
    """Return the divisor for *values* of *column*, SI inside, and the name of the axis with its unit."""
    suffix = next((s for s in PREFIXES if column == s or column.startswith(f"{s}_")
                   or (column.endswith(f"_{s}") and "_per_s" not in column)), None)
    words = WORDS.get(column, column if suffix is None else column.removesuffix(f"_{suffix}")).replace("_", " ")
    if suffix is None:
        return 0.01 if words.endswith("(%)") else 1.0, words
    top = float(np.nanmax(np.abs(np.asarray(values, dtype=float))))
    divisor, unit = next(((d, u) for d, u in PREFIXES[suffix] if top >= d), PREFIXES[suffix][-1])
    return divisor, f"{words} ({unit})"


def on(colour: str) -> str:
    """Return white or black, whichever reads better on *colour* (relative luminance, ITU-R BT.709)."""
    red, green, blue = matplotlib.colors.to_rgb(colour)
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5 else "black"


def save(figure: Any, path: str | Path) -> Path:
    """Write *figure* to *path* (.png or .svg); the same figure gives the same bytes."""
    path = Path(path)
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}}.get(path.suffix)
    if metadata is None:
        raise ValueError(f"{path}: a figure is saved as .png or .svg; change the suffix")
    with matplotlib.rc_context({"svg.hashsalt": "moesim", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=DPI, metadata=metadata, facecolor="white")
    return path
