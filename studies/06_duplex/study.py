"""Does the simulator find Duplex's results, and what becomes of them elsewhere? Make everything in this folder again.

Run `python studies/06_duplex/study.py` (about a minute of two cores); `study.py pages` only draws and writes again what
the CSV files have.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import beyond
import figures
import hetero
import pages
import pandas as pd
import reproduce
import served
import setting
import split

from moesim.page import publish

HERE = Path(__file__).resolve().parent
TABLES = ("stages", "served", "split", "hetero", "elsewhere", "designs")


def main(asked: list[str]) -> None:
    """Do what is *asked* for: pages; nothing: compute, draw and write."""
    if unknown := set(asked) - {"pages"}:
        raise SystemExit(f"{', '.join(sorted(unknown))}: give pages, or nothing for all")
    if not asked:
        for name, table in compute().items():
            table.to_csv(HERE / f"{name}.csv", index=False, float_format="%.6g")
    tables = {name: pd.read_csv(HERE / f"{name}.csv") for name in TABLES}
    publish(HERE, tables, figures.save_all, pages.numbers)


def compute() -> dict[str, pd.DataFrame]:
    """Return the tables, on two processes."""
    setting.write_traces()
    beyond.write_traces()
    jobs = {"split": (split.row, split.tasks()), "served": (served.row, served.tasks()),
            "hetero": (hetero.row, hetero.tasks()), "stages": (reproduce.row, reproduce.tasks()),
            "elsewhere": (beyond.row, beyond.tasks()),
            "designs": (beyond.design, beyond.designs())}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting = {name: [pool.submit(function, *task) for task in tasks] for name, (function, tasks) in jobs.items()}
        return {name: pd.DataFrame([future.result() for future in some]) for name, some in waiting.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
