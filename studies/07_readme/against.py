"""Read-ME's numbers beside what is found here."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from replays import DISTINCT, READ_ME

from moesim.published import Row, between, near


def compared(tables: dict[str, pd.DataFrame]) -> Iterator[Row]:
    """Compare hit ratios of Read-ME's Table 4, and the experts of its batches."""
    hits = tables["hits"].pivot(index="policy", columns="capacity", values="hit_percent")
    for policy in ("random", "lru"):
        for capacity, published in zip(hits.columns, READ_ME[policy], strict=True):
            yield near(f"{policy}, {capacity} of 6, hit %", published, hits.loc[policy, capacity], 2.5)
    for capacity, published in zip(hits.columns, READ_ME["belady"], strict=True):
        yield between(f"Belady, {capacity} of 6, hit %, if it sees 2 to 4 requests", published,
                      *hits.loc[["belady, window 2", "belady, window 4"], capacity], form=".1f")
    distinct = tables["batches"].set_index("by_expert")["distinct"]
    for aware, name in ((False, "first come"), (True, "by expert")):
        yield near(f"distinct experts of a batch, {name}", DISTINCT[aware], distinct[aware], 0.4 if aware else 0.3,
                   ".2f")
