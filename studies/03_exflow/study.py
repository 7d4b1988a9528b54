"""How much of ExFlow's gain is coherence, how much affinity, and what does it leave uncounted? Make this folder again.

Run `python studies/03_exflow/study.py` (three minutes of two cores): placements, iterations and figures from the traces
that are here. `study.py train` trains the small models and records the traces first (25 minutes of one core);
`study.py pages` only draws and writes again what the CSV files have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import account
import figures
import pages
import pandas as pd
import placing
import setting

from moesim.page import publish

HERE = Path(__file__).resolve().parent
TABLES = ("placements", "tokens", "strength", "iterations")


def main(asked: list[str]) -> None:
    """Do what is *asked* for: train, pages; nothing: compute, draw and write."""
    if unknown := set(asked) - {"train", "pages"}:
        raise SystemExit(f"{', '.join(sorted(unknown))}: give train, pages, or nothing for all but the training")
    if "train" in asked:
        import train  # needs PyTorch

        train.make_traces()
    if "pages" not in asked:
        for name, table in compute().items():
            table.to_csv(HERE / f"{name}.csv", index=False, float_format="%.6g")
    tables = {name: pd.read_csv(HERE / f"{name}.csv") for name in TABLES}
    publish(HERE, tables, figures.save_all, pages.numbers)


def compute() -> dict[str, pd.DataFrame]:
    """Return the tables, on two processes."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting = {"placements": [pool.submit(placing.rows, *point) for point in placing.tasks()],
                   "iterations": [pool.submit(account.rows, **point) for point in account.tasks()],
                   "tokens": [pool.submit(placing.by_tokens, e, n) for e in setting.EXPERTS for n in (4, 8)]}
        tables = {name: gathered(future.result for future in some) for name, some in waiting.items()}
    return tables | {"strength": pd.DataFrame([placing.strength(experts) for experts in setting.EXPERTS])}


def gathered(parts: Iterable[Callable[[], list[dict[str, Any]]]]) -> pd.DataFrame:
    """Return the rows of all *parts*, by model and GPUs."""
    table = pd.DataFrame([row for part in parts for row in part()])
    return table.sort_values(["experts", "gpus"], kind="stable", ignore_index=True)


if __name__ == "__main__":
    main(sys.argv[1:])
