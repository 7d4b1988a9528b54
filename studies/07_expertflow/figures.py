"""The figures of this study, from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from against import saved
from regrouping import BATCH, BATCHES, GAINS, SLOTS
from replays import EXPERT_FLOW, SETTINGS

from moesim import plots
from moesim.plots import _style as style

PANELS = ((("eight", "turn", "fewer_distinct"), "8 experts a subject,\ntokens dealt every turn"),
          (("quarter", "turn", "fewer_distinct"), "1/4 of the experts a subject,\ntokens dealt every turn"),
          (("eight", "turn", "fewer_misses"), f"LRU, {SLOTS} slots: 8 a subject,\ntokens dealt every turn"),
          (("eight", "request", "fewer_misses"), f"LRU, {SLOTS} slots: 8 a subject,\nrequests dealt once"))
NAMES = {"fewer_distinct": "fewer distinct experts (%)", "fewer_misses": "fewer misses (%)"}
COLOURS = dict(zip(GAINS, ("#6baed6", "#2171b5", "#08306b"), strict=True))


def drawn(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Return all figures of *tables*."""
    return {"hits": hits(tables["hits"]), "scheduler": scheduler(tables["scheduler"])}


def save_all(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Draw all figures of *tables* into *folder*."""
    for name, figure in drawn(tables).items():
        plots.save(figure, folder / f"{name}.png")


def hits(table: pd.DataFrame) -> Any:
    """Draw PLEC's hits by the recall of its predictor, LRU's, and what was published: a panel for each setting."""
    figure, axes = plots.figure(columns=3, size=(9.6, 3.4))
    for ax, (slots, batch) in zip(axes[0], SETTINGS, strict=True):
        style.axes(ax)
        some = table[(table["slots"] == slots) & (table["batch"] == batch)]
        plec, lru = some[some["policy"] == "plec"], some.loc[some["policy"] == "lru", "hit_percent"].iloc[0]
        ax.plot(plec["recall"], plec["hit_percent"], color=style.BLUE, marker="o", ms=3)
        ax.axhline(lru, color=style.ORANGE)
        for policy, colour in (("plec", style.BLUE), ("lru", style.ORANGE)):
            ax.axhline(EXPERT_FLOW[policy, slots, batch], color=colour, ls=":")
        if slots == 8:
            published = {f"{p.upper()}, published": EXPERT_FLOW[p, slots, batch] for p in ("plec", "lru")}
            for name, at in {"PLEC": plec["hit_percent"].iloc[-1], "LRU": lru, **published}.items():
                ax.annotate(name, (1.02, at), xycoords=("axes fraction", "data"), fontsize=style.SMALL, va="center",
                            color=style.BLUE if name.startswith("PLEC") else style.ORANGE, annotation_clip=False)
        ax.set_ylim(20, 102)
        ax.set_title(f"{slots} slots, batch {batch}", loc="left", fontsize=style.NORMAL, color=style.INK)
        ax.set_xlabel("recall of the predictor", fontsize=style.NORMAL, color=style.INK)
    axes[0, 0].set_ylabel("hits (%)", fontsize=style.NORMAL, color=style.INK)
    return style.heading(figure, "ExpertFlow: LRU's fall with the batch is found; where little fits, no recall gives "
                                 "what was published")


def scheduler(table: pd.DataFrame) -> Any:
    """Draw what dealing anew saves by the batch, a line for each number of experts; rows: two and eight subjects."""
    figure, axes = plots.figure(columns=len(PANELS), rows=2, size=(11.0, 5.6))
    for many, row in zip((2, 8), axes, strict=True):
        for ax, (which, name) in zip(row, PANELS, strict=True):
            style.axes(ax)
            kind, deal, column = which
            ax.axhline(0, color=style.FAINT, lw=1)
            ax.axvline(BATCH, color=style.FAINT, lw=1)
            for experts, colour in COLOURS.items():
                found = [100 * saved(table, kind, many, deal, b, column)[list(GAINS).index(experts)] for b in BATCHES]
                ax.plot(BATCHES, found, color=colour, lw=1.6, marker="o", ms=3)
            ax.set_xscale("log", base=2)
            ax.set_xticks(BATCHES, [str(b) for b in BATCHES])
            ax.minorticks_off()
            ax.set_ylim(*((-11, 31) if column == "fewer_misses" else (-1, 17)))
            ax.set_ylabel(f"{many} subjects:\n{NAMES[column]}" if ax in (row[0], row[2]) else "",
                          fontsize=style.NORMAL, color=style.INK)
            if many == 2:
                ax.set_title(name, loc="left", fontsize=style.NORMAL, color=style.INK)
            else:
                ax.set_xlabel("tokens of a batch", fontsize=style.NORMAL, color=style.INK)
    for experts, at in {32: (17, 4.3), 64: (17, 9.2), 128: (17, 15.2)}.items():  # beside their lines
        axes[0, 0].text(*at, f"{experts} experts", color=COLOURS[experts], fontsize=style.SMALL)
    return style.heading(figure, "Dealing anew gains more with more experts if a subject uses a fixed number of them, "
                                 "not a share")
