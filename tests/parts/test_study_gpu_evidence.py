"""Study 08: what collects a GPU's evidence, checked on a CPU: budgets, cuts, failures, and what it judges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from moesim.measure import timing
from moesim.measure.target import Target

MODULES = ("evidence", "pieces")
CPU = Target("cpu", "a CPU", "fp32", 2e9, 4e6, 1, 20e9, 8e9)
ONCE = timing.Effort(warmups=1, replays=1)


@pytest.fixture(scope="module")
def parts(study_modules: Callable[..., Any], repo: Path, one_thread: None) -> Iterator[SimpleNamespace]:
    with study_modules(repo / "studies/08_gpu_evidence", MODULES) as found:
        yield SimpleNamespace(**found)


class Clock:
    """Time that passes when a piece runs."""
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def ran(parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A state, and a runner that takes what ``takes`` says, exits with what ``codes`` says and notes its calls."""
    clock = Clock()
    monkeypatch.setattr(parts.evidence, "time", clock)
    found = SimpleNamespace(state=parts.evidence.State(tmp_path / "o"), calls=[], takes={}, codes={})

    def run(name: str, share: float, spent: float, seconds: float, note: Callable[[float], None]) -> int:
        took = min(found.takes.get(name, 1.0), seconds)
        clock.now += took
        found.calls.append((name, spent, seconds))
        if name in found.codes:
            return int(found.codes[name].pop(0))
        return 0 if took == found.takes.get(name, 1.0) else 3

    found.collect = lambda seconds: parts.evidence.collect(found.state, seconds, 100.0, run, "cpu")
    return found


def test_pieces_share_the_time_and_go_on_in_the_next_call(parts: SimpleNamespace, ran: SimpleNamespace) -> None:
    """Of 100 s kernels have 33 and steps 15. Kernels want 40: 20 s in the first call, 13 in the second, then cut."""
    assert sum(p.share for p in parts.evidence.PIECES) == pytest.approx(1)
    ran.takes["kernels"] = 40.0
    ran.collect(20.0)
    assert ran.calls == [("kernels", 0.0, 20.0)] and ran.state.pieces["kernels"]["is"] == "open"
    ran.state = parts.evidence.State(ran.state.folder)  # another process
    ran.collect(50.0)
    assert ran.calls[1] == ("kernels", 20.0, 13.0) and ran.state.pieces["kernels"] == {
        "spent_s": 33.0, "failed": 0, "is": "cut"}
    assert [name for name, *_ in ran.calls[2:]] == ["steps", "offload", "again", "rest", "training", "capture"]
    assert ran.calls[2] == ("steps", 0.0, 15.0) and not ran.state.open()


def test_a_piece_that_fails_is_tried_again_and_costs_no_other(parts: SimpleNamespace, ran: SimpleNamespace) -> None:
    ran.codes = {"steps": [1, 0], "offload": [-9, 1, 1]}
    ran.collect(60.0)
    assert [name for name, *_ in ran.calls[:6]] == ["kernels", "steps", "steps", "offload", "offload", "offload"]
    assert ran.state.pieces["steps"]["is"] == "done" and ran.state.pieces["offload"]["is"] == "failed"
    assert ran.state.pieces["rest"]["is"] == "done" and ran.state.pieces["offload"]["exit_code"] == 1


def test_what_was_interrupted_is_known_to_the_next_call(parts: SimpleNamespace, ran: SimpleNamespace) -> None:
    ran.codes["kernels"] = []  # pop from an empty list: the runner dies
    with pytest.raises(IndexError):
        ran.collect(10.0)
    found = parts.evidence.State(ran.state.folder).pieces["kernels"]
    assert found == {"spent_s": 1.0, "failed": 0, "is": "open"}


def test_a_lost_device_is_no_failure(parts: SimpleNamespace, ran: SimpleNamespace) -> None:
    """Four losses are behind; three failures would not be. Twelve losses are too many."""
    ran.codes = {"kernels": [4, 4, 4, 4, 0], "steps": [4] * 12}
    ran.collect(60.0)
    assert ran.state.pieces["kernels"] == {"spent_s": 5.0, "failed": 0, "is": "done", "exit_code": 4, "lost": 4}
    assert ran.state.pieces["steps"]["is"] == "failed" and ran.state.pieces["rest"]["is"] == "done"


