"""What papers on expert offloading found, replayed: make everything in this folder again, in a quarter of a minute.

Run `python studies/07_offload/study.py`: it computes the tables (CSV), draws the figures and puts the numbers between
the two markers of the README.
"""

from __future__ import annotations

from pathlib import Path

import against
import figures
import links
import pages
import pandas as pd
import replays

from moesim.page import renew

HERE = Path(__file__).resolve().parent
TABLES = {"readme": replays.readme, "batches": replays.batches, "expertflow": replays.expertflow,
          "scheduler": replays.scheduler, "bits": replays.bits, "residency": replays.residency,
          "lines": links.lines, "points": links.points, "sensitivity": links.sensitivity}


def main() -> None:
    """Compute and renew this folder."""
    tables = {name: compute() for name, compute in TABLES.items()}
    text = write(tables, HERE)
    renew(HERE / "README.md", text)


def write(tables: dict[str, pd.DataFrame], folder: Path) -> str:
    """Write CSVs and figures of *tables* to *folder*; return the text for the README."""
    tables = tables | {"published": against.compared(tables)}
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    figures.save_all(tables, folder / "figures")
    return pages.text(tables)


if __name__ == "__main__":
    main()
