"""Where should the experts go? Make everything in this folder again, in about half a minute of two cores.

Run `python studies/01_placement/study.py`: it runs the demo, copies the figures that the README shows to `figures/`,
and puts the answer and the table that came out between the two markers of the README.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from moesim import demo

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "out" / "01_placement"
FIGURES = ("pareto", "breakdown_prefill", "breakdown_decode", "device_load", "affinity")
BEGIN, END = "<!-- computed by study.py: begin -->", "<!-- computed by study.py: end -->"


def main(overrides: list[str]) -> None:
    """Run the demo with *overrides*; without any, also renew this folder."""
    table = demo.run(OUT, overrides)
    print(demo.shown(table).to_string(index=False))
    if overrides:
        print(f"report: {OUT / 'report.md'} (the README is renewed without overrides only)", file=sys.stderr)
        return
    (HERE / "figures").mkdir(exist_ok=True)
    for name in FIGURES:
        shutil.copyfile(OUT / "figures" / f"{name}.png", HERE / "figures" / f"{name}.png")
    report, readme = (OUT / "report.md").read_text(encoding="utf-8"), HERE / "README.md"
    readme.write_text(renewed(readme.read_text(encoding="utf-8"), report), encoding="utf-8")


def renewed(readme: str, report: str) -> str:
    """Return *readme* with the setting, answer and numbers of *report* between the markers."""
    before, _, rest = readme.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{HERE / 'README.md'}: the markers are not there; write {BEGIN} and {END} into it")
    setting, answer, numbers = (part.strip() for part in report.split("\n## ")[:3])
    setting = setting.partition("\n")[2].strip()
    figure = "![What balance costs](figures/pareto.png)"
    text = "\n\n".join([setting, figure, f"## {answer}", f"## {numbers}"])
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


if __name__ == "__main__":
    main(sys.argv[1:])
