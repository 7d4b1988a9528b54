"""What is in SN40L's gain when many models share a node? Make everything in this folder again, in about 30 seconds.

Run `python studies/07_sn40l/study.py`: it computes the tables (CSV), draws the figures and puts the numbers between the
two markers of the README.
"""

from __future__ import annotations

from pathlib import Path

import drawing
import fusion
import pages
import pandas as pd
import placing
import switching

from moesim import plots
from moesim.page import renew

HERE = Path(__file__).resolve().parent
TABLES = {"switches": switching.switches, "table_v": switching.table_v, "popularity": switching.popularity,
          "capacity": switching.capacity, "footprint": switching.footprint, "launches": fusion.launches,
          "within": fusion.within, "decoding": fusion.decoding, "kernels": fusion.kernels,
          "sharing": placing.sharing, "spilled": placing.spilled}


def main() -> None:
    """Compute and renew this folder."""
    tables = {name: compute() for name, compute in TABLES.items()}
    text = write(tables, HERE)
    renew(HERE / "README.md", text)
    print(text)


def write(tables: dict[str, pd.DataFrame], folder: Path) -> str:
    """Write CSVs and figures of *tables* to *folder*; return the text for the README."""
    (folder / "figures").mkdir(exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    figures = {"capacity": drawing.capacity(tables["capacity"]), "speedup": drawing.speedup(tables["table_v"]),
               "launches": drawing.launches(tables["launches"], fusion.PUBLISHED)}
    for name, figure in figures.items():
        plots.save(figure, folder / "figures" / f"{name}.png")
    return pages.text(tables)


if __name__ == "__main__":
    main()
