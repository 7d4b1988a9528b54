"""Which load balancing do collectives, and a real MoE dispatch, need? Make everything in this folder again.

Run `python studies/02_load_balancing/study.py` (some minutes of two cores): it solves the collectives, failures and
replayed dispatches, writes the CSV files and figures here, prints the tables, and puts them between the markers of the
README. `study.py pages` only draws and writes again what the CSV files have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import collectives
import failures
import figures
import pages
import pandas as pd
import replay

from moesim.page import publish

HERE = Path(__file__).resolve().parent


def main(asked: list[str]) -> None:
    """Compute, draw and write what is *asked* for: collectives, failures, replay, pages; nothing: all."""
    parts: dict[str, tuple[Any, Callable[[pd.DataFrame], pd.DataFrame]]] = {
        "collectives": (collectives, collectives.summary), "failures": (failures, failures.summary),
        "replay": (replay, replay.summary)}
    unknown = set(asked) - {*parts, "pages"}
    if unknown:
        raise SystemExit(f"{', '.join(sorted(unknown))}: give any of {', '.join(parts)}, pages; or nothing for all")
    for name, (part, summary) in parts.items():
        if not asked or name in asked:
            summary(all_rows(part.rows, part.tasks())).to_csv(HERE / f"{name}.csv", index=False, float_format="%.9g")
    tables = {name: pd.read_csv(HERE / f"{name}.csv") for name in parts}
    publish(HERE, tables, figures.save_all, pages.numbers)


def all_rows(rows: Callable[..., list[dict[str, Any]]], tasks: Iterable[tuple[Any, ...]]) -> pd.DataFrame:
    """Return what *rows* says of all *tasks*, on two processes, in the order of the tasks."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(rows, *task) for task in tasks]
        return pd.DataFrame([row for some in waiting for row in some.result()])


if __name__ == "__main__":
    main(sys.argv[1:])
