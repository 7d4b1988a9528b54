"""The numbers of the README, from the tables of this study."""

from __future__ import annotations

import pandas as pd
from setting import BATCHES, CAPACITIES

from moesim.page import markdown

ORDER = ["random", "lru", "lfu", "lfru", "static", "eam", "hobbit", "mark_predict", "belady, forced", "belady"]


def numbers(tables: dict[str, pd.DataFrame]) -> str:
    """Return everything between the markers of the README."""
    grid = tables["grid"]
    parts = [answer(tables), "![Misses by capacity and batch](figures/misses.png)",
             *(f"### {trace}: misses / expert uses in %, 40 % of a layer's experts fit\n\n{misses(rows)}\n\n"
               f"The gap to Belady, in % of the best policy's misses, and what of it is admission:\n\n{gaps(rows)}"
               for trace, rows in grid.groupby("trace", sort=False)),
             "### The contract and the scope, batch 8, 40 %", contracts(tables["contracts"]),
             "### Loading ahead, LRU, 30 %", prefetching(tables["prefetching"]),
             "### One bit per use", "![Misses by wrong bits](figures/bits.png)"]
    return "\n\n".join(parts)


def at(grid: pd.DataFrame, trace: str, batch: int, capacity: str) -> pd.DataFrame:
    """Return the rows of one setting, by policy."""
    found = grid[(grid["trace"] == trace) & (grid["batch"] == batch) & (grid["capacity"] == capacity)]
    return found.set_index("policy")


def answer(tables: dict[str, pd.DataFrame]) -> str:
    """Return what was found, in words."""
    grid, told = tables["grid"], []
    for trace in grid["trace"].unique():
        one, many = at(grid, trace, 1, "40%"), at(grid, trace, 16, "40%")
        told.append(
            f"**{trace}**, 40 % of the experts fit. One request: {of_uses(one)}; {one['victim_share'].iloc[0]:.0%} of "
            f"the gap is knowing whose next use is furthest. Sixteen: {of_uses(many)}, and events use "
            f"{many['mean_fill'].iloc[0]:.1f} times what fits.")
    both = tables["contracts"].query("scope == 'layer'").pivot_table(
        index=["trace", "policy"], columns="contract", values="misses", sort=False)
    trace = both.index[0][0]
    more = (both["sequential"] / both["event"] - 1)[trace]
    order = {c: ", ".join(both.loc[trace, c].drop(["belady", "belady, forced"]).sort_values().index)
             for c in ("event", "sequential")}
    told.append(f"**The contract decides.** Replayed one expert after the other, LRU misses {more['lru']:.0%} more, "
                f"LFU {more['lfu']:+.0%}, Belady {more['belady']:+.0%} ({trace}, batch 8). Best to worst, events: "
                f"{order['event']}; one by one: {order['sequential']}.")
    return "\n\n".join(told)


def of_uses(rows: pd.DataFrame) -> str:
    """Return what the best policy, LRU and Belady miss of the uses."""
    best = rows["best_causal"].iloc[0]
    return ", ".join(f"{name} misses {rows.loc[name, 'miss_fraction']:.1%}" if i == 0 else
                     f"{'LRU' if name == 'lru' else 'Belady'} {rows.loc[name, 'miss_fraction']:.1%}"
                     for i, name in enumerate((best, "lru", "belady"))) + " of the uses"


def misses(grid: pd.DataFrame) -> str:
    """Return miss fractions by policy and batch."""
    some = grid[grid["capacity"] == "40%"].pivot(index="policy", columns="batch", values="miss_fraction")
    return markdown(["policy", *(f"batch {b}" for b in BATCHES)],
                    [[p, *(f"{100 * some.loc[p, b]:.1f}" for b in BATCHES)] for p in ORDER], 1)


def gaps(grid: pd.DataFrame) -> str:
    """Return the gap and its parts by capacity and batch."""
    first = grid.drop_duplicates(["batch", "capacity"]).set_index(["capacity", "batch"])

    def cell(row: pd.Series) -> str:
        return f"{100 * row['gap']:.0f} ({100 * row['admission_share']:.0f}), {row['best_causal']}"

    return markdown(["experts that fit", *(f"batch {b}" for b in BATCHES)],
                    [[c, *(cell(first.loc[(c, b)]) for b in BATCHES)] for c in CAPACITIES], 1)


def contracts(table: pd.DataFrame) -> str:
    """Return misses by contract and scope relative to events and caches of a layer."""
    rows = []
    for trace, some in table.groupby("trace", sort=False):
        wide = some.pivot_table(index="policy", columns=["contract", "scope"], values="misses")
        for policy in [p for p in ORDER if p in wide.index]:
            base = wide.loc[policy, ("event", "layer")]
            rows.append([f"{trace}, {policy}", f"{base:.0f}", f"{wide.loc[policy, ('sequential', 'layer')] / base:.2f}",
                         f"{wide.loc[policy, ('event', 'global')] / base:.2f}"])
    return markdown(["trace, policy", "misses, events", "one by one", "one cache for all layers"], rows, 1)


def prefetching(table: pd.DataFrame) -> str:
    """Return misses and loads by prefetcher."""
    rows = [[f"{r['trace']}, batch {r['batch']}, {r['prefetcher']}{' (oracle)' * bool(r['oracle'])}",
             f"{100 * r['misses'] / r['logical']:.1f}", f"{100 * r['loads'] / r['logical']:.1f}",
             f"{100 * r['unused_ahead'] / r['logical']:.1f}"] for _, r in table.iterrows()]
    return markdown(["in % of expert uses", "misses", "loads", "loaded and not used"], rows, 1)
