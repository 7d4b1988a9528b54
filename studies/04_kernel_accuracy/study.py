"""How wrong are kernel models, where, and which measurements make them right? Make everything in this folder again.

Run `python studies/04_kernel_accuracy/study.py TABLES` with the folder of the measured tables (README: where they are).
Name stages to do only these: models, beyond, learning, speed. Without a folder, `study.py pages` draws and writes
again what the CSV files have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import beyond
import figures
import learning
import models
import pages
import pandas as pd
import speed

from moesim.page import publish

HERE = Path(__file__).resolve().parent
STAGES: dict[str, Any] = {"models": models, "beyond": beyond, "learning": learning, "speed": speed}


def main(asked: list[str]) -> None:
    """Do the stages that are *asked* for, or all, with the tables in the folder that is named; draw and write."""
    folders = [name for name in asked if name not in {*STAGES, "pages"}]
    stages = [name for name in asked if name in STAGES] or ([] if "pages" in asked else list(STAGES))
    if len(folders) != bool(stages) or not all(Path(folder).is_dir() for folder in folders):
        raise SystemExit(f"study.py {' '.join(asked)}: give the folder of the tables and any of {', '.join(STAGES)} "
                         "(none: all), or only pages")
    for name in stages:
        workers = 1 if name == "speed" else 2
        rows = all_rows(STAGES[name].table, STAGES[name].tasks(), str(Path(folders[0]).resolve()), workers)
        rows = beyond.summary(rows) if name == "beyond" else rows
        rows.to_csv(HERE / f"{name}.csv", index=False, float_format="%.6g")
    write()


def all_rows(table: Callable[..., pd.DataFrame], tasks: Iterable[tuple[str, ...]], folder: str, workers: int
             ) -> pd.DataFrame:
    """Return what *table* says of all *tasks*, in their order."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(table, folder, *task) for task in tasks]
        return pd.concat([some.result() for some in waiting], ignore_index=True)


def write() -> None:
    """Draw the figures and renew the README, from the CSV files."""
    tables = {name: pd.read_csv(HERE / f"{name}.csv") for name in STAGES}
    publish(HERE, tables, figures.save_all, pages.numbers)


if __name__ == "__main__":
    main(sys.argv[1:])
