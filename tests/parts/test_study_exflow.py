"""Study 03: its countings by hand, the shape that ExFlow reports, and its README's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim import config
from moesim.hardware import HardwareSpec
from moesim.model import ModelSpec
from moesim.page import renewed
from moesim.placement import evaluate
from moesim.trace import read_trace

MODULES = ("setting", "account", "placing", "costs", "pages", "figures", "train", "study")


@pytest.fixture(scope="module")
def folder(repo: Path) -> Path:
    return repo / "studies" / "03_exflow"


@pytest.fixture(scope="module")
def parts(folder: Path, study_modules: Any) -> Iterator[dict[str, Any]]:
    """The modules of the study that need no PyTorch."""
    with study_modules(folder, [name for name in MODULES if name != "train"]) as found:
        yield found


@pytest.fixture(scope="module")
def tables(parts: dict[str, Any], folder: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(folder / f"{name}.csv") for name in parts["study"].TABLES}


@pytest.fixture(scope="module")
def grid(parts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The context-coherent rows of the grid, with their speed-ups."""
    table = parts["costs"].grid(tables["iterations"])
    return table[table["mode"] == "context_coherent"]


def test_each_counting_adds_one_cost(parts: dict[str, Any]) -> None:
    base = {"attention_s": 2.0, "gate_s": 0.5, "experts_s": 1.0, "dense_s": 1.0, "head_s": 0.5}
    row = {"step_s": 12.0, "dispatch_s": 1.5, "combine_s": 0.0, "context_s": 3.0, "context_hidden_s": 0.5,
           "prefill_s": 22.0}
    counted = parts["account"].accounted(row, base, outputs=5)
    assert counted == {"exflow_s": 7.0, "waiting_s": 9.5, "kv_s": 12.0, "full_s": 14.0}


def test_how_slow_exchanges_must_be(parts: dict[str, Any]) -> None:
    base = {"dispatch_s": 1.0, "combine_s": 1.0, "exflow_s": 6.0}     # 4 s stay, 2 s are exchanges
    row = {"dispatch_s": 1.0, "context_hidden_s": 0.0, "exflow_s": 5.0}  # 4 s stay, 1 s is exchanged
    slower = parts["account"].slower_network
    assert slower(base, row, 1.5) == 4.0  # (4 + 4 x 2) / (4 + 4 x 1)
    assert slower(base, row, 2.0) == float("inf")  # half the exchanges can at most double the speed, in the limit


def test_padded_buffers_by_hand(parts: dict[str, Any]) -> None:
    # 16 requests on 16 experts need 1 row each, DeepSpeed sends 4: 2 experts x 4 rows x 2048 B to each of 4 GPUs of the
    # other node, at 12 GB/s, after 20 us and 2 us for each of the 4 messages; 12 layers, there and back
    scenario = parts["setting"].scenario(16, 8)
    one = 20e-6 + 4 * 2e-6 + 4 * 2 * 4 * 2048 / 12e9
    assert parts["account"].padded_exchange_s(scenario, 16) == pytest.approx(24 * one, rel=1e-9)


def test_bytes_of_table_1_by_hand(parts: dict[str, Any]) -> None:
    placements = pd.DataFrame({"experts": 64, "gpus": 4, "placement": ["linear", "affinity_sweep"],
                               "cross_top1": [0.75, 0.5]})
    (row,) = parts["costs"].sent_bytes(placements, 64).to_dict("records")
    vector, kv = 2 * 1024, 2 * 24 * 2 * 1024
    assert row == {"gpus": 4, "baseline": 2 * 12 * 0.75 * vector, "exflow": 12 * 0.5 * vector + 3 * vector,
                   "kv": 12 * 0.5 * vector + 3 * kv}


def test_published_placements_of_mixtral(parts: dict[str, Any]) -> None:
    assert {n: round(f, 3) for n, f in parts["setting"].MIXTRAL.items()} == {4: 0.564, 8: 0.715}


def test_affinity_saves_less_the_fewer_experts_a_gpu_has(parts: dict[str, Any],
                                                         tables: dict[str, pd.DataFrame]) -> None:
    for experts in parts["setting"].EXPERTS:
        gpus = [n for e, n in parts["setting"].GRID if e == experts]
        fewer = [parts["costs"].fewer(tables["placements"], experts, n) for n in gpus]
        assert fewer[-1] > 0
        assert fewer == sorted(fewer, reverse=True)


