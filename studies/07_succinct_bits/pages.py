"""The computed part of the README, from the table of this study."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moesim.published import as_table, summary


def text(tables: dict[str, pd.DataFrame]) -> str:
    """Return the whole computed part."""
    rows = tables["published"].to_dict("records")
    return "\n\n".join([_answer(tables["bits"]), "![Faults by wrong bits](figures/bits.png)", summary(rows),
                        as_table(rows)])


def _answer(table: pd.DataFrame) -> str:
    told = []
    for (experts, room), some in table.groupby(["experts", "room"], sort=False):
        lru = float(some.loc[some["policy"] == "lru", "ratio"].iloc[0])
        both = some[some["wrong"] == "both"]
        cross = {p: _crossing(both[both["policy"] == p], lru) for p in ("mark0", "mark_predict")}
        told.append(f"{room} of {experts}: LRU {lru:.2f} times OPT; MARK0 is ahead of it up to {cross['mark0']} wrong "
                    f"bits, MARK&PREDICT up to {cross['mark_predict']}")
    return "**With exact bits MARK0 is OPT.** " + ". ".join(told) + ". Bounds hold and are far away."


def _crossing(points: pd.DataFrame, level: float) -> str:
    if points["ratio"].max() < level:
        return f"{points['error'].max():.0%} and more"
    return f"{np.interp(level, points['ratio'], points['error']):.0%}"
