"""The computed part of the README, from the tables of this study."""

from __future__ import annotations

import numpy as np
import pandas as pd
from replays import READ_ME

from moesim.published import as_table, summary


def text(tables: dict[str, pd.DataFrame]) -> str:
    """Return the whole computed part."""
    rows = tables["published"].to_dict("records")
    return "\n\n".join([_answer(tables["hits"]), "![Hits by capacity](figures/hits.png)", summary(rows),
                        as_table(rows)])


def _answer(table: pd.DataFrame) -> str:
    hits = table.pivot(index="policy", columns="capacity", values="hit_percent")
    ahead = hits.loc["belady, forced"] - np.array(READ_ME["belady"])
    return ("**Two to four requests.** Uniform, independent requests for six experts have its rows *random* and *lru*. "
            f"One that sees all future requests would hit {ahead.min():.1f} to {ahead.max():.1f} points more than the "
            "published Belady: a queue of routed requests is short.")
