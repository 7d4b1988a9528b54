"""Where should the experts go? Make everything in this folder again.

Run `python studies/01_placement/study.py`: in about half a minute of two cores it runs the demo, copies the figures
that the README shows to `figures/`, and puts the answer and the table that came out between two markers of the README.
Arguments with an equals sign change the demo's scenario.

The other stages are asked for by name: `study.py pareto split` writes their CSV files and figures and renews their
parts of the README. With `--public FOLDER` they also read the public traces that the README names; without it the rows
of these stay as they are. `study.py pages` draws and writes again what the CSV files have, `all` renews all stages.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import domains
import pandas as pd
import pareto
import profile_size
import setting
import solver_time
import split

from moesim import demo, page, plots

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "out" / "01_placement"
FIGURES = ("pareto", "breakdown_prefill", "breakdown_decode", "device_load", "affinity")
# name -> the module with rows, figures, answer and text; in the order of the README
STAGES: dict[str, Any] = {"pareto": pareto, "split": split, "domains": domains, "profile": profile_size,
                          "time": solver_time}
BEGIN, END = "<!-- computed by study.py{}: begin -->", "<!-- computed by study.py{}: end -->"


def main(arguments: list[str]) -> None:
    """Renew what *arguments* ask for: stages, or the demo, with overrides if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"{', '.join(STAGES)}, pages, all; or key=value for the demo")
    parser.add_argument("--public", type=Path, help="folder of the public traces")
    given = parser.parse_args(arguments)
    stages = [name for name in given.what if "=" not in name]
    unknown = set(stages) - {*STAGES, "pages", "all"}
    if unknown or (stages and len(stages) < len(given.what)):
        parser.error(f"{', '.join(sorted(unknown)) or 'key=value'}: give any of {', '.join(STAGES)}, pages, all; "
                     "or only key=value, for the demo")
    if stages:
        renew([name for name in STAGES if name in stages or "all" in stages], given.public)
    else:
        run_demo(given.what)


def run_demo(overrides: list[str]) -> None:
    """Run the demo with *overrides*; without any, also renew this folder."""
    table = demo.run(OUT, overrides)
    print(demo.shown(table).to_string(index=False))
    if overrides:
        print(f"report: {OUT / 'report.md'} (the README is renewed without overrides only)", file=sys.stderr)
        return
    (HERE / "figures").mkdir(exist_ok=True)
    for name in FIGURES:
        shutil.copyfile(OUT / "figures" / f"{name}.png", HERE / "figures" / f"{name}.png")
    write(of_demo((OUT / "report.md").read_text(encoding="utf-8")))


def of_demo(report: str) -> dict[str, str]:
    """Return the setting, answer and numbers of *report* for the README, and its first sentences for the top."""
    setting_, answer, numbers = (part.strip() for part in report.split("\n## ")[:3])
    setting_ = setting_.partition("\n")[2].strip()
    figure = "![What balance costs](figures/pareto.png)"
    return {"machine": "* " + answer.split("\n\n")[1],
            "": "\n\n".join([setting_, figure, f"### {answer}", f"### {numbers}"])}


def renew(stages: list[str], public: Path | None) -> None:
    """Compute *stages*, write their CSV files, and draw and write all stages again."""
    traces = setting.traces(public) if stages else {}
    for name in stages:
        setting.renewed(HERE / f"{name}.csv", STAGES[name].rows(traces))
    tables = {name: pd.read_csv(HERE / f"{name}.csv") for name in STAGES}
    for name, stage in STAGES.items():
        for figure, drawn in stage.figures(tables[name]).items():
            plots.save(drawn, HERE / "figures" / f"{figure}.png")
    write(pages(tables))
    for name in stages or STAGES:
        print(STAGES[name].answer(tables[name]))


def pages(tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Return the parts of the README by stage; ``answer`` is what stands on top."""
    answers = "\n".join(f"* {stage.answer(tables[name])}" for name, stage in STAGES.items())
    return {"answer": answers} | {name: stage.text(tables[name]) for name, stage in STAGES.items()}


def write(parts: dict[str, str]) -> None:
    """Put *parts* between their markers in the README."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    for stage, part in parts.items():
        text = renewed(text, part, stage)
    (HERE / "README.md").write_text(text, encoding="utf-8")


def renewed(readme: str, text: str, stage: str = "") -> str:
    """Return *readme* with *text* between the markers of *stage* (the demo's without one)."""
    begin, end = (mark.format(f" {stage}" if stage else "") for mark in (BEGIN, END))
    return page.renewed(readme, text, begin, end)


if __name__ == "__main__":
    main(sys.argv[1:])