def test_more_experts_per_gpu_save_more(parts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
    fewer = [parts["costs"].fewer(tables["placements"], experts, 4) for experts in (8, 64)]
    assert fewer[0] < fewer[1]


def test_affinity_never_loses_in_exflows_counting(grid: pd.DataFrame) -> None:
    by = grid.set_index(["experts", "gpus", "placement"])["exflow"].unstack()
    assert (by["affinity_sweep"] >= by["linear"]).all()
    assert (by["linear"] > 1).any()


def test_no_counting_is_better_than_exflows(grid: pd.DataFrame) -> None:
    for more in ("waiting", "kv", "full"):
        assert (grid[more] <= grid["exflow"]).all()
    assert (grid["kv"] < grid["waiting"]).all()


def test_no_affinity_beats_free_exchanges(grid: pd.DataFrame) -> None:
    assert (grid["exflow"] < grid["ceiling"]).all()


def test_pieces_add_up(parts: dict[str, Any], grid: pd.DataFrame) -> None:
    for row in grid.to_dict("records"):
        total = sum(parts["costs"].pieces(row).values())
        assert total == pytest.approx(row["full_s"], rel=1e-4)  # six digits in the CSV


def test_the_program_is_never_worse_than_the_sweep_nor_below_its_bound(parts: dict[str, Any],
                                                                       tables: dict[str, pd.DataFrame]) -> None:
    placements = tables["placements"]
    tried = placements[placements["placement"] == "exflow_ilp"]
    assert len(tried) == len(parts["placing"].ILP)
    for row in tried.to_dict("records"):
        sweep = parts["costs"].pick(placements, experts=row["experts"], gpus=row["gpus"], placement="affinity_sweep")
        assert row["bound"] - 1e-6 <= row["objective"] <= sweep["objective"] + 1e-6


@pytest.mark.parametrize("experts", [8, 16, 32, 64])
def test_traces_are_captured_and_say_how(parts: dict[str, Any], experts: int) -> None:
    trace = read_trace(parts["setting"].trace_path(experts))
    assert (trace.n_layers, trace.n_experts, trace.top_k) == (12, experts, 1)
    assert not trace.meta["synthetic"] and not trace.meta["renormalised"]
    assert f"{experts} experts, top-1" in trace.meta["origin"]
    assert (trace.tokens["token_id"] == -1).all()  # no text


@pytest.mark.parametrize(("cls", "name"), [(ModelSpec, "gpt-350m-moe"), (HardwareSpec, "wilkes3")])
def test_specs_name_their_sources(folder: Path, cls: Any, name: str) -> None:
    file = folder / f"{name}.yaml"
    assert len(config.load(cls, file).source) > 10
    assert "assumed" in file.read_text(encoding="utf-8")


def test_models_learned(folder: Path) -> None:
    losses = pd.read_csv(folder / "training.csv")
    for _, some in losses.groupby("experts"):
        assert some["held_out"].iloc[-1] < some["held_out"].iloc[0] - 2  # nat per token
        assert some["balance"].iloc[-1] < 1.5 < some["balance"].iloc[0]  # 1: even


def test_the_readme_has_the_numbers_of_the_tables(parts: dict[str, Any], tables: dict[str, pd.DataFrame], folder: Path,
                                                  ) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert renewed(readme, parts["pages"].numbers(tables)) == readme


@pytest.mark.slow
def test_a_point_again(parts: dict[str, Any], tables: dict[str, pd.DataFrame], grid: pd.DataFrame) -> None:
    names = ("linear", "affinity_sweep")
    found = parts["account"].speedups(pd.DataFrame(parts["account"].rows(16, 8, names=names)), parts["costs"].OUTPUTS)
    for row in found[found["mode"] == "context_coherent"].to_dict("records"):
        known = parts["costs"].pick(grid, experts=16, gpus=8, placement=row["placement"])
        assert all(row[c] == pytest.approx(known[c], rel=1e-4) for c in parts["account"].COUNTINGS)


@pytest.mark.slow
def test_what_is_gathered_changes_nothing_else(parts: dict[str, Any]) -> None:
    measure, scenario = parts["account"].measure, parts["setting"].scenario
    kv, hidden = (measure(scenario(16, 8, 4, parallelism__mode="context_coherent", parallelism__context=sent))
                  for sent in ("kv", "hidden"))
    assert kv["step_s"] - kv["context_s"] == pytest.approx(hidden["step_s"] - hidden["context_s"], rel=1e-9)
    assert np.isclose(sum(kv[part] for part in parts["account"].PARTS), kv["step_s"], rtol=1e-9)
    assert hidden["context_s"] < kv["context_s"]


@pytest.mark.slow
def test_placements_again(parts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
    whole = parts["setting"].trace(16)
    crossing = []
    for gpus in (4, 8):
        placed = parts["account"].solved(whole.profile(0.5, 0), gpus, "affinity_sweep")
        crossing.append(float(evaluate(placed, whole.evaluation(0.5, 0))["cross_top1"]))
        known = parts["costs"].pick(tables["placements"], experts=16, gpus=gpus, placement="affinity_sweep")
        assert crossing[-1] == pytest.approx(known["cross_top1"], rel=1e-5)
    assert crossing[0] < crossing[1]
