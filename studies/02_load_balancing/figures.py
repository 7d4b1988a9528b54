"""The figures of this study, from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from setting import BALANCINGS, COLLECTIVES, SOLVED_MB, network, solved

from moesim import plots
from moesim.plots import _style as style

COLOUR = {"spray": style.BLACK, "split": style.BLUE, "adaptive": style.GREEN, "ecmp": style.VERMILION,
          "mprdma 2": style.PURPLE, "mprdma 4": style.ORANGE, "mprdma 8": style.SKY, "flowlet 8": style.GREY}
NAME = {"spray": "spraying", "split": "splitting", "ecmp": "ECMP", "mprdma 2": "MP-RDMA 2", "mprdma 4": "MP-RDMA 4",
        "mprdma 8": "MP-RDMA 8", "flowlet 8": "flowlets (8)"}
PANELS = {"ring": "all-reduce, ring", "double binary tree": "all-reduce, double binary tree",
          "direct; all-to-all is alike": "all-reduce, direct", "halving-doubling": "all-reduce, halving-doubling"}
ROUTING = {"captured, one expert per device": (style.BLUE, "o"), "captured, 32 replicas (EPLB)": (style.VERMILION, "D"),
           "drawn evenly": (style.GREEN, "^"), "equal flows": (style.BLACK, "s")}


def save_all(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw all figures of *tables* into *folder*."""
    for name, drawn in (("collectives", collectives(tables["collectives"])), ("failure", failure(tables["failures"])),
                        ("replay", replay(tables["replay"])), ("layers", layers(tables["replay"])),
                        ("fabric", fabric())):
        plots.save(drawn, folder / f"{name}.png")


