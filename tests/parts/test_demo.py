"""The demo, reduced to a few requests and quick solvers, from captured trace to report; and its words, by hand."""

from __future__ import annotations

import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
import pytest

import moesim
from moesim import demo
from moesim.demo import answer, points
from moesim.placement import Placement

FEW = ("requests.concurrency=16", "requests.count=16", "requests.prompt_tokens={low: 8, high: 32}",
       "requests.output_tokens={low: 3, high: 6}", "span_steps=2")
QUICK = {"linear": "linear", "affinity": {"name": "affinity_sweep", "restarts": 1, "perturbations": 20},
         "joint 1": {"name": "joint", "balance": 1.0, "restarts": 1, "perturbations": 20}}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the reduced demo wrote, where neither torch nor transformers can be imported."""
    folder = tmp_path_factory.mktemp("demo")
    printed, here = io.StringIO(), ThreadPoolExecutor(1)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), here:
        for library in ("torch", "transformers"):
            patch.setitem(sys.modules, library, None)
        patch.setattr("moesim.plots._style.DPI", 40)
        demo.run(folder, FEW, QUICK, here)
    assert not printed.getvalue()
    return folder


@pytest.fixture(scope="module")
def table(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "tables" / "points.parquet")


def test_one_row_per_placement_and_mode_with_all_that_was_asked_for(table: pd.DataFrame) -> None:
    assert table[["placement", "mode"]].to_numpy().tolist() == [[p, m] for m in points.MODES for p in QUICK]
    wanted = {"throughput_tok_per_s", "tpot_mean_s", "ttft_mean_s", "cross_top1", "cross_all", "cross_top1_profile",
              "cross_all_profile", "cross_node_top1", "fanout", "load_max_over_mean", "step_load_max_over_mean",
              "bytes_scale_up_out",
              "bytes_scale_up_in", "bytes_nic_out", "bytes_nic_in", "bytes_leaf_up", "bytes_leaf_down"}
    assert wanted <= set(table) and not table.isna().any().any()
    assert table[["cross_top1", "cross_all"]].to_numpy().max() <= 1 and (table["fanout"] >= 1).all()


def test_numbers_are_those_of_the_simulation(out: Path, table: pd.DataFrame) -> None:
    scenario = moesim.load(out / "scenario.yaml")
    summary = moesim.simulate(points.at(scenario, out, "joint 1", "context_coherent")).summary()
    row = table[(table["placement"] == "joint 1") & (table["mode"] == "context_coherent")].iloc[0]
    for column in ("throughput_tok_per_s", "tpot_mean_s", "ttft_mean_s"):
        assert row[column] == summary[column]


def test_what_crosses_is_judged_on_requests_that_no_solver_saw(out: Path, table: pd.DataFrame) -> None:
    scenario = moesim.load(out / "scenario.yaml")
    trace = points.read(scenario)
    assert not set(trace.profile.requests) & set(trace.evaluation.requests)
    placement = Placement.load(points.file(out, "affinity"))
    row = table[table["placement"] == "affinity"].iloc[0]
    for part, column in ((trace.evaluation, "cross_top1"), (trace.profile, "cross_top1_profile")):
        assert moesim.placement.evaluate(placement, part)["cross_top1"] == row[column]


def test_every_byte_between_nodes_takes_every_class_of_link_of_the_fabric(table: pd.DataFrame) -> None:
    for name in ("nic_out", "nic_in", "leaf_down"):
        assert table[f"bytes_{name}"].to_numpy() == pytest.approx(table["bytes_leaf_up"].to_numpy(), rel=1e-9)
    phases = table[[f"between_nodes_{p}_bytes" for p in ("dispatch", "combine", "context")]].sum(axis=1)
    assert phases.to_numpy() == pytest.approx(table["bytes_leaf_up"].to_numpy(), rel=1e-9)


def test_phases_add_up_to_steps(out: Path) -> None:
    phases = pd.read_parquet(out / "tables" / "phases.parquet").set_index(["placement", "mode", "step"])
    steps = pd.read_parquet(out / "results" / "linear-context_coherent" / "steps.parquet")
    decode = steps[steps["prefill_tokens"] == 0]
    expected = (decode["end_s"] - decode["start_s"]).mean()
    assert phases.loc[("linear", "context_coherent", "decode")].sum() == pytest.approx(expected)


def test_report_answers_with_figures_table_and_caveats(out: Path, table: pd.DataFrame) -> None:
    text = (out / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Where should the experts") and "nan" not in text
    name, mode = points.best(table)
    assert f"Put them where `{name}` puts them" in text and f"serve with `{mode}`" in text
    assert f"{table['throughput_tok_per_s'].max():.0f} output tokens/s" in text
    assert text.count("\n| ") == 2 + len(table) and "what-if" in text and "held-out" in text and "perfetto" in text
    for figure in ("affinity", "device_load", "breakdown_decode", "breakdown_prefill", "pareto", "links", "latency"):
        assert f"(figures/{figure}.png)" in text
        assert (out / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_timeline_is_trace_events_and_no_server_does_two_things_at_once(out: Path) -> None:
    content = json.loads((out / "timeline.json").read_text(encoding="utf-8"))
    spans = [e for e in content["traceEvents"] if e["ph"] == "X"]
    assert {e["ph"] for e in content["traceEvents"]} == {"X", "M"} and len(spans) > 1000
    assert {e["pid"] for e in spans} == set(range(16)) and len({e["args"]["step"] for e in spans}) >= 4
    ends: dict[tuple[int, int], float] = {}
    for event in sorted(spans, key=lambda e: e["ts"]):
        server = event["pid"], event["tid"]
        assert event["dur"] > 0 and event["ts"] >= ends.get(server, 0.0) - 1e-6, event
        ends[server] = event["ts"] + event["dur"]


def test_results_are_whole_and_the_scenario_loads(out: Path, table: pd.DataFrame) -> None:
    for mode in points.MODES:
        for name in ("linear", points.fastest(table, mode)):
            folder = out / "results" / f"{points.slug(name)}-{mode}"
            assert {"requests.parquet", "spans.parquet", "timeline.json", "scenario.yaml"} <= {
                p.name for p in folder.iterdir()}
    assert moesim.load(out / "scenario.yaml").requests.count == 16


def test_shown_is_text_with_units(table: pd.DataFrame) -> None:
    text = demo.shown(table)
    wanted = {"TPOT (ms)", "cross top-1 (%)", "on profile (%)", "spine (GB)"}
    assert len(text) == len(table) and wanted <= set(text)
    assert text["TPOT (ms)"].iloc[0] == f"{1e3 * table['tpot_mean_s'].iloc[0]:.2f}"


def test_solvers_without_the_baseline_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="solvers has no affinity, which the answer compares with"):
        demo.run(tmp_path, solvers={"linear": "linear"})


def by_hand(bytes_with_affinity: float, tokens: tuple[float, float, float, float]) -> points.Points:
    """Return a table of two placements: affinity crosses less, is less even, and moves *bytes_with_affinity*."""
    names = [(p, m) for m in points.MODES for p in ("linear", "affinity")]
    table = pd.DataFrame(names, columns=["placement", "mode"]).assign(
        throughput_tok_per_s=tokens, tpot_mean_s=0.01, ttft_mean_s=[0.1, 0.1, 0.3, 0.3], cross_top1=[0.9, 0.5] * 2,
        fanout=[2.0, 1.9] * 2, load_max_over_mean=[1.2, 1.6] * 2, bytes_leaf_up=[100.0, bytes_with_affinity] * 2,
        between_nodes_dispatch_bytes=[40.0, 20.0] * 2, kv_peak_bytes=[1e9, 1e9, 16e9, 16e9])
    phases = pd.DataFrame([(p, m, s, w) for (p, m), w in zip(names, (1e-4, 2e-4, 3e-4, 4e-4), strict=True)
                           for s in ("decode", "prefill")], columns=["placement", "mode", "step", "wait_s"])
    return points.Points(table, phases)


def test_the_answer_follows_the_numbers() -> None:
    best, home, coherent, load = answer.sentences(by_hand(98.0, (1000, 900, 500, 600)))
    assert "where `linear` puts them" in best and "serve with `dispatch_combine`" in best
    assert "600 tokens/s (-40.0%), with `affinity`" in best and "hardly matters" in best
    assert "change by -2.0%. Transitions are not what travels here." in home and "`affinity` -10.0%" in home
    assert "change by -50.0%" in coherent and "time to first token 3.0 times" in coherent and "16.0 times" in coherent
    assert "1.20 times the mean with `linear`" in load and "0.10 ms of a decode step" in load


def test_the_answer_turns_when_the_numbers_do() -> None:
    best, home, *_ = answer.sentences(by_hand(60.0, (1000, 1200, 500, 1300)))
    assert "where `affinity` puts them" in best and "serve with `context_coherent`" in best
    assert "(+160.0%" not in best and "2.6 times against `linear`" in best and "hardly matters" not in best
    assert "change by -40.0%. Bytes follow" in home
