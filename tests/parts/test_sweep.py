"""Sweeps: points and their order, every executor the same table, failures as rows, metrics by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import moesim
from moesim.explore import grid, load_sweep, measure, metric_names
from moesim.explore.grid import columns, overrides
from moesim.explore.metric_names import PLACEMENT
from moesim.result import Result
from moesim.scenario import Scenario

METRICS = ["throughput_tok_per_s", "tpot_p50_s", "share_experts"]
AXES: dict[str, list[Any]] = {"placement.solver": ["linear", "lpt"], "seed": [0, 1]}


class Inline(Executor):
    """The simplest executor: run at once, here, and note what ran."""

    def __init__(self) -> None:
        self.ran: list[Any] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future:  # type: ignore[type-arg]
        self.ran.append(args)
        future: Future = Future()  # type: ignore[type-arg]
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def last_finish(result: Result) -> float:
    return float(result.requests["finish_s"].max())


def fails_with_seed_1(result: Result) -> float:
    return 1 / (1 - result.meta["seed"])


def kills_with_seed_1(result: Result) -> float:
    if result.meta["seed"] == 1:
        os._exit(7)
    return 0.0


@pytest.fixture(scope="module")
def tiny(repo: Path) -> Scenario:
    return moesim.load(repo / "tests/data/tiny.yaml")


def test_grid_by_hand() -> None:
    assert grid({"a.b": [1, 2], "c": ["x", {"name": "lpt"}]}) == [
        {"a.b": 1, "c": "x"}, {"a.b": 1, "c": {"name": "lpt"}}, {"a.b": 2, "c": "x"}, {"a.b": 2, "c": {"name": "lpt"}}]
    assert grid({}) == [{}]
    assert grid([{"a": 1, "b": 2}, {"a": 3, "b": 4}]) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    axes: dict[str, Any] = {"n": np.arange(2), "x": np.array([0.5]), "p": [Path("t.parquet")]}
    assert grid(axes)[1] == {"n": 1, "x": 0.5, "p": "t.parquet"}


@pytest.mark.parametrize(("axes", "text"), [
    ({"a": []}, "axis a: has no values; give at least one, or remove the axis"),
    ({"a": "lpt"}, "axis a: 'lpt' is not a list of values; write ['lpt']"),
    ({"a": 4}, "axis a: 4 is not a list of values; write [4]"),
    ({"a": [float("nan")]}, "axis a: nan cannot be written in a scenario; give numbers, text, lists or mappings, "
                            "and parts by name"),
    ([], "axes have no points; give at least one, or {} for the scenario as it is"),
    ([{"a": 1}, {"b": 1}], "point 1 sets b, point 0 sets a; every point must set the same paths in one order"),
    ("seed", "axes are 'seed'; give a mapping of dotted path -> values, or a list of points")])
def test_wrong_axes_are_told(axes: Any, text: str) -> None:
    with pytest.raises(ValueError) as error:
        grid(axes)
    assert str(error.value) == text


def test_values_survive_as_overrides() -> None:
    values = [1, 1e-5, 1e22, 2.5, True, None, "8 GB", "x: y", "é#", "1", [1, "a"], {"name": "joint", "balance": 1.0}]
    document = moesim.config.Document({"a": 0})  # type: ignore[attr-defined]
    for value in values:
        for text in overrides({"a": value}):
            moesim.config._override(document, text)  # type: ignore[attr-defined]
        assert document.data["a"] == value
        assert type(document.data["a"]) is type(value)


def test_columns_show_what_was_varied() -> None:
    axes: dict[str, list[Any]] = {"solver": ["lpt", {"name": "joint", "balance": 1.0}], "n": [1, 2]}
    table = columns(grid(axes))
    assert table["solver"].tolist() == ["lpt", "lpt"] + 2 * ['{"name": "joint", "balance": 1.0}']
    assert table["n"].dtype == np.int64
    assert columns([{"x": 1}, {"x": "auto"}])["x"].tolist() == ["1", "auto"]


def test_table_has_a_row_per_point_in_order(tiny: Scenario) -> None:
    table = moesim.sweep(tiny, AXES, METRICS, Inline())
    assert list(table.columns) == ["placement.solver", "seed", *METRICS, "warnings", "error"]
    assert table["placement.solver"].tolist() == ["linear", "linear", "lpt", "lpt"]
    assert table["seed"].tolist() == [0, 1, 0, 1]
    assert table["error"].isna().all()
    assert table["warnings"].str.startswith("the routing is synthetic").all()
    one = moesim.simulate(moesim.override(tiny, ["placement.solver=linear", "seed=1"]))
    assert table["throughput_tok_per_s"][1] == one.summary()["throughput_tok_per_s"]


def test_every_executor_gives_the_same_table(tiny: Scenario) -> None:
    wanted = {name: name for name in METRICS} | {"last": last_finish}
    one = moesim.sweep(tiny, AXES, wanted, Inline())
    with ThreadPoolExecutor(3) as threads:
        assert_frame_equal(one, moesim.sweep(tiny, AXES, wanted, threads), check_exact=True)
    assert_frame_equal(one, moesim.sweep(tiny, AXES, wanted, 2), check_exact=True)


def test_failed_points_are_rows(tiny: Scenario) -> None:
    axes = {"scheduler.max_batch": [2, -1], "seed": [0, 1]}
    table = moesim.sweep(tiny, axes, {"steps": "steps", "inverse": fails_with_seed_1}, Inline())
    assert table["steps"].notna().tolist() == [True, False, False, False]
    assert table["error"][0] is None
    assert table["error"][1] == "ZeroDivisionError: division by zero"
    assert table["error"][2].startswith("ConfigError: ")
    assert "max_batch: Input should be greater than or equal to 1" in table["error"][2]


def test_a_dying_worker_takes_no_other_point_with_it(tiny: Scenario) -> None:
    table = moesim.sweep(tiny, {"seed": [0, 1, 2]}, [kills_with_seed_1], executor=1)
    assert table["kills_with_seed_1"].isna().tolist() == [False, True, False]
    assert table["error"][1] == ("WorkerDied: the worker process died while it ran this point (out of memory?)")
    assert table["error"].drop(1).isna().all()


def test_equal_points_run_once(tiny: Scenario) -> None:
    executor = Inline()
    table = moesim.sweep(tiny, [{"seed": 0}, {"seed": 1}, {"seed": 0}], ["steps"], executor)
    assert len(executor.ran) == 2
    assert table["steps"][0] == table["steps"][2]


def test_progress_counts_points(tiny: Scenario) -> None:
    seen: list[tuple[int, int]] = []
    moesim.sweep(tiny, [{"seed": 0}, {"seed": -1}, {"seed": 0}], ["steps"], Inline(),
                 progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (3, 3)]  # the wrong one is done at once


@pytest.mark.parametrize(("metrics", "text"), [
    (["tput"], "unknown metric 'tput'; known: ttft_mean_s"),
    (["ttft_mean"], "unknown metric 'ttft_mean'; did you mean 'ttft_mean_s'?"),
    (["steps", "steps"], "metric 'steps' is given twice"),
    ([lambda result: 1.0], "has no name for its column; give a mapping of column -> metric"),
    ({"seed": last_finish}, "two columns would be called 'seed'"),
    ({"error": last_finish}, "two columns would be called 'error'"),
    ({"x": lambda result: 1.0}, "cannot be sent to another process; define it with `def` at the top of a module")])
def test_wrong_metrics_are_told_before_anything_runs(tiny: Scenario, metrics: Any, text: str) -> None:
    with pytest.raises(ValueError) as error:
        moesim.sweep(tiny, {"seed": [0]}, metrics)
    assert text in str(error.value)


def test_metrics_by_name(tiny: Scenario) -> None:
    result = moesim.simulate(tiny)
    numbers = measure(result)
    assert tuple(result.summary()) == moesim.metrics.SUMMARY_KEYS
    assert numbers["steps"] == len(result.steps)
    assert numbers["expert_bytes_max"] == 4 * tiny.model.expert_bytes  # 2 layers x 4 experts on 2 devices
    assert sum(v for k, v in numbers.items() if k.startswith("share_")) == pytest.approx(1)
    assert sum(v for k, v in numbers.items() if k.startswith("bytes_")) == pytest.approx(result.links["bytes"].sum())
    assert numbers["energy_per_token_j"] == pytest.approx(numbers["energy_j"] / 32)  # 8 requests x 4 tokens
    assert {name for name in metric_names() if "<" not in name} - set(PLACEMENT) == {
        name for name in numbers if not name.startswith(("share_", "bytes_", "mfu_", "mbu_"))}
    some = measure(result, {"a": "steps", "b": last_finish})
    assert some == {"a": float(len(result.steps)), "b": numbers["makespan_s"]}
    with pytest.raises(ValueError, match="the result has no bytes_scaleup; did you mean 'bytes_scale_up_in'"):
        measure(result, {"x": "bytes_scaleup"})


def test_metrics_of_the_placement_are_of_unseen_requests(tiny: Scenario) -> None:
    table = moesim.sweep(tiny, {}, ["cross_top1", "placement_load_max_over_mean", "cross_node_top1"], Inline())
    assert table["error"][0] == "ValueError: the result has no cross_node_top1; did you mean 'cross_top1'?"  # one node
    table = moesim.sweep(tiny, {}, ["cross_top1", "placement_load_max_over_mean"], Inline())
    assert tiny.trace.synthetic
    trace = tiny.trace.synthetic.generate()
    placement = moesim.placement.solve(trace.profile(), 2, "lpt")
    expected = moesim.placement.evaluate(placement, trace.evaluation())
    assert table["cross_top1"][0] == expected["cross_top1"]
    assert table["placement_load_max_over_mean"][0] == expected["load_max_over_mean"]


STUDY = """
scenario: scenario.yaml
axes: {placement.solver: [linear, lpt]}
seeds: 2
metrics: [steps, tpot_p50_s]
"""


def test_sweep_file(tmp_path: Path, repo: Path, tiny: Scenario) -> None:
    (tmp_path / "scenario.yaml").write_text((repo / "tests/data/tiny.yaml").read_text())
    (tmp_path / "sweep.yaml").write_text(STUDY)
    spec = load_sweep(tmp_path / "sweep.yaml")
    assert spec.points() == grid(AXES)
    table = spec.run(["scheduler.max_batch=2"], executor=Inline())
    expected = moesim.sweep(moesim.override(tiny, ["scheduler.max_batch=2"]), AXES, ["steps", "tpot_p50_s"], Inline())
    assert_frame_equal(table, expected, check_exact=True)


@pytest.mark.parametrize(("change", "line"), [
    (("seeds: 2", "seeds: 0"), "sweep.yaml:4: seeds: Input should be greater than or equal to 1"),
    (("axes", "axis"), "sweep.yaml:3: axis: unknown key; did you mean 'axes'?"),
    (("steps", "stepz"), "sweep.yaml:5: metrics.0: unknown metric 'stepz'; did you mean 'steps'?"),
    (("[linear, lpt]", "[]"), "sweep.yaml:3: axes: axis placement.solver: has no values; give at least one, or remove "
                              "the axis"),
    (("placement.solver: [linear, lpt]", "seed: [1]"), "sweep.yaml:4: seeds: there is an axis seed too; keep one"),
    (("scenario.yaml", "scenari.yaml"), "sweep.yaml:2: scenario: no file 'scenari.yaml' in")])
def test_wrong_sweep_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str],
                                    line: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenario.yaml").write_text("name: x\n")
    (tmp_path / "sweep.yaml").write_text(STUDY.replace(*change))
    with pytest.raises(moesim.ConfigError) as error:
        load_sweep("sweep.yaml")
    assert any(str(problem).startswith(line) for problem in error.value.problems), str(error.value)


def test_result_of_the_sweep_is_plain_numbers(tiny: Scenario) -> None:
    table = moesim.sweep(tiny, {}, METRICS, Inline())
    assert len(table) == 1
    assert all(pd.api.types.is_float_dtype(table[name]) for name in METRICS)
    json.loads(table.to_json())


def test_a_sweep_runs_from_a_script_without_a_guard_and_from_standard_input(tmp_path: Path, repo: Path) -> None:
    script = ("import moesim\n"
              f"tiny = moesim.load({str(repo / 'tests/data/tiny.yaml')!r}, ('requests.count=4',))\n"
              "print(moesim.sweep(tiny, {'seed': [0, 1]}, ['makespan_s'], 1)['makespan_s'].gt(0).tolist())\n")
    file = tmp_path / "script.py"
    file.write_text(script)
    for arguments, text in (([str(file)], None), (["-"], script)):
        done = subprocess.run([sys.executable, *arguments], input=text, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("[True, True]\n", "")
