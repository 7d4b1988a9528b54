"""How close does the simulator come to vLLM on real GPUs? Make everything in this folder again.

Run `python studies/05_validation/study.py FOLDER [PART ...]`. Parts: `runs` (both public runs, a report of each),
`ablations` (the same with one thing left out, and many times with steps that differ at random), `gpt_oss` (published
points of gpt-oss-120b). FOLDER holds the downloads (docs/howto/validate-against-a-run.md says which). Without a part:
all. `study.py pages` draws and writes again what the CSV files have.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import ablations
import figures
import gpt_oss
import pages
import pandas as pd
import setting

from moesim import runs
from moesim.page import publish
from moesim.runs import report

HERE = setting.HERE
FIGURES = {"llama": ["timeline"], "qwen": ["scatter_ttft"]}  # of the reports, for the README
FILES = ("errors", "ablations", "ceiling", "gpt_oss")


def main(asked: list[str]) -> None:
    """Do the parts that are *asked* for, or all, with the downloads in the folder that is named; draw and write."""
    parts = {"runs": both_runs, "ablations": left_out, "gpt_oss": points}
    folders = [name for name in asked if name not in {*parts, "pages"}]
    wanted = [name for name in parts if name in asked] or ([] if "pages" in asked else list(parts))
    if len(folders) != bool(wanted) or not all(Path(folder).is_dir() for folder in folders):
        raise SystemExit(f"study.py {' '.join(asked)}: give the folder of the downloads and any of {', '.join(parts)} "
                         "(none: all), or only pages")
    for name in wanted:
        parts[name](Path(folders[0]).resolve())
    tables = {name: pd.read_csv(HERE / f"{name}.csv") for name in FILES}
    publish(HERE, tables, figures.save_all, pages.words)


def both_runs(folder: Path) -> None:
    """Simulate the two public runs in *folder*; save their errors, and a report of each."""
    found = {name: setting.validate(folder, name) for name in setting.RUNS}
    for name, validation in found.items():
        print(f"{name}: simulated {len(validation.requests)} requests in {validation.seconds:.1f} s")
        saved = report.save(validation, Path("out/05_validation") / name)
        (HERE / "figures").mkdir(exist_ok=True)
        for figure in FIGURES[name]:
            shutil.copyfile(saved / f"figures/{figure}.png", HERE / f"figures/{name}-{figure}.png")
    _save(errors({name: validation.comparison for name, validation in found.items()}), "errors")


def errors(found: dict[str, runs.Comparison]) -> pd.DataFrame:
    """Return run, metric, statistic, measured and simulated (s), error in percent, and LLMServingSim's error."""
    peer = pd.read_csv(HERE / "peer.csv").rename(columns={"error_percent": "peer_error_percent"})
    ours = pd.concat([c.errors.merge(c.ranks[["metric", "spearman"]], on="metric").assign(run=name)
                      for name, c in found.items()], ignore_index=True)
    return peer.merge(ours, on=["run", "metric", "statistic"], validate="one_to_one")[
        ["run", "metric", "statistic", "measured", "simulated", "error_percent", "peer_error_percent", "spearman"]]


def left_out(folder: Path) -> None:
    """Simulate both runs in *folder* without one thing after the other; save what that costs."""
    replays = setting.spread(ablations.replay, ablations.tasks(str(folder)))
    print(f"{len(replays)} replays: simulated in {sum(each.seconds for each in replays):.0f} s of one core")
    _save(ablations.table(replays), "ablations")
    _save(ablations.ceiling(replays), "ceiling")


def points(folder: Path) -> None:
    """Simulate the published points of gpt-oss-120b in *folder*; save them."""
    rows = pd.DataFrame(setting.spread(gpt_oss.simulate, gpt_oss.tasks(folder)))
    print(f"{len(rows)} points: simulated in {rows['seconds'].sum():.0f} s of one core")
    _save(rows.drop(columns="seconds"), "gpt_oss")


def _save(table: pd.DataFrame, name: str) -> None:
    table.to_csv(HERE / f"{name}.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main(sys.argv[1:])
