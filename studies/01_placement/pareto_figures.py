"""The figures of the stage pareto, from its table."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from setting import SOURCES, only, span, titled

from moesim import plots
from moesim.plots import _style as style

COLOUR = {4: style.BLUE, 8: style.VERMILION, 16: style.GREEN, 32: style.ORANGE, 64: style.PURPLE}
MARKS = {"linear": "s", "lpt": "v", "eplb +D": "^", "affinity": "D", "affinity all": "D", "coactivation": "P",
         "moetuner": "X", "joint": "o"}
NAMES = {"linear": "linear", "lpt": "lpt = eplb without replicas", "eplb +D": "eplb, a replica more per device",
         "affinity": "affinity alone", "affinity all": "affinity alone, of all pairs", "coactivation": "co-activation",
         "moetuner": "moetuner"}
KINDS = {  # column -> line that minimises it, points beside it, axis
    "cross_top1": ("top1", ("linear", "lpt", "eplb +D", "affinity", "moetuner"), "first choices that change device"),
    "cross_all": ("all", ("linear", "lpt", "eplb +D", "affinity all", "moetuner"),
                  "pairs of choices that change device"),
    "fanout": ("fanout", ("linear", "lpt", "eplb +D", "affinity"), "devices per token and layer")}
DEFAULT = {"top1": 0.3, "all": 0.3, "fanout": 0.8}  # balance of joint and of coactivation when nothing is said
LINES = {"top1": (style.BLUE, "joint: transitions of first choices"),
         "all": (style.GREEN, "joint: transitions of all pairs"),
         "fanout": (style.VERMILION, "coactivation: fan-out")}
BESIDE = 8  # devices at which both meanings are shown beside each other
MODES = {"copies_home": "dispatch_combine", "copies_stay": "context_coherent"}
BLIND = {"linear": ("linear", (0, 7), "center"), "lpt": ("lpt", (0, 7), "center"),
         "eplb +D": ("eplb +8", (-6, -5), "right")}
LOAD = "load imbalance, busiest device / mean"


def figures(table: pd.DataFrame) -> dict[str, Any]:
    """Return the figures by name."""
    table = table.assign(line=table["line"].fillna(""))
    names = {"cross_top1": "crossing", "cross_all": "crossing_all", "fanout": "fanout"}
    return {names[column]: _curves(table, column) for column in KINDS} | {"modes": _modes(table)}


def _curves(table: pd.DataFrame, column: str) -> Any:
    """Draw *column* against load, a panel per trace: a curve per number of devices, and solvers beside it."""
    line, points, axis = KINDS[column]
    percent = 100 if column.startswith("cross") else 1
    present = [name for name in SOURCES if name in set(table["trace"])]
    figure, axes = plots.figure(columns=len(present), size=(4.1 * len(present), 4.9))
    for ax, name in zip(axes[0], present, strict=True):
        style.axes(ax)
        some = table[table["trace"] == name]
        for devices, rows in some.groupby("devices"):
            colour = COLOUR[int(str(devices))]
            curve = rows[rows["line"] == line].sort_values("balance")
            ax.plot(curve["load_max_over_mean"], percent * curve[column], "-o", color=colour, ms=3.5, lw=1.6, zorder=3)
            for solver in points:
                row = rows[(rows["line"] == "") & (rows["solver"] == solver)]
                ax.scatter(row["load_max_over_mean"], percent * row[column], marker=MARKS[solver], s=30, zorder=4,
                           facecolors="white", edgecolors=colour, linewidths=1.2)
            end = (curve if len(curve) else rows[rows["line"] == ""]).sort_values("load_max_over_mean").iloc[-1]
            ax.annotate(f"{devices} devices", (end["load_max_over_mean"], percent * end[column]), (4, -11),
                        textcoords="offset points", fontsize=style.SMALL, color=colour, fontweight="bold")
        ax.set_ylim(0 if percent == 100 else 1, None)
        ax.set_xlim(1, 1 + 1.25 * (some["load_max_over_mean"].max() - 1))
        style.finish(ax, f"{name}, {some['experts'].iloc[0]} experts", LOAD,
                     (f"{axis} (%)" if percent == 100 else axis) if ax is axes[0, 0] else "")
    _key(figure, points, "coactivation" if line == "fanout" else "joint")
    return titled(figure, _title(table, column))


def _key(figure: Any, points: tuple[str, ...], solver: str) -> None:
    """Say below the panels what the marks are."""
    marks = [Line2D([], [], marker="o", color=style.INK, ms=4, lw=1.6)]
    marks += [Line2D([], [], marker=MARKS[p], color="none", markerfacecolor="white", markeredgecolor=style.INK, ms=6)
              for p in points]
    words = [f"{solver}: from right to left more is paid for balance", *(NAMES[p] for p in points)]
    figure.legend(marks, words, loc="outside lower center", ncols=3, frameon=False, fontsize=style.SMALL)


def kept(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return one row per trace and number of devices (below the experts): what can be saved, and had with balance.

    saved: the share of linear's *column* that the line saves when it is blind to load; kept: what of that its default
    balance keeps; blind_load, load, lpt_load: load max/mean of the one, the other, and of lpt.
    """
    line, found = KINDS[column][0], []
    table = table.assign(line=table["line"].fillna(""))  # as a CSV file is read
    for (name, devices), rows in table[table["devices"] < table["experts"]].groupby(["trace", "devices"], sort=False):
        curve = rows[rows["line"] == line].set_index("balance")
        linear, lpt = (only(rows, line="", solver=s).iloc[0] for s in ("linear", "lpt"))
        blind, balanced = curve.loc[0.0], curve.loc[DEFAULT[line]]
        saved = linear[column] - blind[column]
        found.append({"trace": name, "devices": devices, "linear": linear[column], "saved": saved / linear[column],
                      "kept": (linear[column] - balanced[column]) / saved, "blind_load": blind["load_max_over_mean"],
                      "load": balanced["load_max_over_mean"], "lpt_load": lpt["load_max_over_mean"]})
    return pd.DataFrame(found)


