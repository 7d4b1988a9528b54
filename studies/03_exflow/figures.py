"""The figures of this study, from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import costs
import numpy as np
import pandas as pd
import setting

from moesim import plots
from moesim.plots import _style as style

COLOUR = dict(zip(setting.EXPERTS, (style.BLUE, style.VERMILION, style.GREEN, style.PURPLE), strict=True))
MARK = dict(zip(setting.EXPERTS, "osD^", strict=True))
LINES = {  # placement, way of counting: name, colour, line
    ("linear", "exflow"): ("coherent", style.SKY, "--"),
    ("affinity_sweep", "exflow"): ("coherent + affinity", style.BLUE, "-"),
    ("affinity_sweep", "waiting"): ("+ waiting", style.GREEN, "-"),
    ("affinity_sweep", "kv"): ("+ keys and values", style.ORANGE, "-"),
    ("affinity_sweep", "full"): ("+ prompts", style.VERMILION, "-")}
PIECES = {"compute": style.FAINT, "waiting": style.GREY, "dispatch": style.BLUE, "combine": style.SKY,
          "vectors gathered": style.GREEN, "keys and values gathered": style.ORANGE, "prompts": style.VERMILION}


def save_all(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw all figures of *tables* into *folder*."""
    for name, drawn in (("speedup", speedup(tables)), ("cross", cross(tables["placements"])),
                        ("breakdown", breakdown(tables)), ("batch", batch(tables)), ("volume", volume(tables))):
        plots.save(drawn, folder / f"{name}.png")


def headed(figure: Any, title: str, note: str) -> Any:
    """Give *figure* a title over all its panels, and a *note* below it."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=style.TITLE, fontweight="bold", color=style.INK)
    figure.supxlabel(note, x=0.99, ha="right", fontsize=style.SMALL, color=style.INK)
    return figure


def gpus_axis(ax: Any, gpus: list[int], right: float) -> None:
    """Make the x axis of *ax* a logarithm of GPUs, with room of *right* octaves for names."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(gpus, [str(n) for n in gpus])
    ax.minorticks_off()
    ax.set_xlim(gpus[0] / 2**0.3, gpus[-1] * 2**right)
    ax.set_xlabel("GPUs", fontsize=style.NORMAL, color=style.INK)


def named(ax: Any, ends: list[tuple[float, float, str, str]], gap: float) -> None:
    """Write names beside the ends (x, y, name, colour) of lines, at least *gap* of the axis apart."""
    low, high = ax.get_ylim()
    place = np.array([end[1] for end in ends])
    order, space = np.argsort(place, kind="stable"), gap * (high - low)
    for _ in range(200):
        for below, above in zip(order[:-1], order[1:], strict=True):
            short = space - (place[above] - place[below])
            if short > 1e-9:
                place[below] -= short / 2
                place[above] += short / 2
    for (x, y, name, colour), at in zip(ends, place, strict=True):
        ax.annotate(name, (x, y), (9, (at - y) / (high - low) * ax.get_window_extent().height * 72 / ax.figure.dpi),
                    textcoords="offset points", va="center", fontsize=style.SMALL, color=colour, annotation_clip=False)