def test_time_is_noted_while_a_piece_runs(parts: SimpleNamespace, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything may be killed at any moment: the next call has to know what was spent."""
    monkeypatch.setattr(parts.evidence, "NOTED_S", 0.05)
    process, heard = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"]), []
    assert parts.evidence.waited(process, 10.0, heard.append) == 0 and len(heard) >= 2
    state = parts.evidence.State(tmp_path / "o")
    parts.evidence.spent(state, state.pieces["kernels"], 3.0, heard[0])
    assert parts.evidence.State(tmp_path / "o").pieces["kernels"]["spent_s"] == round(3.0 + heard[0], 1)


def test_a_piece_ends_with_what_started_it(parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(parts.pieces.os, "_exit", ended.append)
    parts.pieces.end_with(-1)  # no process has this number: the one that started us is gone
    assert ended == [1]


def test_two_calls_do_not_measure_at_once(parts: SimpleNamespace, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "o").mkdir()
    lock = parts.evidence.alone(tmp_path / "o")
    with pytest.raises(SystemExit) as stopped:
        parts.evidence.main(["--out", str(tmp_path / "o"), "--device", "cpu"])
    assert stopped.value.code == 2 and "another call still measures there" in capsys.readouterr().err
    os.close(lock)
    os.close(parts.evidence.alone(tmp_path / "o"))


STUB = """
import json, pathlib, sys, time
name, out = sys.argv[1], pathlib.Path(sys.argv[3])
(out / name).mkdir(exist_ok=True)
(out / name / "said.json").write_text(json.dumps({"rows": 7}))
(out / name / "checkpoint.pt").write_text("large")
if name == "steps" and out.name == "hangs":
    time.sleep(60)
print("what went on in", name)
sys.exit(3 if name == "rest" and out.name == "short" else 0)
"""


def run_stub(parts: SimpleNamespace, out: Path, monkeypatch: pytest.MonkeyPatch, minutes: str = "0.05",
             ) -> tuple[int, dict[str, Any]]:
    (out.parent / "pieces.py").write_text(STUB)
    monkeypatch.setattr(parts.evidence, "HERE", out.parent)
    monkeypatch.setattr(parts.evidence, "GRACE_S", 0.0)
    code = parts.evidence.main(["--minutes", minutes, "--total", minutes, "--out", str(out), "--device", "cpu"])
    return code, json.loads((out / "summary.json").read_text())


def test_one_command_does_it_all_and_packs_what_is_small(parts: SimpleNamespace, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run_stub(parts, tmp_path / "o", monkeypatch, minutes="5")  # stand-ins end at once
    printed = capsys.readouterr().out
    assert code == 0 and told["verdict"] == "all done" and told["pieces"]["kernels"]["rows"] == 7
    assert "what went on in capture" in printed and '"exit_code": 0' in printed
    with tarfile.open(tmp_path / "o.tar.gz") as tar:
        names = set(tar.getnames())
    assert {"o/state.json", "o/summary.json", "o/rest.log", "o/kernels/said.json"} <= names
    assert not any(name.endswith("checkpoint.pt") for name in names)


def test_a_piece_that_hangs_is_killed_and_the_verdict_says_to_call_again(
        parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.evidence, "TRIES", 1)
    monkeypatch.setattr(parts.evidence, "PIECES", parts.evidence.PIECES[:2])
    began = time.monotonic()
    code, told = run_stub(parts, tmp_path / "hangs", monkeypatch)
    assert code == 1 and told["pieces"]["steps"]["exit_code"] == -9 and time.monotonic() - began < 50
    assert "killed: still running" in (tmp_path / "hangs/steps.log").read_text()
    monkeypatch.undo()
    monkeypatch.setattr(parts.evidence, "PIECES", (parts.evidence.Piece("rest", 100.0),))
    monkeypatch.setattr(parts.evidence, "SHORTEST_S", 100.0)
    code, told = run_stub(parts, tmp_path / "short", monkeypatch)
    assert code == 3 and told["verdict"] == "call it again"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--minutes", "0", "--out", "o"], "--minutes and --total are times above 0"),
    ([], "the following arguments are required: --out"),
])
def test_wrong_input_is_a_message(parts: SimpleNamespace, arguments: list[str], message: str,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parts.evidence.main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_missing_packages_are_named(parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(parts.evidence, "NEEDED", ("torch", "not_there_at_all"))
    with pytest.raises(SystemExit):
        parts.evidence.main(["--out", "o"])
    told = capsys.readouterr().err
    assert "this Python cannot import not_there_at_all (ModuleNotFoundError: No module named" in told


def test_a_piece_that_was_stopped_goes_on(parts: SimpleNamespace, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.pieces, "OPERATORS", ("memory",))
    monkeypatch.setattr("moesim.measure.timing.CPU_SECONDS", 0.001)
    monkeypatch.setattr("moesim.measure.find", lambda *args, **options: CPU)
    clock = Clock()
    monkeypatch.setattr("moesim.measure.runner.time", clock)
    monkeypatch.setattr(parts.pieces, "time", clock)
    add = parts.pieces.Journal.add
    monkeypatch.setattr(parts.pieces.Journal, "add", lambda self, row: (add(self, row), clock.pass_(0.1)))
    assert parts.pieces.kernels(parts.pieces.Job(tmp_path, "cpu", 5.0, 0.0, 0.75, 0.0, ONCE)) == 3
    before = (tmp_path / "kernels/rows.jsonl").read_text()
    assert len(before.splitlines()) == 5, "0.75 s less 0.3 s for tables, and 0.1 s each"
    monkeypatch.setattr(clock, "pass_", lambda seconds: None)
    assert parts.pieces.kernels(parts.pieces.Job(tmp_path, "cpu", 5.0, 0.8, 4.2, clock.now, ONCE)) == 0
    rows = parts.pieces.Journal(tmp_path / "kernels").rows
    assert (tmp_path / "kernels/rows.jsonl").read_text().startswith(before)
    assert len({(r["x_key"], r["x_turn"]) for r in rows}) == len(rows)


@pytest.mark.slow
def test_all_of_it_on_a_cpu(repo: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repo / "studies/08_gpu_evidence/evidence.py"), "--device", "cpu", "--out",
               str(tmp_path / "o"), "--total", "4"]
    codes = [subprocess.run([*command, "--minutes", m], capture_output=True, check=False).returncode for m in "15"]
    told = json.loads((tmp_path / "o/summary.json").read_text())
    assert codes == [3, 0] and {p["is"] for p in told["pieces"].values()} <= {"done", "cut"}, told
    done = subprocess.run([sys.executable, str(repo / "studies/08_gpu_evidence/study.py"), "--measurements",
                           str(tmp_path / "o"), "--out", str(tmp_path / "p")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "p/page.md").read_text()
    assert "Not trained" not in page and "Not measured" not in page and "nan" not in page
