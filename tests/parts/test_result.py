"""A result: numbers derived from tables worked by hand, the folder it is saved to, the timeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

import moesim
from moesim import metrics
from moesim.result import Result, timeline

SPANS = pd.DataFrame(
    [(0, 0, 1, "processor", "attention", 0.0, 2e-6), (0, 0, 0, "links", "dispatch", 2e-6, 5e-6),
     (1, -1, 0, "processor", "head", 5e-6, 5.5e-6)],
    columns=["step", "layer", "device", "server", "phase", "start_s", "end_s"])
DEVICES = {"count": 2, "step_together": 2, "idle_power_w": 10.0, "busy_power_w": 25.0,
           "bandwidth_bytes_per_s": 8.0, "peak_flop_per_s": {"bf16": 5.0, "fp8": 10.0}}


def result(spans: pd.DataFrame = SPANS) -> Result:
    """Return a result of eleven requests that took 0, 1, ... 9 and 20 s."""
    took = np.array([*range(10), 20.0])
    requests = pd.DataFrame({
        "request": range(11), "group": 0, "arrival_s": 0.0, "first_token_s": took, "finish_s": took,
        "prompt_tokens": 1000, "output_tokens": [5] * 10 + [1], "ttft_s": took, "e2e_s": 2 * took,
        "tpot_s": [*took[:10], np.nan]})
    steps = pd.DataFrame({"step": [0, 1], "start_s": [0.0, 8.0], "end_s": [8.0, 20.0], "prefill_tokens": [4, 0],
                          "decode_tokens": [0, 4], "model_flop_bf16": [10.0, 30.0], "model_flop_fp8": [20.0, 0.0],
                          "read_bytes": [16.0, 96.0]} | {
        f"{phase}_s": [seconds, 1.0] for phase, seconds in
        {"attention": 0.5, "attention_reduce": 40.0, "gate": 0.25, "dispatch": 80.0, "shared": 1.5, "experts": 2.0,
         "combine": 160.0, "dense": 0.75, "dense_reduce": 320.0, "head": 3.0, "context": 640.0, "wait": 999.0}.items()})
    links = pd.DataFrame({"link": range(3), "class": ["up", "down", "up"], "bytes": [1.0, 2.0, 4.0]})
    memory = pd.DataFrame({"device": [0, 1], "expert_bytes": [3.0, 4.0]})
    return Result(requests, steps, spans, links, memory, {"devices": DEVICES, "scenario": {"name": "hand", "seed": 3}})


def test_summary_by_hand() -> None:
    summary = result().summary()
    assert tuple(summary) == metrics.SUMMARY_KEYS
    assert summary["ttft_mean_s"] == pytest.approx(65 / 11)
    # The p-th percentile lies at place 10 p / 100 of the eleven, between neighbours in proportion.
    assert [summary[f"ttft_p{p}_s"] for p in (50, 90, 99)] == pytest.approx([5, 9, 9 + 0.9 * 11])
    assert [summary[f"e2e_p{p}_s"] for p in (50, 90, 99)] == pytest.approx([10, 18, 2 * 18.9])
    assert summary["tpot_mean_s"] == 4.5  # the request of one output token has none
    assert [summary[f"tpot_p{p}_s"] for p in (50, 90, 99)] == pytest.approx([4.5, 8.1, 8.91])
    assert summary["makespan_s"] == 20
    assert summary["throughput_tok_per_s"] == 51 / 20  # output tokens only
    assert summary["energy_per_token_j"] == pytest.approx(820 / 51)
    # Two devices for 20 s: 40 FLOP at 5 FLOP/s and 20 at 10 take one of them 10 s; 112 bytes at 8 bytes/s take 14 s.
    assert summary["mfu"] == pytest.approx(10 / 40) and summary["mbu"] == pytest.approx(14 / 40)


def test_energy_by_hand() -> None:
    # Processors are busy 0.5 + 0.25 + 1.5 + 2 + 0.75 + 3 = 8 s in step 0 and six times 1 s in step 1; communication
    # and waiting draw idle power. Two devices: 2 (10 W x 20 s + 15 W x 14 s).
    assert result().summary()["energy_j"] == pytest.approx(2 * (10 * 20 + 15 * 14)) == 820


def test_breakdown_by_hand() -> None:
    steps = pd.DataFrame({"step": [0, 1], "start_s": [0.0, 4.0], "end_s": [4.0, 8.0], "kv_tokens": [5, 6],
                          "attention_s": [1.0, 2.0], "experts_s": [3.0, 0.0], "wait_s": [0.0, 2.0]})
    assert metrics.breakdown(steps).to_dict() == {"attention": 3 / 8, "experts": 3 / 8, "wait": 2 / 8}


def test_bytes_per_link_class_by_hand() -> None:
    assert metrics.link_class_bytes(result().links).to_dict() == {"up": 5, "down": 2}


def test_timeline_by_hand() -> None:
    """Trace Event Format: a process per device, a thread per server, complete events ("X") in microseconds."""
    made = timeline(SPANS)
    assert set(made) == {"traceEvents", "displayTimeUnit"}
    names = [e for e in made["traceEvents"] if e["ph"] == "M"]
    assert [(e["pid"], e["args"]["name"]) for e in names if e["name"] == "process_name"] == [
        (0, "device 0"), (1, "device 1")]
    assert [(e["pid"], e["tid"], e["args"]["name"]) for e in names if e["name"] == "thread_name"] == [
        (d, tid, name) for d in (0, 1) for tid, name in enumerate(("links", "processor"))]
    work = [e for e in made["traceEvents"] if e["ph"] == "X"]
    assert len(work) + len(names) == len(made["traceEvents"])
    assert [(e["name"], e["cat"], e["pid"], e["tid"], e["args"]) for e in work] == [
        ("attention", "processor", 1, 1, {"step": 0, "layer": 0}),
        ("dispatch", "links", 0, 0, {"step": 0, "layer": 0}),
        ("head", "processor", 0, 1, {"step": 1, "layer": -1})]
    assert [(e["ts"], e["dur"]) for e in work] == [pytest.approx(pair) for pair in ((0, 2), (2, 3), (5, 0.5))]
    assert json.loads(json.dumps(made)) == made


def test_a_folder_holds_all_tables(tmp_path: Path) -> None:
    saved, one = result().save(tmp_path / "runs/of/today"), result()
    assert saved == tmp_path / "runs/of/today"
    tables = {"requests", "steps", "spans", "links", "memory"}
    assert {f.name for f in saved.iterdir()} == {f"{t}.parquet" for t in tables} | {
        "summary.json", "meta.json", "scenario.yaml", "timeline.json"}
    for name in tables:
        pd.testing.assert_frame_equal(pd.read_parquet(saved / f"{name}.parquet"), getattr(one, name))
    assert json.loads((saved / "summary.json").read_text()) == one.summary()
    assert json.loads((saved / "meta.json").read_text()) == one.meta
    assert json.loads((saved / "timeline.json").read_text()) == timeline(one.spans)
    assert YAML(typ="safe").load((saved / "scenario.yaml").read_text()) == {"name": "hand", "seed": 3}
    assert [f.name for f in saved.parent.iterdir()] == ["today"], "nothing is left beside it"


def test_a_result_without_spans_can_be_saved(tmp_path: Path) -> None:
    saved = result(SPANS.iloc[:0]).save(tmp_path / "run")
    assert json.loads((saved / "timeline.json").read_text())["traceEvents"] == []


def test_a_result_replaces_a_result_as_a_whole(tmp_path: Path) -> None:
    saved = result().save(tmp_path / "run")
    (saved / "figures").mkdir()
    (saved / "figures/links.png").touch()
    result(SPANS.iloc[:1]).save(saved)
    assert not (saved / "figures").exists(), "figures of the old numbers are gone"
    assert len(pd.read_parquet(saved / "spans.parquet")) == 1
    assert [f.name for f in tmp_path.iterdir()] == ["run"]


def test_a_save_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = result().save(tmp_path / "run")
    before = {f.name: f.read_bytes() for f in saved.iterdir()}
    full = OSError("no space left")

    def fail(spans: pd.DataFrame) -> None:
        raise full

    monkeypatch.setattr("moesim.result.timeline", fail)  # the last file of all
    for folder in (saved, tmp_path / "other"):
        with pytest.raises(OSError, match="no space left"):
            result().save(folder)
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["run"], "neither half a result nor scratch files"


def test_other_peoples_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("five years of work")
    with pytest.raises(FileExistsError) as caught:
        result().save(tmp_path)
    assert str(caught.value) == (f"{tmp_path} holds files that moesim.Result did not write (thesis.tex); choose "
                                 "another folder, or move them away")
    assert [f.read_text() for f in tmp_path.iterdir()] == ["five years of work"]
    run = result().save(tmp_path / "run")
    (run / "notes.txt").write_text("what I learnt")
    with pytest.raises(FileExistsError, match="notes.txt"):
        result().save(run)
    assert (run / "notes.txt").exists(), "notes beside a result stay"
    with pytest.raises(FileExistsError, match="thesis.tex is a file; choose a folder"):
        result().save(tmp_path / "thesis.tex")
    (tmp_path / "empty").mkdir()
    assert (result().save(tmp_path / "empty") / "meta.json").exists()


def test_what_is_saved_is_json_and_goes_where_a_link_points(tmp_path: Path, repo: Path) -> None:
    """One output token: no time per output token, NaN in Python, null in JSON."""
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    tiny = moesim.load(repo / "tests/data/tiny.yaml", ("requests.output_tokens=1",))
    moesim.simulate(tiny).save(tmp_path / "link")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    summary = json.loads((tmp_path / "target/summary.json").read_text(), parse_constant=refuse)
    assert summary["tpot_mean_s"] is None and summary["ttft_mean_s"] > 0
    assert (tmp_path / "link").is_symlink()
