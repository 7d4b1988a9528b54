"""Study 08: training on a machine's own text, cut off and resumed, and the trace that is captured, at a CPU's size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from moesim.trace import read_trace  # noqa: E402


@pytest.fixture(scope="module")
def parts(study_modules: Callable[..., Any], repo: Path, one_thread: None) -> Iterator[SimpleNamespace]:
    with study_modules(repo / "studies/08_gpu_evidence", ("pieces", "texts", "training")) as found:
        yield SimpleNamespace(**found)


@pytest.fixture(scope="module")
def trained(parts: SimpleNamespace, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a CPU's size: cut off after a step, then trained to its end, and captured."""
    out, patch = tmp_path_factory.mktemp("trained"), pytest.MonkeyPatch()
    patch.setattr(parts.texts, "roots", lambda: [repo / "moesim", repo / "docs", repo / "tests"])
    assert not parts.training.teach(out, "cpu", 0.0, 0.0)
    assert int(pd.read_csv(out / "training/loss.csv")["step"].iloc[-1]) == 1
    assert parts.training.teach(out, "cpu", 600.0, 0.0)
    parts.training.record_trace(out, "cpu")
    patch.undo()
    return out


def test_training_goes_on_where_it_was_cut_and_learns(trained: Path) -> None:
    losses = pd.read_csv(trained / "training/loss.csv")
    told = json.loads((trained / "training/said.json").read_text())
    assert losses["step"].iloc[0] == 1 and losses["step"].iloc[-1] == told["planned_steps"] == told["steps"]
    assert losses["step"].is_unique and losses["loss"].iloc[-1] < losses["loss"].iloc[0] - 0.3


def test_the_trace_is_of_unseen_text_of_several_domains_and_holds_no_text(trained: Path) -> None:
    trace = read_trace(trained / "capture/trace.parquet")
    told = json.loads((trained / "capture/said.json").read_text())
    assert told["prefill"] == trace.phase("prefill").n_tokens >= 200
    assert told["decode"] == trace.phase("decode").n_tokens >= 60 and not told["too_large"]
    assert len(told["domains"]) >= 3 and told["complete"] and min(told["tokens_of"].values()) >= 40
    assert (trace.tokens["token_id"] == -1).all() and trace.probs is None


def test_a_capture_that_was_cut_goes_on(parts: SimpleNamespace, trained: Path) -> None:
    """No time: one batch, every domain in it. Then the rest, and the same trace as in one go."""
    whole = read_trace(trained / "capture/trace.parquet")
    batches = sorted((trained / "capture").glob("step*.parquet"))
    before = batches[0].stat().st_mtime_ns
    for file in batches[1:]:
        file.unlink()
    assert not parts.training.record_trace(trained, "cpu", 0.0)
    told = json.loads((trained / "capture/said.json").read_text())
    assert not told["complete"] and told["prefill"] < told["wanted"][0] and len(told["domains"]) >= 3
    assert parts.training.record_trace(trained, "cpu")
    again = read_trace(trained / "capture/trace.parquet")
    assert (again.experts == whole.experts).all() and again.tokens.equals(whole.tokens)
    assert batches[0].stat().st_mtime_ns == before, "not captured twice"


def test_rows_behind_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    """Killed between a row and its checkpoint, or within a row: step 20 is made again, and has one row."""
    from moesim.capture.train import forget

    (tmp_path / "loss.csv").write_text("step,loss\n10,3.5\n20,3.1\n2")
    forget(tmp_path / "loss.csv", 10)
    assert (tmp_path / "loss.csv").read_text() == "step,loss\n10,3.5\n"


def test_text_is_split_by_file_and_taken_once(parts: SimpleNamespace, tmp_path: Path) -> None:
    for i in range(40):
        for name in (f"m{i}.py", f"test_m{i}.py", f"n{i}.md"):
            (tmp_path / name).write_text(f"{name} " * 20)
    (tmp_path / "copy.py").write_text((tmp_path / "m0.py").read_text())
    (tmp_path / "broken.py").write_bytes(b"\xff\xfe\xff")
    found = parts.texts.documents([tmp_path], 4000)
    assert {d.domain for d in found} == {"code", "tests", "docs"} and len({d.text for d in found}) == len(found)
    first = [d for d, before in zip(found, [None, *found], strict=False) if before is None or before.domain != d.domain]
    assert all(d.held_out for d in first), "the first of every domain"
    assert 0 < sum(d.held_out for d in found) < len(found) / 2
    with pytest.raises(ValueError, match="text enough for 0 of the domains code, tests, docs, c, tables, and 3 are"):
        parts.texts.documents([tmp_path], 10**9)


def test_bf16_computes_what_fp32_does(parts: SimpleNamespace) -> None:
    config = parts.training.SIZES["cpu"].model
    half, full = parts.training.Half(config, 3), parts.training.ReferenceMoE(config, 3)
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        near, exact = half(ids).logits, full(ids).logits
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    assert float((near - exact).abs().median() / exact.abs().median()) < 0.05