def _title(table: pd.DataFrame, column: str) -> str:
    found = kept(table, column)
    what = {"cross_top1": "first choices change device", "cross_all": "pairs of choices change device",
            "fanout": "devices per token"}[column]
    solver = "co-activation" if column == "fanout" else "joint"
    return (f"Blind to load, {span(found['saved'], '.0%')} fewer {what} than with linear; {solver} with its default "
            f"balance keeps {span(found['kept'], '.0%')} of that, at a load at most "
            f"{(found['load'] / found['lpt_load'] - 1).max():.0%} above lpt's")


def _modes(table: pd.DataFrame) -> Any:
    """Draw copies against load under both meanings, with the curves of what each solver minimises."""
    present = [name for name in SOURCES if name in set(table["trace"])]
    figure, axes = plots.figure(columns=2, rows=len(present), size=(9.2, 3.2 * len(present) + 0.4))
    for row, name in zip(axes, present, strict=True):
        some = table[(table["trace"] == name) & (table["devices"] == BESIDE)]
        for ax, (column, mode) in zip(row, MODES.items(), strict=True):
            style.axes(ax)
            ax.set_ylim(0, 1.08 * some[list(MODES)].to_numpy().max())
            most = some["load_max_over_mean"].max() - 1
            ax.set_xlim(1 - 0.14 * most, 1 + 1.08 * most)  # room for a name left of 1
            ax.set_xticks([x for x in ax.get_xticks() if 1 <= x < 1 + 1.08 * most])
            style.finish(ax, f"{name}: {mode}", LOAD if name == present[-1] else "",
                         "copies per token and layer" if ax is row[0] else "")
            _copies(ax, some, column)
    for i, (colour, words) in enumerate(LINES.values()):
        axes[0, 0].text(0.03, 0.3 - 0.09 * i, words, color=colour, fontsize=style.NORMAL, fontweight="bold",
                        transform=axes[0, 0].transAxes)
    best = worth(table)
    return titled(figure, f"{BESIDE} devices, fewer copies than with linear: placed by all pairs "
                           f"{span(best['all_home'], '.0%')} when tokens return, {span(best['all_stay'], '.0%')} when "
                           f"they stay; by first choices {span(best['top1_home'], '.0%')} and "
                           f"{span(best['top1_stay'], '.0%')}")


def _copies(ax: Any, some: pd.DataFrame, column: str) -> None:
    """Draw the curves of *column* and the solvers beside them."""
    for solver, (words, offset, side) in BLIND.items():
        row = some[(some["line"] == "") & (some["solver"] == solver)].iloc[0]
        at = row["load_max_over_mean"], row[column]
        ax.scatter(*at, marker=MARKS[solver], s=34, facecolors="white", edgecolors=style.INK, zorder=4)
        ax.annotate(words, at, offset, textcoords="offset points", ha=side, fontsize=style.NORMAL, color=style.INK)
    for line, (colour, _) in LINES.items():
        curve = some[some["line"] == line].sort_values("balance")
        ax.plot(curve["load_max_over_mean"], curve[column], "-o", color=colour, ms=3.5, lw=1.6)


def worth(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per trace: the share of linear's copies that each line, at its default balance, saves with
    *BESIDE* devices, ``<line>_home`` and ``<line>_stay``, and what staying saves with linear (``stay``)."""
    found = []
    table = table.assign(line=table["line"].fillna(""))
    for name, some in table[table["devices"] == BESIDE].groupby("trace", sort=False):
        linear = only(some, line="", solver="linear").iloc[0]
        row = {"trace": name, "stay": 1 - linear["copies_stay"] / linear["copies_home"]}
        for line, balance in DEFAULT.items():
            of = only(some, line=line, balance=balance).iloc[0]
            row |= {f"{line}_{mode}": 1 - of[f"copies_{mode}"] / linear[f"copies_{mode}"] for mode in ("home", "stay")}
        found.append(row)
    return pd.DataFrame(found)
