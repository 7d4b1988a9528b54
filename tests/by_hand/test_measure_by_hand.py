"""Measuring, worked out on paper: which points fit a budget, what a clock shows, ceilings, drift, a step's price."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from moesim.hardware import Device  # noqa: E402
from moesim.kernels.models.roofline import Roofline  # noqa: E402
from moesim.measure import ceilings, energy, environment, target, timing, validate  # noqa: E402
from moesim.measure.blocks.layer_stack import small  # noqa: E402
from moesim.measure.plan import Item, plan  # noqa: E402
from moesim.measure.point import Point, Unavailable, Work  # noqa: E402
from moesim.measure.runner import Options, drift, planned  # noqa: E402
from moesim.measure.stack import Step  # noqa: E402
from moesim.measure.target import Target  # noqa: E402

CPU = Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9)


def item(m: int, cost_s: float, anchor: bool = False, group: str = "", block: str = "b") -> Item:
    return Item(block, Point("gemm", {"m": m, "n": 1, "k": 1}, "linear", anchor=anchor, group=group), cost_s)


def test_every_block_gets_its_share_and_anchors_go_first() -> None:
    # All would take 100 + 300 s; 90 % of 200 s are 45 % of it: 45 s and 135 s. Half of that at most for anchors: two of
    # 10 s in the first block and two of 30 s in the second; two and two of the others fit behind them.
    first = [item(i, 10.0, anchor=i < 5) for i in range(10)]
    second = [item(100 + i, 30.0, anchor=i < 5, block="c") for i in range(10)]
    found = plan({"b": first, "c": second}, budget_s=200.0)
    anchors = [(i.block, i.point.anchor) for i in found.items]
    assert sorted(anchors) == [("b", False)] * 2 + [("b", True)] * 2 + [("c", False)] * 2 + [("c", True)] * 2
    assert found.left_out == {"b": 6, "c": 6}


def test_no_budget_takes_all_and_a_tiny_one_a_point_of_each_block() -> None:
    blocks = {"b": [item(1, 10.0), item(2, 10.0)], "c": [item(3, 50.0, block="c")]}
    assert len(plan(blocks, float("inf")).items) == 3
    assert sorted(i.block for i in plan(blocks, 1.0).items) == ["b", "c"]


def test_several_rounds_share_the_budget_without_sentinels() -> None:
    found = plan({"b": [item(i, 10.0) for i in range(10)]}, budget_s=120.0, rounds=3)  # 40 s a round: four points
    assert len(found.items) == 4 and not found.sentinels and found.seconds() == {"b": 120.0}


def test_groups_stay_together_and_the_rest_is_shuffled() -> None:
    items = [item(i, 1.0, group="ab"[i % 2]) for i in range(6)] + [item(10 + i, 1.0) for i in range(20)]
    orders = [[i.point.shapes["m"] for i in plan({"b": items}, float("inf"), seed).items] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    groups = [i.point.group for i in plan({"b": items}, float("inf")).items]
    assert [len(list(run)) for group, run in itertools.groupby(groups) if group] == [3, 3]
    some = [item(i, 1.0, group="a", anchor=i == 4) for i in range(6)]
    assert [plan({"b": some}, float("inf"), seed).items[0].point.shapes["m"] for seed in range(5)] == [4] * 5


def test_what_comes_after_is_taken_and_run_last() -> None:
    """Four of six fit: both of 0, then of the others, of which the long one is last. B is still there after its first.
    """
    def late(m: int, group: str, after: int, cost_s: float = 10.0) -> Item:
        return Item("b", Point("gemm", {"m": m, "n": 1, "k": 1}, "linear", group=group, after=after), cost_s)

    items = [late(0, "a", 0), late(1, "a", 1), late(2, "a", 2, 30.0), late(3, "b", 0), late(4, "b", 1), late(5, "b", 1)]
    for seed in range(4):
        found = [i.point for i in plan({"b": items}, 51.0 / 0.9, seed).items]
        groups, rest = [p.group for p in found], [p.group for p in found if p.after]
        assert [p.after for p in found] == [0, 0, 1, 1, 1] and sorted(groups[:2]) == ["a", "b"]
        assert rest == sorted(rest, reverse=groups[1] == "b"), "those of the group that was built last come first"


def test_half_of_the_time_measures_every_step_of_an_h200() -> None:
    gpu = Target("cuda", "H200", "bf16", 130e9, 256e6, 132, 400e12, 2e12)
    steps, shapes = [planned(gpu, Options(("layer_stack",), budget_s=s)).items for s in (170.0, np.inf)], []
    for items in steps:
        shapes.append({tuple(sorted(i.point.extra.items())) for i in items})
    assert shapes[0] == shapes[1] and len(steps[0]) > 1.5 * len(shapes[0])
    assert len({i.point.routing for i in steps[0] if i.point.after == 0}) == 3


def test_what_a_driver_says_is_kept_and_none_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.details() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho ' Clocks'\necho\necho '   SM : 1980 MHz'\n")
    program.chmod(0o755)
    assert environment.details() == [" Clocks", "   SM : 1980 MHz"]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert environment.details() == []


def test_a_replay_is_one_call_or_several_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def call(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    effort = timing.Effort(warmups=3, replays=2)
    long = timing.measure("cpu", Work([lambda: call(0.008), lambda: call(0.03)]), effort)
    # after three warm-ups (8, 30, 8 ms) the last of which took 8 ms: 4 replays fit in 35 ms, second call first
    assert long.samples_s == pytest.approx([0.03, 0.008] * 2)
    assert long.extra == {"replays": 4, "calls_per_replay": 1, "ring": 2}
    short = timing.measure("cpu", Work([lambda: call(2**-18)]), effort)  # 3.8 us: five in 20 us; at most 20 replays
    assert short.samples_s == pytest.approx([2**-18] * 20) and short.extra["calls_per_replay"] == 5
    alone = timing.measure("cpu", Work([lambda: call(2**-18)], before=lambda: call(1.0)), effort)  # not of the time
    assert alone.samples_s == pytest.approx([2**-18] * 20) and alone.extra["calls_per_replay"] == 1


def test_ceilings_are_the_best_rates() -> None:
    row = {"dtype": "fp32", "status": "ok", "cold": True}
    table = pd.DataFrame([
        row | {"op": "gemm", "m": 100, "n": 100, "k": 100, "time_s": 1e-3},       # 2e6 FLOP: 2 GFLOP/s
        row | {"op": "gemm", "m": 1, "n": 1000, "k": 1000, "time_s": 2e-3},       # 4 * (2e3 + 1e6) bytes: 2.004 GB/s
        row | {"op": "copy", "bytes": 6e6, "time_s": 2e-3},                       # 3 GB/s
        row | {"op": "copy", "bytes": 9e6, "time_s": 1e-3, "cold": False},        # from a cache
        row | {"op": "copy", "bytes": 9e6, "time_s": 1e-3, "status": "error"}])
    assert ceilings.best_rates(table, "fp32", 2) == (2e9, 3e9)
    described = ceilings.device(CPU, table, "2026-01-01")
    assert described.processor.peak == {"fp32": 2e9, "bf16": 2e9} and described.processor.bandwidth == 3e9
    text = ceilings.as_yaml(described)
    assert "measured ceilings" in text and "2026-01-01 with 2 threads" in text
    with pytest.raises(ValueError, match="no fp32 measurement of anything cold; measure the blocks dense_gemm"):
        ceilings.best_rates(table[~table["cold"] | (table["op"] == "none")].assign(op="gemm", m=1, n=1, k=1), "fp32", 2)


def test_drift_compares_turns() -> None:
    class Rows:
        rows = [{"sentinel": True, "status": "ok", "x_key": key, "x_turn": turn, "x_round": 0, "time_s": seconds}
                for key, times in {"a": (1.0, 1.5, 1.1), "b": (2.0, 2.0, 2.6)}.items()
                for turn, seconds in enumerate(times)]

    found = drift(Rows)  # type: ignore[arg-type]
    # +10 and +30; 1.5 / 1.0; the faster of the first and third time over the second: 1.0 / 1.5 and 2.0 / 2.0
    assert found == {"median": pytest.approx(20.0), "worst": pytest.approx(50.0), "noise": pytest.approx(100 / 6),
                     "points": 2}


def test_the_price_of_a_step_is_its_work() -> None:
    """At 1 FLOP/s and endless bandwidth a roofline step takes as many seconds as it has FLOP."""
    model = small("s", "fp32", hidden=64, layers=3, experts=4, top_k=2, ffn=32, heads=(4, 2, 16))
    device = Device.model_validate({
        "name": "one", "source": "made up", "memory": [{"name": "m", "capacity": "1 GB", "bandwidth": "1 GB/s"}],
        "processor": {"peak": {"fp32": "1 FLOP/s", "bf16": "1 FLOP/s"}, "bandwidth": "1e30 B/s", "multiprocessors": 1},
        "idle_power": "1 W", "busy_power": "1 W"})
    step = Step(prompts=(5,), contexts=(10, 10))
    ids = np.tile([0, 1], (7, 3, 1))  # seven tokens, three layers
    matrices = 64 * (4 + 2 * 2) * 16 + 4 * 16 * 64 + 64 * 4 + 2 * 3 * 64 * 32   # qkv, out, gate, two experts
    attention = 2 * 4 * 32 * (15 + 20)  # heads x (key and value width) x pairs: 1 + ... + 5, and 2 x 10
    head = 2 * 3 * 64 * 8192            # three sequences
    seconds = validate.predicted_s(validate.Case(model, step), device, Roofline(), ids)
    assert seconds == 3 * (2 * 7 * matrices + attention) + head
    chunk = validate.Case(model, Step(prompts=(5,), contexts=(10, 10), chunk=2))
    attention = 2 * 4 * 32 * (4 + 5 + 20)  # the last two of five positions see four and five
    assert validate.predicted_s(chunk, device, Roofline(), ids[:4]) == 3 * (2 * 4 * matrices + attention) + head


def test_energy_counters_wrap_around(tmp_path: Path) -> None:
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "max_energy_range_uj").write_text("1000000\n")
    (package / "energy_uj").write_text("900000\n")
    read = energy._rapl(tmp_path)
    (package / "energy_uj").write_text("100000\n")
    assert read() == pytest.approx(0.2)
    (package / "energy_uj").write_text("400000\n")
    assert read() == pytest.approx(0.5)
    with pytest.raises(Unavailable, match="no energy counter in"):
        energy._rapl(tmp_path / "none")


def test_the_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    for i, size in enumerate(("32K", "1024K", "32M")):
        (tmp_path / f"index{i}").mkdir()
        (tmp_path / f"index{i}" / "size").write_text(size + "\n")
    assert target.last_level_cache(tmp_path) == 32 * 1024**2
    assert target.last_level_cache(tmp_path / "none") == 64e6
