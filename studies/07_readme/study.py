"""How far Read-ME's "Belady" sees. Make everything in this folder again.

Run `python studies/07_readme/study.py` (seconds): it computes the tables (CSV), draws the figures and puts the
numbers between the two markers of the README.
"""

from __future__ import annotations

from pathlib import Path

import against
import figures
import pages
import pandas as pd
import replays

from moesim import plots
from moesim.page import renew

HERE = Path(__file__).resolve().parent
TABLES = {"hits": replays.hits, "batches": replays.batches}


def main() -> None:
    """Compute and renew this folder."""
    tables = {name: compute() for name, compute in TABLES.items()}
    tables["published"] = pd.DataFrame(against.compared(tables))
    for name, table in tables.items():
        table.to_csv(HERE / f"{name}.csv", index=False, float_format="%.6g")
    for name, figure in figures.drawn(tables).items():
        plots.save(figure, HERE / "figures" / f"{name}.png")
    renew(HERE / "README.md", pages.text(tables))


if __name__ == "__main__":
    main()
