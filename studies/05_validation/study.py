"""How close does the simulator come to vLLM on real GPUs? Make everything in this folder again.

Run `python studies/05_validation/study.py FOLDER`: FOLDER is a clone of casys-kaist/LLMServingSim (docs/howto/
validate-against-a-run.md says which commit), or a folder with runs and profiles. It simulates both runs, writes the
error table beside the one that LLMServingSim 2.0 published on the same runs, and a report of each.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd

import moesim
from moesim import runs
from moesim.page import renewed
from moesim.runs import report
from moesim.runs.compare import STATISTICS

HERE = Path(__file__).resolve().parent
RUNS = {"llama": "Llama-3.1-8B", "qwen": "Qwen3-30B-A3B-Instruct-2507"}  # scenario -> folder of run and profile
FIGURES = {"llama": ["timeline"], "qwen": ["scatter_ttft"]}  # of the reports, for the README
SHOWN = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E"}


def main(folder: Path) -> None:
    """Simulate the runs in *folder* and renew this one."""
    found = {name: validate(folder, name) for name in RUNS}
    for name, validation in found.items():
        saved = report.save(validation, Path("out/05_validation") / name)
        (HERE / "figures").mkdir(exist_ok=True)
        for figure in FIGURES[name]:
            shutil.copyfile(saved / f"figures/{figure}.png", HERE / f"figures/{name}-{figure}.png")
    table = errors({name: validation.comparison for name, validation in found.items()})
    table.to_csv(HERE / "errors.csv", index=False, float_format="%.6g")
    readme = HERE / "README.md"
    text = words(table, found)
    readme.write_text(renewed(readme.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text)


def validate(folder: Path, name: str) -> runs.Validation:
    """Return the run of the scenario *name*, found in *folder*, beside its simulation.

    Layer times are those of LLMServingSim's profile of the GPU in *folder*. Raises ``ValueError``.
    """
    places = [sorted(folder.glob(f"**/RTXPRO6000/{pattern}")) for pattern in (
        f"{RUNS[name]}/vllm/requests.jsonl", f"*/{RUNS[name]}/bf16/tp1/attention.csv")]
    if not all(places):
        raise ValueError(f"{folder}: holds no RTXPRO6000/{RUNS[name]}/vllm, or no profile of that model; give a clone "
                         f"of casys-kaist/LLMServingSim")
    profile = f"profile={{name: llmservingsim, path: {places[1][0].parent.parent}}}"
    return runs.validate(runs.read(places[0][0].parent), moesim.load(HERE / f"{name}.yaml", [profile]))


def errors(found: dict[str, runs.Comparison]) -> pd.DataFrame:
    """Return run, metric, statistic, measured and simulated (s), error in percent, and LLMServingSim's error."""
    peer = pd.read_csv(HERE / "peer.csv").rename(columns={"error_percent": "peer_error_percent"})
    ours = pd.concat([c.errors.assign(run=name) for name, c in found.items()], ignore_index=True)
    return peer.merge(ours, on=["run", "metric", "statistic"], validate="one_to_one")[
        ["run", "metric", "statistic", "measured", "simulated", "error_percent", "peer_error_percent"]]


def words(table: pd.DataFrame, found: dict[str, runs.Validation]) -> str:
    """Return the tables of the README."""
    parts = []
    for name, validation in found.items():
        rows = table[table["run"] == name].set_index(["metric", "statistic"])
        ranks = validation.comparison.ranks.set_index("metric")
        lines = [f"**{validation.scenario.name}**, error in % of what was measured: moesim / LLMServingSim 2.0", "",
                 f"| | measured mean (ms) | {' | '.join(STATISTICS)} | Spearman |",
                 "|---|---:|" + "---:|" * (len(STATISTICS) + 1)]
        for metric, text in SHOWN.items():
            pairs = [f"{row.error_percent:+.1f} / {row.peer_error_percent:+.1f}"
                     for row in (rows.loc[(metric, s)] for s in STATISTICS)]
            lines.append(f"| {text} | {rows.loc[(metric, 'mean'), 'measured'] * 1e3:,.1f} | {' | '.join(pairs)} | "
                         f"{ranks.loc[metric, 'spearman']:.3f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python studies/05_validation/study.py FOLDER (a clone of casys-kaist/LLMServingSim)")
    main(Path(sys.argv[1]))
