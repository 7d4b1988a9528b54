"""The theorems' numbers beside what is found here."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from moesim.published import Row, claim, near


def compared(tables: dict[str, pd.DataFrame]) -> Iterator[Row]:
    """Compare faults over OPT's with the theorems."""
    table = tables["bits"]
    for (experts, room), some in table.groupby(["experts", "room"], sort=False):
        exact = some[(some["error"] == 0) & (some["wrong"] == "both")].set_index("policy")["ratio"]
        yield near(f"MARK0, exact bits, {room} of {experts}: faults / OPT", 1, exact["mark0"], 0.001, ".3f")
        yield claim(f"MARK&PREDICT, exact bits, {room} of {experts}: faults / OPT", "at most 2",
                    f"{exact['mark_predict']:.2f}", exact["mark_predict"] <= 2)
    told = table[table["policy"].str.startswith("mark")]
    used = ((told["ratio"] - 1) / (told["bound"] - 1).where(told["bound"] > 1)).dropna()
    yield claim(f"{len(told)} points stay below their bound", "all", f"nearest: {used.max():.0%} of what it allows",
                bool((told["ratio"] <= told["bound"] + 1e-9).all()))
