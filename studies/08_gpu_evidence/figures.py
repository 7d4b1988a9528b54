"""The figures of the page: kernels, steps and offload beside measured ones, a router's losses, and its routing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
from judging import STEP_BAR, Found
from matplotlib.ticker import NullFormatter

from moesim import plots
from moesim.plots import _style as style

NOT_DOMAINS = {"step", "tokens", "rate", "loss", "balance", "seconds"}  # columns of a loss table
GAP = 0.045  # of the height, between names at the ends of lines


def drawn(found: Found) -> dict[str, Any]:
    """Return the figures of what was measured, by name."""
    figures = {"kernels": kernels(found.points)}
    if len(found.steps):
        figures["steps"] = steps(found.steps)
    if len(found.offload):
        figures["offload"] = offload(found.offload)
    if found.losses is not None and len(found.losses):
        figures["losses"] = losses(found.losses)
    if found.routing is not None:
        figures["routing"] = routing(found.routing)
    return figures


def draw(found: Found, folder: Path) -> None:
    """Save all figures into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn(found).items():
        part = plots.save(figure, folder / f"{name}.part.png")
        os.replace(part, folder / f"{name}.png")


def kernels(points: pd.DataFrame) -> Any:
    """Draw every kernel that was not fitted."""
    figure, axes = plots.figure(size=(6.4, 5.4))
    plots.kernel_prediction(points, axes[0, 0], title="{answer}")
    return figure


def steps(table: pd.DataFrame) -> Any:
    """Draw every step."""
    figure, axes = plots.figure(size=(6.4, 5.4))
    ax = axes[0, 0]
    close = 100 * (table["error_percent"].abs() <= STEP_BAR[0]).mean()
    plots.kernel_prediction(table.assign(op=table["model"] + ", " + table["kind"], split="test"), ax,
                            title=f"{close:.0f} % of the steps are predicted to within {STEP_BAR[0]} %")
    for points in ax.collections:  # tens of them, not thousands
        points.set(sizes=[14], alpha=0.6)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
    return figure


def offload(table: pd.DataFrame) -> Any:
    """Draw tokens per second over the share of experts with room on the device, measured and predicted."""
    figure, axes = plots.figure(columns=2, size=(8.6, 3.8))
    colour = style.colours(sorted(table["batch"].unique()))
    for ax, ahead in zip(axes[0], (False, True), strict=True):
        style.axes(ax)
        for batch, rows in table[table["ahead"] == ahead].groupby("batch"):
            rows, of = rows.sort_values("resident"), colour[batch]
            ax.plot(100 * rows["resident"], rows["predicted_tok_s"], color=of, lw=1.4, label=f"batch {batch}")
            ax.plot(100 * rows["resident"], rows["measured_tok_s"], "o", color=of, ms=5)
        ax.set_ylim(0, 1.1 * float(table[["measured_tok_s", "predicted_tok_s"]].max().max()))
        ax.set_xlim(20, 105)
        ax.set_title("fetched ahead" if ahead else "fetched when needed", loc="left", fontsize=style.NORMAL)
        ax.set_xlabel("experts with room on the device (%)", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].set_ylabel("tokens/s", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].legend(frameon=False, fontsize=style.SMALL)
    worst = table["error_percent"].abs().max()
    return style.heading(figure, f"Points measured, lines predicted: {worst:.0f} % apart at most")


def losses(table: pd.DataFrame) -> Any:
    """Draw the loss in training and on every domain's held-out text over the tokens seen."""
    figure, axes = plots.figure(size=(7.2, 4.0))
    ax, seen = style.axes(axes[0, 0]), table["tokens"].cumsum() / 1e6
    names = ["loss", *(name for name in table if name not in NOT_DOMAINS)]
    colour = style.colours(names) | {"loss": style.BLACK}
    last = table[names].iloc[-1].sort_values()
    top, at = float(table[names].max().max()), -1.0
    for name, value in last.items():
        ax.plot(seen, table[name], color=colour[name], lw=1.8 if name == "loss" else 1.1, marker=".", ms=3)
        at = max(float(value), at + GAP * top)
        words = "training" if name == "loss" else f"{name}, held out"
        ax.annotate(f"{words} {value:.2f}", (1.01, at), xycoords=("axes fraction", "data"), color=colour[name],
                    va="center", fontsize=style.SMALL, annotation_clip=False)
    ax.set_ylim(0, 1.05 * top)
    ax.set_xlim(0, float(seen.iloc[-1]))
    held = last.drop("loss")
    found = f"Held-out loss goes from {table[held.index].iloc[0].mean():.2f} to {held.mean():.2f} nat per token"
    return style.finish(ax, found if len(held) else "Loss in training", "training tokens (millions)",
                        "loss (nat per token)").figure


def routing(table: pd.DataFrame) -> Any:
    """Draw load, affinity and overlap of the captured trace by layer, with what chance would give."""
    figure, axes = plots.figure(columns=3, size=(9.6, 3.2))
    panels = (("load, busiest expert / mean", [("load_max_over_mean", style.BLUE, "")], 1.0),
              ("first choices explained by the layer before (%)", [("affinity_fraction", style.BLUE, "")], 0.0),
              ("experts shared with the token before (%)",
               [("overlap", style.BLUE, "measured"), ("overlap_independent", style.GREY, "if independent")], None))
    for ax, (name, lines, chance) in zip(axes[0], panels, strict=True):
        style.axes(ax)
        scale = 100 if name.endswith("(%)") else 1
        for column, colour, label in lines:
            ax.plot(table["layer"], scale * table[column], color=colour, marker="o", ms=3, lw=1.2, label=label or None)
        if chance is not None:
            ax.axhline(chance, color=style.GREY, lw=0.8, ls=":")
        if len(lines) > 1:
            ax.legend(frameon=False, fontsize=style.SMALL)
        ax.set_ylim(0, None)
        ax.set_title(name, loc="left", fontsize=style.SMALL)
        ax.set_xlabel("layer with experts", fontsize=style.NORMAL, color=style.INK)
    mean = table.mean()
    return style.heading(figure, f"The busiest expert has {mean['load_max_over_mean']:.1f} times the mean load, "
                                 f"consecutive tokens share {100 * mean['overlap']:.0f} % of their experts")
