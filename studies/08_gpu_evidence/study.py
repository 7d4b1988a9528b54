"""How accurate is it on our own GPU? Make the page's tables and plots again from the measurements, without a GPU.

Run `python studies/08_gpu_evidence/study.py` (or `make validate-h200`). It reads what `evidence.py` measured, fits
kernels, predicts whole steps and offloading, and writes docs/how-accurate.md. Without measurements it writes nothing
and exits with 2. `--measurements FOLDER --out FOLDER` judges another machine and leaves the page alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import figures
import pages
from judging import NotMeasured, judged

from moesim.page import renewed

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "how-accurate.md"
MEASURED = HERE / "h200"
DEVICE = "H200"  # what the page is about


def main(arguments: Sequence[str]) -> int:
    """Judge, write, and return the exit code: 2 if nothing was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measurements", type=Path, default=MEASURED, help="an unpacked folder of evidence.py")
    parser.add_argument("--out", type=Path, help="folder of page and tables (default: the page of the documents)")
    parser.add_argument("--model", help="kernel model to fit (default: that of the device)")
    options = parser.parse_args(arguments)
    try:
        found = judged(options.measurements, options.model)
        if options.out is None and DEVICE not in found.environment["device"]:
            raise NotMeasured(f"{options.measurements}: measured on {found.environment['device']}, and the page is "
                              f"about an {DEVICE}; give --out FOLDER to judge it elsewhere")
    except NotMeasured as nothing:
        print(f"error: {nothing}", file=sys.stderr)
        return 2
    place = options.out or HERE
    place.mkdir(parents=True, exist_ok=True)
    for name, table in (("operators", found.operators), ("steps", found.steps), ("offload", found.offload)):
        table.round(6 if name == "operators" else 9).to_csv(place / f"{name}.csv", index=False)
    figures.draw(found, place / "figures")
    page = PAGE if options.out is None else place / "page.md"
    told = pages.text(found, os.path.relpath(place / "figures", page.parent))
    before = PAGE.read_text(encoding="utf-8")
    page.write_text(renewed(before, told), encoding="utf-8")
    print(told)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