def collectives(table: pd.DataFrame) -> Any:
    """Draw completion relative to spraying: a panel per kind of collective, a row per balancing."""
    table = table[table["size_mb"] == SOLVED_MB]
    figure, axes = plots.figure(columns=4, size=(11.5, 4.3))
    rows = list(BALANCINGS)
    for ax, (panel, name) in zip(axes[0], PANELS.items(), strict=True):
        style.axes(ax)
        some = table[table["collective"] == name]
        right = max(float(some["most"].max()), 1.2)
        ax.axvline(1.0, color=style.FAINT, lw=1, zorder=1)
        for i, balancing in enumerate(rows):
            _row(ax, some[some["balancing"] == balancing], i, COLOUR[balancing])
        ax.set_xlim(1 - 0.06 * (right - 1), 1 + 1.3 * (right - 1))
        style.rows(ax, [NAME.get(b, b) for b in rows] if ax is axes[0, 0] else [""] * len(rows))
        ax.set_title(panel, loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("time / time with spraying", fontsize=style.NORMAL, color=style.INK)
    ecmp = table[table["balancing"] == "ecmp"].set_index("collective")["ratio"]
    title = (f"Splitting equals spraying everywhere; hashing takes {ecmp[PANELS['halving-doubling']]:.1f} times as "
             f"long with few large flows, {ecmp['all-reduce, direct'] - 1:.0%} more with many, nothing in a ring")
    return _titled(figure, title, f"256 GPUs, {SOLVED_MB} MB each; dot: mean over seeds, bar: least to most")


def _titled(figure: Any, title: str, note: str) -> Any:
    """Give *figure* a title over all its panels, and a *note* below it."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=style.TITLE, fontweight="bold", color=style.INK)
    figure.supxlabel(note, x=0.99, ha="right", fontsize=style.SMALL, color=style.INK)
    return figure


def _row(ax: Any, found: pd.DataFrame, y: int, colour: str) -> None:
    """Draw the one row of *found* at the height *y*: mean, and from least to most."""
    if found.empty:
        ax.text(1.0, y, "  not run", va="center", fontsize=style.SMALL, color=style.GREY)
        return
    row = found.iloc[0]
    ax.plot([row["least"], row["most"]], [y, y], color=colour, lw=4, solid_capstyle="butt", alpha=0.4, zorder=2)
    ax.scatter(row["ratio"], y, s=40, color=colour, zorder=3)
    ax.annotate(f"{row['ratio']:.3f}" if row["ratio"] < 1.9995 else f"{row['ratio']:.2f}", (row["most"], y), (7, 0),
                textcoords="offset points", va="center", fontsize=style.SMALL, color=style.INK)


def failure(table: pd.DataFrame) -> Any:
    """Draw completion against the moment at which a cable fails: direct, and halving-doubling."""
    figure, axes = plots.figure(columns=2, size=(10.2, 4.4))
    table = table[table["broken"] == "cable"]
    titles = {"direct": "Direct: splitting works on during the timeout, spraying waits for it",
              "halving_doubling": "Halving-doubling: one flow per pair, nothing else to do meanwhile"}
    for ax, (collective, title) in zip(axes[0], titles.items(), strict=True):
        style.axes(ax)
        some = table[table["collective"] == collective]
        ends = {}
        for balancing, line in some.groupby("balancing", sort=False):
            if balancing in ("mprdma 2", "mprdma 8"):
                continue
            x, y = line["moment"] * 100, line["time_s"] * 1e3
            whole = float((line["time_s"] - line["lost_s"]).iloc[0]) * 1e3
            ax.plot(x, y, "o-", ms=3.5, color=COLOUR[balancing], lw=1.6)
            ax.plot([0, 4], [whole, whole], color=COLOUR[balancing], lw=3)
            ends[balancing] = float(y.iloc[-1])
        top = max(ends.values())
        ax.set_ylim(2.2 if collective == "direct" else 0, 1.08 * max(top, float(some["time_s"].max()) * 1e3))
        for (balancing, y), place in zip(ends.items(), _apart(list(ends.values()), 0.055 * np.ptp(ax.get_ylim())),
                                         strict=True):
            ax.annotate(NAME.get(balancing, balancing), (99, y), (109, place), textcoords="data", va="center",
                        fontsize=style.NORMAL, color=COLOUR[balancing], annotation_clip=False,
                        arrowprops={"arrowstyle": "-", "lw": 0.6, "color": style.GREY})
        ax.set_xlim(0, 134)
        ax.set_xticks(range(0, 101, 20))
        style.finish(ax, title, "cable fails at (% of the time of spraying without failure)",
                     f"completion of {SOLVED_MB} MB (ms)")
    figure.supxlabel("bold at the left edge: without failure; splitting and adaptive are then as fast as spraying",
                     x=0.99, ha="right", fontsize=style.SMALL)
    return figure


def _apart(heights: list[float], gap: float) -> list[float]:
    """Return *heights* moved so far that neighbours are *gap* apart, around where they were."""
    order, places = np.argsort(heights, kind="stable"), np.array(heights, float)
    for _ in range(200):
        for below, above in zip(order[:-1], order[1:], strict=True):
            short = gap - (places[above] - places[below])
            if short > 1e-9:
                places[below] -= short / 2
                places[above] += short / 2
    return places.tolist()


def replay(table: pd.DataFrame) -> Any:
    """Draw what balancing costs against how uneven the ports are, per layer of the dispatch; ECMP and MP-RDMA 4."""
    figure, axes = plots.figure(columns=2, size=(10.2, 4.6))
    table = table[(table["layout"] == "spread") & (table["phase"] == "prefill")]
    top = 1.04 * float(table["most"].max())
    for ax, balancing in zip(axes[0], ("ecmp", "mprdma 4"), strict=True):
        style.axes(ax)
        for routing, (colour, marker) in ROUTING.items():
            some = table[(table["balancing"] == balancing) & (table["routing"] == routing)]
            ax.errorbar(some["imbalance"], some["ratio"], yerr=[some["ratio"] - some["least"],
                                                                 some["most"] - some["ratio"]],
                        fmt=marker, color=colour, ms=5, elinewidth=0.9, alpha=0.85)
        ax.axhline(1.0, color=style.GREY, lw=0.8)
        ax.set_ylim(0.97, top)
        ax.set_xlim(0.9, None)
        mean = {r: table[(table["balancing"] == balancing) & (table["routing"] == r)]["ratio"].mean() for r in ROUTING}
        one, even, *_ = (mean["captured, one expert per device"], mean["captured, 32 replicas (EPLB)"])
        title = (f"{NAME[balancing]}: {even:.2f} times spraying when experts are balanced, {one:.2f} when hot ones "
                 f"are the bottleneck")
        style.finish(ax, title, "busiest port of the group / its mean port", "time of a group / time with spraying")
    for i, (routing, (colour, marker)) in enumerate(ROUTING.items()):
        y = 0.96 - 0.065 * i
        axes[0, 1].scatter(0.47, y, marker=marker, color=colour, s=26, transform=axes[0, 1].transAxes)
        axes[0, 1].text(0.5, y, routing, color=colour, fontsize=style.NORMAL, va="center",
                        transform=axes[0, 1].transAxes)
    figure.supxlabel("prefill; a point per layer: mean over 8 groups and all seeds; bar: least to most", x=0.99,
                     ha="right", fontsize=style.SMALL)
    return figure


def layers(table: pd.DataFrame) -> Any:
    """Draw time over that of the busiest port, layer by layer, for the captured routings."""
    figure, axes = plots.figure(columns=2, size=(10.2, 4.2))
    table = table[(table["layout"] == "spread") & (table["phase"] == "prefill")]
    shown = ("ecmp", "mprdma 4", "adaptive", "split", "spray")
    for ax, routing in zip(axes[0], list(ROUTING)[:2], strict=True):
        style.axes(ax)
        some = table[table["routing"] == routing].set_index(["balancing", "layer"])["over_nic"]
        for i, balancing in enumerate(shown):
            line = some[balancing]
            ax.plot(line.index + 0.09 * (i - 2), line, "oD^sv"[i], ms=4.5, color=COLOUR[balancing])
            ax.text(12.0, 1.62 - 0.045 * i, NAME.get(balancing, balancing), color=COLOUR[balancing],
                    fontsize=style.NORMAL, va="center")
        ax.axhline(1.0, color=style.GREY, lw=0.8)
        ax.set_xticks(range(12))
        ax.set_xlim(-0.6, 14.6)
        ax.set_ylim(0.97, 1.68)
        above = int((some["ecmp"] > 1.05).sum())
        style.finish(ax, f"{routing[0].upper()}{routing[1:]}: ECMP is more than 5 % above the port in {above} of "
                     f"12 layers", "layer", "time of a group / time of its busiest port")
    figure.supxlabel("prefill; mean over 8 groups and all seeds; latency and the tolerance of the solver are 1 to 2 %",
                     x=0.99, ha="right", fontsize=style.SMALL)
    return figure


def fabric() -> Any:
    """Draw the fabric with the bytes of the halving-doubling all-reduce under ECMP, seed 0."""
    links = network("ecmp", 0).fabric.links()
    load = solved(COLLECTIVES["all-reduce, halving-doubling"], "ecmp", 0).load_bytes
    return plots.draw("fabric", links.assign(load_bytes=load[-len(links):]),
                      title="ECMP, halving-doubling of 64 MB: {answer}").figure
