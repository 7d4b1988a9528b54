"""ExpertFlow's numbers beside what is found here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pandas as pd
from regrouping import BATCH, GAINS, SLOTS
from replays import EXPERT_FLOW, RECALL, SETTINGS

from moesim.published import Row, claim, near


def compared(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return all rows: question, what, published, here, error, tolerance, held."""
    parts = {"hits": hits(tables["hits"]), "scheduler": scheduler(tables["scheduler"])}
    return pd.DataFrame([{"question": name} | row for name, rows in parts.items() for row in rows])


def hits(table: pd.DataFrame) -> Iterator[Row]:
    """Compare hit ratios of Fig. 10: each, then what a larger batch costs."""
    found = {}
    for (policy, slots, batch), published in EXPERT_FLOW.items():
        some = table[(table["policy"] == policy) & (table["slots"] == slots) & (table["batch"] == batch)]
        some = some if policy == "lru" else some[some["recall"] == RECALL]
        found[policy, slots, batch] = float(some["hit_percent"].iloc[0])
        chosen = " (favourites chosen for it)" * ((policy, slots, batch) == ("lru", 16, 4))
        yield near(f"{policy}, {slots} slots, batch {batch}, hit %{chosen}", published, found[policy, slots, batch], 5)
    falls = {p: [of[p, 16, 4] - of[p, 16, 16] for of in (EXPERT_FLOW, found)] for p in ("lru", "plec")}
    yield near("LRU falls from batch 4 to 16 by points", *falls["lru"], tolerance=5)
    yield claim("PLEC falls by points, less than 8", *(f"{fall:.1f}" for fall in falls["plec"]),
                held=falls["plec"][1] < 8)
    gains = [found["plec", *at] - found["lru", *at] for at in SETTINGS]
    yield claim("PLEC is ahead of LRU by points", "15 to 36", f"{min(gains):.1f} to {max(gains):.1f}",
                15 <= min(gains) and max(gains) <= 36)


def scheduler(table: pd.DataFrame) -> Iterator[Row]:
    """Compare what regrouping gains with more experts: two subjects, as many as there are batches to deal."""
    told = ", ".join(f"{gain:.2f}" for gain in GAINS.values())
    cases = (("eight", "turn", "fewer_distinct"), ("eight", "request", "fewer_misses"),
             ("eight", "turn", "fewer_misses"), ("quarter", "turn", "fewer_distinct"))
    uses = {"eight": "8 experts of a layer", "quarter": "a quarter of a layer's experts"}
    deals = {"turn": "tokens dealt every turn", "request": "requests dealt once"}
    for kind, deal, column in cases:
        found = saved(table, kind, 2, deal, BATCH, column)
        what = "distinct experts" if column == "fewer_distinct" else f"misses of LRU, {SLOTS} slots"
        yield claim(f"gain grows with 32, 64, 128 experts: fewer {what}, batch {BATCH}, {deals[deal]}, if a subject "
                    f"uses {uses[kind]}", f"{told} times tokens/s", ", ".join(f"{f:.1%}" for f in found), grows(found))


def saved(table: pd.DataFrame, kind: str, many: int, deal: str, batch: int, column: str) -> list[float]:
    """Return a column of the scheduler's table, one number for each number of experts."""
    some = table[(table["kind"] == kind) & (table["subjects"] == many) & (table["deal"] == deal)
                 & (table["batch"] == batch)]
    return [float(some.loc[some["experts"] == experts, column].iloc[0]) for experts in GAINS]


def grows(gains: list[float]) -> bool:
    """Whether something is gained, and more with more experts."""
    return gains[0] > 0 and all(a < b for a, b in itertools.pairwise(gains))
