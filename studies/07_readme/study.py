"""How far Read-ME's "Belady" sees. Make everything in this folder again.

Run `python studies/07_readme/study.py` (seconds): it computes the tables (CSV), draws the figures and puts the
numbers between the two markers of the README.
"""

from __future__ import annotations

from pathlib import Path

import against
import figures
import pages
import replays

from moesim.page import publish
from moesim.published import tabled

HERE = Path(__file__).resolve().parent
TABLES = {"hits": replays.hits, "batches": replays.batches}


def main() -> None:
    """Compute and renew this folder."""
    publish(HERE, tabled(HERE, TABLES, against.compared), figures.save_all, pages.text)


if __name__ == "__main__":
    main()
