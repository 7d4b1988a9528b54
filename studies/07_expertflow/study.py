"""ExpertFlow: what a larger batch costs, and when dealing tokens anew pays. Make everything in this folder again.

Run `python studies/07_expertflow/study.py` (a quarter of a minute): it computes the tables (CSV), draws the figures and
puts the numbers between the two markers of the README.
"""

from __future__ import annotations

from pathlib import Path

import against
import figures
import pages
import pandas as pd
import regrouping
import replays

from moesim import plots
from moesim.page import renew

HERE = Path(__file__).resolve().parent
TABLES = {"hits": replays.hits, "popularity": replays.popularity, "scheduler": regrouping.scheduler,
          "strays": regrouping.strays}


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
