"""The figures of this study, from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import beyond
import numpy as np
import pandas as pd
import reproduce

from moesim import plots
from moesim.plots import _style as style

SHOWN = {"2xGPU": style.GREY, "Duplex": style.SKY, "Duplex+PE": style.ORANGE, "Duplex+PE+ET": style.BLUE}


def save_all(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw all figures of *tables* into *folder*."""
    for name, drawn in (("gains", gains(tables["stages"])), ("errors", errors(tables["stages"])),
                        ("elsewhere", elsewhere(tables["elsewhere"])), ("designs", designs(tables["designs"]))):
        plots.save(drawn, folder / f"{name}.png")


def headed(figure: Any, title: str, note: str) -> Any:
    """Give *figure* a title over all its panels, and a *note* below it."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=style.TITLE, fontweight="bold", color=style.INK)
    figure.supxlabel(note, x=0.99, ha="right", fontsize=style.SMALL, color=style.INK)
    return figure


def gains(stages: pd.DataFrame) -> Any:
    """Draw throughput over the GPU's in the 27 configurations of figure 11."""
    points = reproduce.Points(stages)
    figure, axes = plots.figure(columns=3, size=(12.4, 3.9))
    for ax, model in zip(axes[0], reproduce.THROUGHPUT, strict=True):
        style.axes(ax)
        found = points.of("tok_per_s", model=model).sort_index()
        at = np.arange(len(found))
        for i, (system, colour) in enumerate(SHOWN.items()):
            ax.bar(at + (i - 1.5) * 0.2, found[system] / found["GPU"], 0.19, color=colour, label=system)
        ax.axhline(1, color=style.BLACK, lw=1)
        ax.set_xticks(at, [f"{batch}\n{length}" for _, batch, length in found.index], fontsize=style.SMALL)
        ax.set_ylim(0, 3)
        ax.set_title(model, loc="left", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].set_ylabel("throughput / GPU's", fontsize=style.NORMAL, color=style.INK)
    axes[0, -1].legend(fontsize=style.SMALL, frameon=False, ncols=2, loc="upper right")
    best, mean = points.eleven(reproduce.FULL).max(), points.eleven(reproduce.FULL).mean()
    return headed(figure, f"Duplex with both kinds of sharing: {mean:.2f} times the GPU on average, {best:.2f} at best "
                          f"(published: 2.07, 2.67)", "below the bars: batch, prompt and output tokens")


def errors(stages: pd.DataFrame) -> Any:
    """Draw the error of every published ratio, at the settings fixed in advance and at the fitted latency."""
    latency = reproduce.fitted(stages)
    fixed, calibrated = (reproduce.compared(stages, s) for s in (reproduce.LATENCY_S, latency))
    rows = fixed.index[fixed["relative"]]
    figure, axes = plots.figure(size=(9.6, 4.8))
    ax = style.axes(axes[0, 0])
    for i, r in enumerate(rows):
        bound = 100 * fixed.loc[r, "tolerance"]
        ax.plot([-bound, bound], [i, i], color=style.FAINT, lw=9, solid_capstyle="butt")
    for table, colour, name in ((fixed, style.BLUE, "fixed in advance: 0.75, 3 us"),
                                (calibrated, style.ORANGE, f"calibrated: {latency * 1e6:.2f} us per hop")):
        ax.plot(100 * table.loc[rows, "error"], range(len(rows)), "o", ms=6, color=colour, label=name)
    ax.axvline(0, color=style.BLACK, lw=1)
    style.rows(ax, [str(what) for what in fixed.loc[rows, "what"]])
    ax.legend(fontsize=style.SMALL, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    ax.set_xlabel("error (%); grey: tolerance", fontsize=style.NORMAL, color=style.INK)
    within = int(fixed.loc[rows, "held"].sum())
    return headed(figure, f"{within} of {len(rows)} published ratios are within tolerance, most a little too high", "")


def elsewhere(table: pd.DataFrame) -> Any:
    """Draw throughput over the GPU's under other routing, kernels and collectives."""
    found = table.pivot_table(index=["case", "batch"], columns="system", values="tok_per_s", sort=False)
    over = found.div(found["GPU"], axis=0)
    figure, axes = plots.figure(columns=len(beyond.BATCHES), size=(12.4, 4.2))
    for ax, batch in zip(axes[0], beyond.BATCHES, strict=True):
        style.axes(ax)
        some = over.xs(batch, level="batch")
        at = np.arange(len(some))
        for i, system in enumerate(list(SHOWN)[1:]):
            ax.barh(at + (i - 1) * 0.27, some[system], 0.25, color=SHOWN[system], label=system)
        style.rows(ax, list(some.index) if batch == beyond.BATCHES[0] else [""] * len(some))
        ax.axvline(1, color=style.BLACK, lw=1)
        ax.set_xlim(0, 3)
        ax.set_title(f"batch {batch}", loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("throughput / GPU's", fontsize=style.NORMAL, color=style.INK)
    axes[0, -1].legend(fontsize=style.SMALL, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    low, high = (float(f(over[list(SHOWN)[-1]])) for f in (min, max))
    return headed(figure, f"Elsewhere too: with both kinds of sharing {low:.1f} to {high:.1f} times the GPU",
                  f"prompt and output: {beyond.LENGTH} tokens")


def designs(table: pd.DataFrame) -> Any:
    """Draw tokens per joule over the GPU's by bandwidth and operations per byte, without and with a cap of power."""
    figure, axes = plots.figure(columns=len(beyond.DESIGNED), rows=len(beyond.CAPS), size=(11.4, 6.0))
    for column, model in enumerate(beyond.DESIGNED):
        some = table[table["model"] == model]
        gpu = some.loc[some["bandwidth"] == 0, "tok_per_j"].item()
        for row, cap in enumerate(beyond.CAPS):
            ax = style.axes(axes[row, column])
            here = some[(some["bandwidth"] > 0) & (some["cap_w"] == (cap or 0))]
            grid = here.pivot(index="bandwidth", columns="op_per_byte", values="tok_per_j") / gpu
            ax.imshow(grid, cmap="YlGnBu", vmin=1, vmax=3, aspect="auto", origin="lower")
            for (y, x), value in np.ndenumerate(grid.to_numpy()):
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=style.SMALL,
                        color=style.INK if value < 2.2 else "white")
            ax.set_xticks(range(grid.shape[1]), [str(v) for v in grid.columns])
            ax.set_yticks(range(grid.shape[0]), [f"{v}x" for v in grid.index])
            ax.set_title(f"{model}, {'no cap' if cap is None else f'{cap} W per device'}", loc="left",
                         fontsize=style.NORMAL, color=style.INK)
    for ax in axes[-1]:
        ax.set_xlabel("FLOP per byte of its bandwidth", fontsize=style.NORMAL, color=style.INK)
    for ax in axes[:, 0]:
        ax.set_ylabel("bandwidth over HBM's", fontsize=style.NORMAL, color=style.INK)
    batches = ", ".join(f"{model} {batch}" for model, batch in beyond.DESIGNED.items())
    return headed(figure, "Tokens per joule over the GPU's: a cap of power evens designs out",
                  f"decodes, uniform routing; batch: {batches}")
