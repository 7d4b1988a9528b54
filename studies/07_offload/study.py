"""Offloading: which experts should be near, and what a miss costs. Make everything in this folder again.

Run `python studies/07_offload/study.py` (a minute of two idle cores, once numba has compiled): it computes the
tables (CSV), draws the figures and puts the numbers between the two markers of the README.
"""

from __future__ import annotations

from pathlib import Path

import against
import engine
import figures
import held
import links
import pages
import replays

from moesim.page import publish
from moesim.published import tabled

HERE = Path(__file__).resolve().parent
TABLES = {"engine": engine.curves, "runs": held.runs, "residency": replays.residency,
          "lines": links.lines, "points": links.points, "sensitivity": links.sensitivity}


def main() -> None:
    """Compute and renew this folder."""
    publish(HERE, tabled(HERE, TABLES, against.compared), figures.save_all, pages.text)


if __name__ == "__main__":
    main()
