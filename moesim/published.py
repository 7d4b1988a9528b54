"""Published numbers beside what is found here, with the error that is allowed and whether it is kept.

>>> rows = [near("hits, %", 58.4, 59.5, 5), between("a window", 3.0, 4.0, 5.0)]
>>> print(summary(rows))
**1 of 2 rows are met within their tolerance.** Not met: a window (3.00, here 4.00 to 5.00).
>>> print(as_table(rows))
| what | published | here | error | tolerance | held |
| --- | ---: | ---: | ---: | ---: | ---: |
| hits, % | 58.4 | 59.5 | +1.1 | 5 | yes |
| a window | 3.00 | 4.00 to 5.00 |  | bracket | **no** |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from moesim.page import markdown

COLUMNS = ("what", "published", "here", "error", "tolerance", "held")
Row = dict[str, Any]


def near(what: str, published: float, here: float, tolerance: float, form: str = ".1f") -> Row:
    """Return a row whose error, here - published, may be *tolerance*."""
    return {"what": what, "published": format(published, form), "here": format(here, form),
            "error": f"{here - published:+{form}}", "tolerance": f"{tolerance:g}",
            "held": abs(here - published) <= tolerance}


def share(what: str, published: float, here: float, tolerance: float, form: str = ".2f") -> Row:
    """Return a row whose relative error may be *tolerance*."""
    error = here / published - 1
    return {"what": what, "published": format(published, form), "here": format(here, form), "error": f"{error:+.1%}",
            "tolerance": f"{tolerance:.0%}", "held": abs(error) <= tolerance}


def between(what: str, published: float, low: float, high: float, form: str = ".2f") -> Row:
    """Return a row whose published number should lie from *low* to *high*."""
    return {"what": what, "published": format(published, form), "here": f"{low:{form}} to {high:{form}}", "error": "",
            "tolerance": "bracket", "held": low <= published <= high}


def claim(what: str, published: str, here: str, held: bool) -> Row:
    """Return a row without a number to be near to."""
    return {"what": what, "published": published, "here": here, "error": "", "tolerance": "trend", "held": held}


def summary(rows: Iterable[Row]) -> str:
    """Return how many of *rows* are met, and which are not."""
    rows = list(rows)
    missed = [f"{row['what']} ({row['published']}, here {row['here']})" for row in rows if not row["held"]]
    told = f"**{len(rows) - len(missed)} of {len(rows)} rows are met within their tolerance.**"
    return f"{told} Not met: {'; '.join(missed)}." if missed else told


def as_table(rows: Iterable[Row]) -> str:
    """Return *rows* as a table of a page."""
    return markdown(COLUMNS, [[*(row[c] for c in COLUMNS[:-1]), "yes" if row["held"] else "**no**"] for row in rows], 1)


def tabled(folder: Path, computes: Mapping[str, Callable[[], pd.DataFrame]],
           compared: Callable[[dict[str, pd.DataFrame]], Any]) -> dict[str, pd.DataFrame]:
    """Return the tables that *computes* make, and of them the table "published", each also as a CSV in *folder*.

    *compared* gives the rows of "published" from the other tables.
    """
    tables = {name: compute() for name, compute in computes.items()}
    tables["published"] = pd.DataFrame(compared(tables))
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    return tables
