"""The commands measure and validate: plans, folders, and wrong input."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from moesim.cli import app


def run(*arguments: object) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, [str(a) for a in arguments])
    return found.exit_code, found.stdout, found.stderr


def test_a_plan_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = run("measure", "--plan", "--budget", "9min")
    assert status == 0 and "dense_gemm" in out and "sentinels" in out
    assert not list(tmp_path.iterdir())


def test_measure_leaves_rows_tables_and_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.measure.runner.time.monotonic", lambda: 0.0)  # points take no time
    status, out, err = run("measure", "--budget", "0.5s", "--block", "memory", "--block", "dense_gemm", "--out",
                           tmp_path, "--threads", "1")
    assert status == 0 and "memory" in out and "device:" in err
    assert {f.name for f in tmp_path.iterdir()} == {"rows.jsonl", "environment.json", "measurements.parquet",
                                                    "engine.parquet", "device.yaml"}
    status, out, _ = run("show", tmp_path / "device.yaml")
    assert status == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["--device", "tpu"], "--device tpu: unknown; use cpu or cuda"),
    (["--budget", "5"], "'5' has no unit; write a time"),
    (["--budget", "0 s"], "--budget 0 s: leaves no time"),
    (["--block", "gemms"], "unknown bench 'gemms'; known: activated_experts"),
    (["--dtype", "int3"], "dtype 'int3' cannot be measured; use one of fp32"),
])
def test_wrong_input_is_a_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    status, _, err = run("measure", *arguments, "--out", tmp_path / "new")
    assert status == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "new").exists()
