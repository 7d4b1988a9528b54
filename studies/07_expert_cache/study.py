"""Which expert should leave? Make everything in this folder again.

Run `python studies/07_expert_cache/study.py` (a minute of two cores). With `--public FOLDER` it also replays the
public trace that the README names; without it the rows of that one stay as they are. `study.py pages` only draws and
writes again what the CSV files have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import figures
import pages
import pandas as pd
import replays
import setting

from moesim.page import renew

HERE = Path(__file__).resolve().parent
OF_TRACES = {"grid": replays.grid, "contracts": replays.contracts, "prefetching": replays.prefetching,
             "bits": replays.bits, "rerouting": replays.rerouting}


def main(arguments: list[str] | None = None) -> None:
    """Renew the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["pages"], help="only draw and write again")
    parser.add_argument("--public", type=Path, help="folder of the public trace")
    given = parser.parse_args(arguments)
    if given.what != "pages":
        compute(given.public)
    tables = {name: pd.read_csv(HERE / f"{name}.csv") for name in OF_TRACES}
    figures.save_all(tables, HERE / "figures")
    renew(HERE / "README.md", pages.numbers(tables))


def compute(public: Path | None) -> None:
    """Write the tables; rows of traces that are not there stay."""
    traces = setting.traces(public)
    for name, rows in OF_TRACES.items():
        path, found = HERE / f"{name}.csv", [rows(label, trace) for label, trace in traces.items()]
        found = [table for table in found if len(table)]
        if path.is_file():
            before = pd.read_csv(path)
            found += [before[~before["trace"].isin(traces)]]
        pd.concat(found, ignore_index=True).to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
