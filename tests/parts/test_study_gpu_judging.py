"""Study 08: what a small CPU's rows come to on the page, what is measured again, and that nothing is made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from test_study_gpu_evidence import CPU, ONCE  # which skips this file too where PyTorch is missing

from moesim.measure import ceilings
from moesim.measure.blocks.layer_stack import small

MODULES = ("pieces", "offloading", "judging", "figures", "pages", "study")


@pytest.fixture(scope="module")
def parts(study_modules: Callable[..., Any], repo: Path, one_thread: None) -> Iterator[SimpleNamespace]:
    with study_modules(repo / "studies/08_gpu_evidence", MODULES) as found:
        yield SimpleNamespace(**found)


@pytest.fixture(scope="module")
def measured(parts: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A CPU's operators, steps, offload and second pass, each point once; points take no time, so all are measured."""
    out = tmp_path_factory.mktemp("cpu")
    with pytest.MonkeyPatch.context() as models:
        models.setattr("moesim.measure.blocks.layer_stack.model", tiny)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("moesim.measure.runner.time.monotonic", lambda: 0.0)
            patch.setattr("moesim.measure.find", lambda *args, **options: CPU)
            patch.setattr("moesim.measure.timing.CPU_SECONDS", 0.001)
            for name, share in (("kernels", 0.55), ("steps", 0.5), ("offload", 0.6), ("again", 0.6)):
                assert run_piece(parts, out, name, share) == 0
        table = parts.pieces.Journal(out / "kernels").table()  # a tiny ring lies in caches: above the peak
        above = ceilings.device(CPU, table.assign(time_s=table["time_s"] / 100))
        (out / "kernels/device.yaml").write_text(ceilings.as_yaml(above))
        yield out


def tiny(name: str, dtype: str) -> Any:
    return small(name, dtype, hidden=64, layers=2, experts=int(name[6:]), top_k=2, ffn=32, heads=(4, 2, 16))


def run_piece(parts: SimpleNamespace, out: Path, name: str, share: float) -> int:
    return int(parts.pieces.PIECES[name](parts.pieces.Job(out, "cpu", share, 0.0, share, 0.0, ONCE)))


def test_the_page_has_what_was_measured(parts: SimpleNamespace, measured: Path, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.judging, "FEW", 0)  # of several routings of one step, price one
    assert parts.study.main(["--measurements", str(measured), "--out", str(tmp_path), "--model", "roofline"]) == 0
    page = (tmp_path / "page.md").read_text()
    steps = pd.read_csv(tmp_path / "steps.csv")
    assert len(steps) and (steps["predicted_s"] > 0).all() and "Not trained." in page
    assert steps["error_percent"].tolist() == pytest.approx(
        (100 * (steps["predicted_s"] / steps["measured_s"] - 1)).tolist(), abs=1e-3)
    assert f"| all | all | {steps['error_percent'].abs().median():.1f} |" in page
    assert "| kernels |" in page and (tmp_path / "figures/steps.png").stat().st_size > 1000
    assert "No H200 measurements" not in page and "| training | nothing of it is here |" in page
    assert 1.0 in set(pd.read_csv(tmp_path / "offload.csv")["resident"]), "predicted too, not taken from its row"


def test_a_second_pass_measures_what_is_judged(parts: SimpleNamespace, measured: Path) -> None:
    again = parts.pieces.Journal(measured / "again").rows
    assert again and all(65 <= int(row["x_key"][:4], 16) % 100 < 85 for row in again)
    first = {row["x_key"] for row in parts.pieces.Journal(measured / "kernels").rows}
    assert {row["x_key"] for row in again} <= first


def test_other_pieces_measure_a_few_kernels_again(parts: SimpleNamespace, measured: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads((measured / "steps/said.json").read_text())
    assert told["against_kernels_percent"]["points"] == 3 and told["points"]["all"] == 36
    assert {row["x_block"] for row in parts.pieces.Journal(measured / "steps/sentinels").rows} == set(
        parts.pieces.CHECKED)

    def broken(*given: Any) -> None:
        raise RuntimeError("no such kernel any more")

    (measured / "steps/sentinels").rename(measured / "steps/before")
    monkeypatch.setattr("moesim.measure.measure", broken)
    job = parts.pieces.Job(measured, "cpu", 1.0, 0.0, 1.0, 0.0, ONCE)
    parts.pieces.check(job, CPU, "steps")
    parts.pieces.check(job, CPU, "steps")  # it is not tried again
    (measured / "steps/sentinels").rmdir()
    (measured / "steps/before").rename(measured / "steps/sentinels")


def test_without_measurements_nothing_is_written(parts: SimpleNamespace, measured: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    page = parts.study.PAGE.read_bytes()
    assert parts.study.main(["--measurements", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "kernels/engine.parquet" in error and "nothing is shown that was not measured" in error
    assert "evidence.py --out out/h200" in error
    assert parts.study.main(["--measurements", str(measured), "--model", "roofline"]) == 2
    assert "and the page is about an H200; give --out FOLDER" in capsys.readouterr().err
    assert parts.study.PAGE.read_bytes() == page


def test_choices_give_the_loads(parts: SimpleNamespace) -> None:
    """Two tokens, two choices each: expert 0 twice, 1 and 2 once."""
    found = parts.judging.choices([[2, 1, 1], [0, 2, 2]], 2)
    assert found.tolist() == [[[0, 1], [1, 2]], [[0, 2], [1, 2]]]
    for wrong in ([3, 0, 1], [2, 1, 0]):
        with pytest.raises(ValueError, match="are none of 2 tokens; measure the step again"):
            parts.judging.choices([wrong], 2)