def speedup(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw the speed-up over GPUs: a panel per model, a line per way of counting."""
    table = costs.grid(tables["iterations"])
    figure, axes = plots.figure(columns=4, size=(12.4, 4.3))
    for ax, experts in zip(axes[0], setting.EXPERTS, strict=True):
        style.axes(ax)
        gpus = [n for e, n in setting.GRID if e == experts]
        ax.plot([gpus[0] / 2**0.3, gpus[-1]], [1, 1], color=style.BLACK, lw=1)
        ends = []
        for (placement, counting), (name, colour, dash) in LINES.items():
            line = table[(table["experts"] == experts) & (table["placement"] == placement)
                         & (table["mode"] == "context_coherent")]
            ax.plot(line["gpus"], line[counting], dash, marker="o", ms=4, lw=1.8, color=colour)
            ends.append((float(line["gpus"].iloc[-1]), float(line[counting].iloc[-1]), name, colour))
        stars = [point for point in setting.PUBLISHED if point.experts == experts and point.speedup]
        for point in stars:
            ax.plot(point.gpus, point.speedup, "*", ms=13, color=style.BLACK)
        if stars:  # one name for all, where no line is
            last, far = stars[-1], stars[-1].speedup > 1.3
            ax.annotate(f"published {last.speedup:.2g}", (last.gpus, last.speedup), (9, -3) if far else (2, 9),
                        textcoords="offset points", ha="left" if far else "right", fontsize=style.SMALL,
                        color=style.INK)
        gpus_axis(ax, gpus, 2.3 if experts > 8 else 1.4)
        ax.set_ylim(0, 2.45)
        named(ax, ends, 0.045)
        ax.set_title(f"{experts} experts", loc="left", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].set_ylabel("throughput / baseline's", fontsize=style.NORMAL, color=style.INK)
    note = "baseline (black line): two all-to-alls per layer, experts in order; stars: published by ExFlow, \"up to\""
    return headed(figure, costs.speedup_title(table), note)


def cross(table: pd.DataFrame) -> Any:
    """Draw the fraction of transitions that change GPU, and how much less than without affinity."""
    figure, axes = plots.figure(columns=2, size=(11.0, 4.5))
    left, right = (style.axes(ax) for ax in axes[0])
    first = np.array(setting.GPUS)
    left.plot(first, 100 * (1 - 1 / first), "--", color=style.BLACK, lw=1.2)
    ends = [(float(first[-1]), 100 * (1 - 1 / first[-1]), "in order: about 1 - 1/GPUs", style.BLACK)]
    for experts in setting.EXPERTS:
        gpus = [n for e, n in setting.GRID if e == experts]
        mine = [costs.pick(table, experts=experts, gpus=n, placement="affinity_sweep") for n in gpus]
        kept = [100 * row["cross_top1"] for row in mine]
        less = [100 * costs.fewer(table, experts, n) for n in gpus]
        for ax, values in ((left, kept), (right, less)):
            ax.plot(gpus, values, marker=MARK[experts], ms=5, lw=1.8, color=COLOUR[experts], label=f"{experts} experts")
    for ax in (left, right):
        gpus_axis(ax, list(setting.GPUS), 1.9)
    left.set_ylim(0, 104)
    right.set_ylim(0, 75)
    _published_fractions(left, right)
    named(left, ends, 0.05)
    left.legend(loc="lower right", fontsize=style.SMALL, frameon=False)
    style.finish(left, "The fewer experts a GPU has, the fewer tokens stay", "GPUs", "transitions that change GPU (%)")
    style.finish(right, costs.fewer_title(table), "GPUs", "fewer than with experts in order (%)")
    return figure


def _published_fractions(left: Any, right: Any) -> None:
    """Mark what ExFlow reports, on the panels of the fraction and of the reduction."""
    for gpus, fraction in setting.MIXTRAL.items():
        name = "Mixtral, 8 experts, placed by ExFlow" if gpus == min(setting.MIXTRAL) else ""
        left.plot(gpus, 100 * fraction, "X", ms=8, color=style.BLACK, label=name, ls="")
        right.plot(gpus, 100 * (1 - fraction / (1 - 1 / gpus)), "X", ms=8, color=style.BLACK)
    for point in setting.PUBLISHED:
        if point.fewer:
            right.plot(point.gpus, 100 * point.fewer, "*", ms=13, color=COLOUR[point.experts], mec=style.BLACK)
            right.annotate(f"published, {point.experts} experts", (point.gpus, 100 * point.fewer), (8, 6),
                           textcoords="offset points", fontsize=style.SMALL, color=style.INK)
    right.axhline(100 * setting.UP_TO_FEWER, color=style.GREY, lw=1, ls=":")
    right.text(setting.GPUS[-1] * 3.2, 100 * setting.UP_TO_FEWER + 1, "published: up to 67 %", ha="right",
               fontsize=style.SMALL, color=style.INK)


def breakdown(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw what one generated token of each request takes, part by part, at four points."""
    table = costs.grid(tables["iterations"])
    figure, axes = plots.figure(columns=len(costs.SHOWN), size=(12.4, 4.2))
    names = {"dispatch_combine": "baseline", "linear": "coherent", "affinity_sweep": "+ affinity"}
    for ax, (experts, gpus) in zip(axes[0], costs.SHOWN, strict=True):
        style.axes(ax)
        some = table[(table["experts"] == experts) & (table["gpus"] == gpus) & (table["placement"] != "joint")]
        for i, row in enumerate(some.to_dict("records")):
            start = 0.0
            for piece, seconds in costs.pieces(row).items():
                ax.barh(i, 1e3 * seconds, left=start, color=PIECES[piece], height=0.62, ec="white", lw=0.6)
                start += 1e3 * seconds
            ax.annotate(f"{start:.1f}", (start, i), (4, 0), textcoords="offset points", va="center",
                        fontsize=style.SMALL, color=style.INK)
        ax.set_xlim(0, ax.get_xlim()[1] * 1.12)
        style.rows(ax, [names.get(r["mode"], names.get(r["placement"], "")) for r in some.to_dict("records")]
                   if ax is axes[0, 0] else [""] * len(some))
        ax.set_title(f"{experts} experts on {gpus} GPUs", loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("ms per generated token", fontsize=style.NORMAL, color=style.INK)
    handles = [axes[0, 0].barh(np.nan, 0, color=colour) for colour in PIECES.values()]
    figure.legend(handles, list(PIECES), loc="outside lower left", ncols=len(PIECES), fontsize=style.SMALL,
                  frameon=False)
    figure.suptitle(costs.breakdown_title(table), x=0.01, ha="left", fontsize=style.TITLE, fontweight="bold",
                    color=style.INK)
    return figure


def batch(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw the speed-up of 16 experts on 8 GPUs over the requests per GPU."""
    table = costs.batches(tables["iterations"])
    ax = style.axes(None, size=(7.6, 4.4))
    ax.plot([setting.BATCHES[0] * 0.8, setting.BATCHES[-1]], [1, 1], color=style.BLACK, lw=1)
    ends = []
    for (placement, counting), (name, colour, dash) in LINES.items():
        line = table[(table["placement"] == placement) & (table["mode"] == "context_coherent")]
        ax.plot(line["per_gpu"], line[counting], dash, marker="o", ms=4, lw=1.8, color=colour)
        ends.append((float(line["per_gpu"].iloc[-1]), float(line[counting].iloc[-1]), name, colour))
    free = table[table["mode"] == "dispatch_combine"]
    ax.plot(free["per_gpu"], free["ceiling"], ":", color=style.GREY, lw=1.8)
    last = free.iloc[-1]
    ends.append((float(last["per_gpu"]), float(last["ceiling"]), "all-to-alls for nothing", style.GREY))
    ax.plot([setting.BATCHES[0] * 0.8, setting.BATCHES[-1]], [2.2, 2.2], color=style.BLACK, lw=1, ls="-.")
    ax.text(setting.BATCHES[0], 2.22, "published: up to 2.2", fontsize=style.SMALL, va="bottom", color=style.INK)
    ax.set_xscale("log", base=4)
    ax.set_xticks(setting.BATCHES, [str(n) for n in setting.BATCHES])
    ax.minorticks_off()
    ax.set_xlim(setting.BATCHES[0] * 0.8, setting.BATCHES[-1] * 9)
    ax.set_ylim(0, 2.45)
    named(ax, ends, 0.045)
    style.finish(ax, costs.batch_title(table), "requests per GPU", "throughput / baseline's")
    return ax.figure


def volume(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw the bytes that are sent per generated token, and the requests that fit."""
    figure, axes = plots.figure(columns=2, size=(11.0, 4.4))
    left, right = (style.axes(ax) for ax in axes[0])
    sent, fit = costs.sent_bytes(tables["placements"], 64), costs.memory(tables["iterations"], 64)
    for ax, table, looks in (
            (left, sent.assign(**sent[["baseline", "exflow", "kv"]] / 1e3),
             (("baseline", "two all-to-alls", style.BLACK), ("exflow", "one, and a vector to all", style.BLUE),
              ("kv", "one, and keys and values to all", style.ORANGE))),
            (right, fit, (("baseline", "each GPU holds its own", style.BLACK),
                          ("coherent", "every GPU holds all", style.BLUE)))):
        for column, name, colour in looks:
            ax.plot(table["gpus"], table[column], marker="o", ms=4, lw=1.8, color=colour)
            last = (table["gpus"].iloc[-1], table[column].iloc[-1])
            ax.annotate(f"{name}: {last[1]:,.1f}" if last[1] < 10 else f"{name}: {last[1]:,.0f}", last, (8, 0),
                        textcoords="offset points", va="center", fontsize=style.SMALL, color=colour)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:,.0f}")
        gpus_axis(ax, list(setting.GPUS), 3.4)
    style.finish(left, costs.sent_title(sent), "GPUs", "sent by all GPUs per generated token (kB)")
    style.finish(right, costs.memory_title(fit), "GPUs", "requests of 2048 tokens per GPU that fit")
    return figure
