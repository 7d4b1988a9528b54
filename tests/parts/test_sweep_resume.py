"""A sweep that was stopped goes on where it was: interrupted, killed, changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import moesim
from moesim.explore.job import Keys, program
from moesim.result import Result
from moesim.scenario import Scenario

sys.path.insert(0, str(Path(__file__).parent))
from test_sweep import Inline, fails_with_seed_1

AXES = {"scheduler.max_batch": [2, 4], "seed": [0, 1, 2]}


def power(n: int, result: Result) -> float:
    return float(len(result.steps)) ** n


@pytest.fixture
def tiny(repo: Path) -> Scenario:
    return moesim.load(repo / "tests/data/tiny.yaml")


def interrupt_after(points: int):  # type: ignore[no-untyped-def]
    def progress(done: int, total: int) -> None:
        if done == points:
            raise KeyboardInterrupt

    return progress


def test_finished_points_do_not_run_again(tiny: Scenario, tmp_path: Path) -> None:
    whole = moesim.sweep(tiny, AXES, ["steps", "tpot_p50_s"], Inline())
    with pytest.raises(KeyboardInterrupt):
        moesim.sweep(tiny, AXES, ["steps", "tpot_p50_s"], Inline(), out=tmp_path, progress=interrupt_after(2))
    kept = pd.read_parquet(tmp_path / "points")
    assert len(kept) == 2 and list(kept.columns) == list(whole.columns)
    assert not (tmp_path / "table.parquet").exists()
    executor = Inline()
    table = moesim.sweep(tiny, AXES, ["steps", "tpot_p50_s"], executor, out=tmp_path)
    assert len(executor.ran) == 4
    assert_frame_equal(table, whole, check_exact=True)
    assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), whole, check_exact=True, check_dtype=False)
    again = Inline()
    assert_frame_equal(moesim.sweep(tiny, AXES, ["steps", "tpot_p50_s"], again, out=tmp_path), whole, check_exact=True)
    assert again.ran == []


def test_wrong_input_stays_wrong_other_failures_run_again(tiny: Scenario, tmp_path: Path) -> None:
    def refuses(result: Result) -> float:
        raise ValueError("never")

    for metric, runs in ((fails_with_seed_1, 1), (refuses, 0)):
        moesim.sweep(tiny, {"seed": [1]}, [metric], Inline(), out=tmp_path)
        executor = Inline()
        table = moesim.sweep(tiny, {"seed": [1]}, [metric], executor, out=tmp_path)
        assert (len(executor.ran), table["error"].notna().all()) == (runs, True)


def test_what_changes_a_result_changes_the_key(tiny: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace.parquet"
    moesim.synthetic.SyntheticTrace(preset="gpt_oss_20b", layers=2, experts=4, top_k=2).generate().write(trace)
    scenario = moesim.override(tiny, [f"trace={{path: {trace}, scaled: true}}"])
    key = Keys({"steps": "steps"}).job(scenario).key
    assert Keys({"steps": "steps"}).job(scenario).key == key
    assert Keys({"tpot_p50_s": "tpot_p50_s"}).job(scenario).key != key
    assert Keys({"steps": fails_with_seed_1}).job(scenario).key != key
    keys = {Keys({"power": partial(power, n)}).job(scenario).key for n in (1, 2, 1)}
    assert len(keys) == 2
    assert Keys({"steps": "steps"}).job(moesim.override(scenario, ["seed=1"])).key != key
    moesim.synthetic.SyntheticTrace(preset="gpt_oss_20b", layers=2, experts=4, top_k=2, seed=1).generate().write(trace)
    assert Keys({"steps": "steps"}).job(scenario).key != key
    before = program()
    (tmp_path / "hw_configs/kernels").mkdir(parents=True)
    (tmp_path / "hw_configs/kernels/new.yaml").write_text("a: 1\n")
    monkeypatch.setattr("moesim.config.library_roots", lambda: [tmp_path])
    assert program() != before


# Each simulated point leaves a line; slow enough to be killed between two points.
SCRIPT = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
import moesim

def noted(result):
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{os.getpid()} {result.meta['seed']}\\n")
    time.sleep(0.3)
    return float(len(result.steps))

if __name__ == "__main__":
    scenario = moesim.load(sys.argv[1])
    executor = 2 if sys.argv[3] == "processes" else ThreadPoolExecutor(1)
    moesim.sweep(scenario, {"seed": list(range(8))}, [noted], executor, out=sys.argv[2])
"""


def start(tmp_path: Path, repo: Path, where: str) -> subprocess.Popen[str]:
    (tmp_path / "study.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "study.py", str(repo / "tests/data/tiny.yaml"), "out", where], cwd=tmp_path, text=True,
        env=os.environ | {"NOTES": str(tmp_path / "notes"), "PYTHONPATH": str(repo)}, stderr=subprocess.PIPE)


def wait_for(condition, seconds: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_sweep_resumes(tmp_path: Path, repo: Path) -> None:
    points = tmp_path / "out/points"
    process = start(tmp_path, repo, "processes")
    wait_for(lambda: process.poll() is not None or points.exists() and len(list(points.glob("*.parquet"))) >= 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    workers = {int(line.split()[0]) for line in (tmp_path / "notes").read_text().splitlines()}
    wait_for(lambda: not any(map(alive, workers)))  # nothing that it started lives on
    finished = set(pd.read_parquet(points)["seed"])
    assert 3 <= len(finished) < 8
    (tmp_path / "notes").unlink()
    process = start(tmp_path, repo, "threads")
    assert process.communicate()[1] == "" and process.returncode == 0
    ran = sorted(int(line.split()[1]) for line in (tmp_path / "notes").read_text().splitlines())
    assert ran == sorted(set(range(8)) - finished)
    table = pd.read_parquet(tmp_path / "out/table.parquet")
    assert table["seed"].tolist() == list(range(8))
    assert table["error"].isna().all() and table["noted"].notna().all()
