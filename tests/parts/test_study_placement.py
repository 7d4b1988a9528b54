"""Study 01: its pieces by hand, its tables against a recomputation, and its README's claims against its tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.placement import Placement, Profile, solve
from moesim.trace import DECODE, RoutingTrace

MODULES = ("setting", "pareto", "pareto_figures", "domains", "profile_size", "solver_time", "split", "study")
STAGES = ("pareto", "split", "domains", "profile", "time")


@pytest.fixture(scope="module")
def folder(repo: Path) -> Path:
    return repo / "studies" / "01_placement"


@pytest.fixture(scope="module")
def parts(folder: Path, study_modules: Any) -> Iterator[dict[str, Any]]:
    with study_modules(folder, MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(folder / f"{name}.csv") for name in STAGES}


@pytest.fixture(scope="module")
def own(parts: dict[str, Any]) -> Any:
    """The halves of our own trace."""
    setting = parts["setting"]
    return setting.half(setting.traces(None)[setting.OWN])


@pytest.fixture
def two_tokens() -> RoutingTrace:
    """One request, two decoded tokens, two layers of four experts, top-2."""
    return RoutingTrace.from_arrays(np.array([[[0, 2], [1, 0]], [[3, 2], [2, 1]]]), n_experts=4, top_k=2,
                                    request=[7, 7], phase=DECODE)


def test_copies_by_hand(parts: dict[str, Any], two_tokens: RoutingTrace) -> None:
    """Experts 0 and 1 on device 0, 2 and 3 on device 1; the request's home is device 0.

    Returning: token 0 goes to device 1 in layer 0 alone, token 1 in both: 3 there, 3 back. Staying: token 0 starts at
    home, sends one copy to device 1 and gets one partial sum, stays; token 1 starts at device 0, where token 0 ended:
    one copy to device 1, none back, then from there one copy to device 0 and its sum back. 2 + 3 messages. Each over
    2 tokens x 2 layers.
    """
    placement = Placement.from_device_of([[0, 0, 1, 1]] * 2, n_devices=2)
    assert parts["setting"].copies(placement, two_tokens) == {"copies_home": 6 / 4, "copies_stay": 5 / 4}


def test_mixing_keeps_requests_and_domains_apart(parts: dict[str, Any], two_tokens: RoutingTrace) -> None:
    whole = parts["setting"].mixed([two_tokens, two_tokens])
    assert whole.tokens["request"].tolist() == [7, 7, 15, 15] and (whole.tokens["phase"] == DECODE).all()
    assert parts["setting"].mixed([two_tokens]) is two_tokens


def test_profiles_are_whole_requests_or_tokens_of_all(parts: dict[str, Any], own: Any) -> None:
    drawn, trace = parts["profile_size"].drawn, own.profile
    some = drawn(trace, "requests", 500, 0)
    sizes = trace.tokens.groupby("request").size()
    cut = (some.tokens.groupby("request").size() < sizes[some.requests]).sum()
    assert some.n_tokens == 500 and cut <= 1 and len(some.requests) < 12
    assert len(drawn(trace, "tokens", 500, 0).requests) > 100
    assert drawn(trace, "requests", 500, 1).requests.tolist() != some.requests.tolist()


def test_rows_of_traces_that_are_not_at_hand_stay(parts: dict[str, Any], tmp_path: Path) -> None:
    setting, file = parts["setting"], tmp_path / "stage.csv"
    pd.DataFrame({"trace": [setting.OWN, setting.GPT], "value": [1.0, 2.0]}).to_csv(file, index=False)
    found = setting.renewed(file, pd.DataFrame({"trace": [setting.OWN] * 2, "value": [3.0, 1 / 3]}))
    assert found["trace"].tolist() == [setting.OWN, setting.OWN, setting.GPT]
    assert found["value"].to_numpy() == pytest.approx([3.0, 1 / 3, 2.0], rel=1e-11)


def test_a_folder_without_the_public_traces_is_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no gptoss20b_decode_167seq.npz or .parquet; see the README"):
        parts["setting"].traces(tmp_path)


@pytest.mark.parametrize("arguments", [["pareto", "nodes=2"], ["paretto"]])
def test_arguments_that_mean_nothing_are_refused(parts: dict[str, Any], arguments: list[str],
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parts["study"].main(arguments)
    assert "give any of pareto, split, domains, profile, time, pages, all" in capsys.readouterr().err


def test_committed_rows_are_those_that_come_out(parts: dict[str, Any], tables: dict[str, pd.DataFrame],
                                                own: Any) -> None:
    """The solvers that take no time, to 1e-9."""
    pareto, setting, table = parts["pareto"], parts["setting"], tables["pareto"]
    for devices in (4, 16):
        for name in ("linear", "lpt", "eplb", "eplb +D"):
            placement = solve(own.sums, devices, pareto.points(devices)[name])
            row = setting.only(table, trace=setting.OWN, devices=devices, solver=name).iloc[0]
            for column, value in setting.measured(placement, own).items():
                assert row[column] == pytest.approx(value, rel=1e-9), (devices, name, column)


def test_balance_is_paid_with_crossings_on_the_profile(tables: dict[str, pd.DataFrame]) -> None:
    """Along each curve, as balance is worth more: load not higher, what is minimised not lower; 3 % for the search."""
    column = {"top1": "cross_top1", "all": "cross_all", "fanout": "fanout"}
    curves = tables["pareto"].dropna(subset="line").groupby(["trace", "devices", "line"])
    assert len(curves) == 36
    for (_, _, line), curve in curves:
        curve = curve.sort_values("balance")
        load, cost = curve["profile_load_max_over_mean"].to_numpy(), curve[f"profile_{column[line]}"].to_numpy()
        assert (np.diff(load) <= 0.03 * load[:-1]).all() and (np.diff(cost) >= -0.03 * cost[:-1]).all()


def test_a_curve_of_four_devices_comes_out_again(parts: dict[str, Any], tables: dict[str, pd.DataFrame],
                                                 own: Any) -> None:
    """Few disturbances: within 0.03 of the committed curve, and load falls as balance is worth more."""
    setting = parts["setting"]
    loads = []
    for balance in (0.0, 0.3, 3.0):
        placement = solve(own.sums, 4, parts["setting"].QUICK | {"balance": balance, "perturbations": 20})
        found = setting.measured(placement, own)
        row = setting.only(tables["pareto"], trace=setting.OWN, devices=4, line="top1", balance=balance).iloc[0]
        assert found["cross_top1"] == pytest.approx(row["cross_top1"], abs=0.03)
        loads.append(found["profile_load_max_over_mean"])
    assert loads[0] > loads[1] > loads[2]


def test_what_the_readme_says_of_balance_and_of_both_meanings(parts: dict[str, Any],
                                                              tables: dict[str, pd.DataFrame]) -> None:
    figures, table = parts["pareto_figures"], tables["pareto"]
    top1 = figures.kept(table, "cross_top1")
    assert len(top1) == 10 and top1["kept"].min() > 0.75 and (top1["load"] / top1["lpt_load"]).max() < 1.08
    worth = figures.worth(table).set_index("trace")
    assert worth.shape == (3, 7) and (worth["stay"] > 0).all()
    for name in ("GPT-OSS-20B", "DeepSeek-V2-Lite"):
        row = worth.loc[name]
        assert row["all_stay"] > row["top1_stay"] and row["fanout_home"] > row["top1_home"] > 0.05


def test_domains_travel_as_the_readme_says(parts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
    domains, table = parts["domains"], tables["domains"]
    found = domains.transfer(table).set_index(["trace", "solver", "column"])["mean"]
    for name in ("reference-moe", "GPT-OSS-20B", "DeepSeek-V2-Lite"):
        assert found[name, "affinity", "cross_top1"] > found[name, "lpt", "load_max_over_mean"] + 0.3
    share = domains.kept(table, "reference-moe", "affinity", "cross_top1")
    assert np.diag(share) == pytest.approx(np.ones(6)) and domains.others(share).size == 20


def test_load_needs_more_requests_than_transitions(parts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
    profile, table = parts["profile_size"], tables["profile"]
    for name in ("reference-moe", "GPT-OSS-20B"):
        crossing, load = (profile.share(table, name, "requests", s, c)[1000] for s, c, _ in profile.SHOWN)
        assert crossing > load + 0.1
        assert profile.share(table, name, "tokens", "lpt", "load_max_over_mean")[1000] > load + 0.2


def test_solver_times_state_their_gaps(parts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
    times, v3 = tables["time"], parts["solver_time"].V3
    large = times[(times["layers"] == v3.layers) & (times["devices"] == v3.devices)].set_index("solver")
    assert large.loc["joint", "tokens"] == 200_000 and 0 < large.loc["joint", "gap"] < 1
    assert large.loc["topology_flow", "gap"] < 1e-9 and large.loc["lpt", "cpu_s"] < 1


def test_a_tiny_size_is_timed_with_all_solvers(parts: dict[str, Any]) -> None:
    found = parts["solver_time"].of_size(parts["solver_time"].Size(2, 16, 4, 1)).set_index("solver")
    assert set(found.index) == {"sums", *parts["solver_time"].SOLVERS} and (found["cpu_s"] >= 0).all()
    assert np.isnan(found.loc["linear", "gap"]) and (found["gap"].dropna() >= 0).all()


def test_coherence_costs_more_than_affinity_gives_back(parts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
    split, table = parts["split"], tables["split"]
    for load in split.LOADS:
        for devices in (8, 16, 32):
            alone, affinity = (split.change(table, load, devices, step) for step in ("coherence alone", "and affinity"))
            assert alone < -0.05 and abs(affinity - alone) < 0.03


def test_a_point_of_the_split_comes_out_again(parts: dict[str, Any], tables: dict[str, pd.DataFrame],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    split, setting = parts["split"], parts["setting"]
    monkeypatch.setattr(split, "NODES", (1,))
    monkeypatch.setattr(split, "SOLVERS", {"linear": "linear"})
    monkeypatch.setattr(split, "LOADS", dict(list(split.LOADS.items())[1:]))
    for row in split.rows(setting.traces(None)).to_dict("records"):
        known = setting.only(tables["split"], load=row["load"], devices=8, mode=row["mode"], placement="linear").iloc[0]
        assert known["throughput_tok_per_s"] == pytest.approx(row["throughput_tok_per_s"], rel=1e-6)


def test_readme_says_what_the_tables_have(parts: dict[str, Any], tables: dict[str, pd.DataFrame],
                                          folder: Path) -> None:
    study, readme = parts["study"], (folder / "README.md").read_text(encoding="utf-8")
    text = readme
    for stage, part in study.pages(tables).items():
        text = study.renewed(text, part, stage)
    assert text == readme
    with pytest.raises(ValueError, match="markers are not there"):
        study.renewed("a page", "numbers", "pareto")


def test_parts_of_the_demos_report_go_between_the_markers(parts: dict[str, Any], folder: Path) -> None:
    report = "# Question\n\nThe setting.\n\n## Answer\n\nlpt.\n\nWhy.\n\n## Numbers\n\n| 1 |\n\n## Figures\n\nmore\n"
    parts_ = parts["study"].of_demo(report)
    assert parts_["machine"] == "* lpt." and parts_[""].startswith("The setting.\n\n![")
    assert parts_[""].endswith("### Answer\n\nlpt.\n\nWhy.\n\n### Numbers\n\n| 1 |")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    at_top, whole = (readme.split(f"study.py{name}: begin -->")[1] for name in (" machine", ""))
    assert at_top.strip().removeprefix("* ").split("\n\n")[0] in whole.split("### Numbers")[0]


@pytest.mark.external
def test_public_rows_are_those_that_come_out(parts: dict[str, Any], tables: dict[str, pd.DataFrame],
                                             shared_data: Path) -> None:
    """And near an independent measurement on the same traces, with another split: crossing, load."""
    setting, table = parts["setting"], tables["pareto"]
    expected = {(setting.GPT, 4): ((.761, 1.20), (.303, 1.69)), (setting.DEEPSEEK, 8): ((.863, 1.32), (.413, 1.67))}
    traces = setting.traces(shared_data / "routing")
    for (name, devices), (linear, affinity) in expected.items():
        halves = setting.half(traces[name])
        row = setting.only(table, trace=name, devices=devices, solver="linear").iloc[0]
        for column, value in setting.measured(solve(halves.sums, devices, "linear"), halves).items():
            assert row[column] == pytest.approx(value, rel=1e-9), (name, column)
        for solver, (cross, load) in (("linear", linear), ("affinity", affinity)):
            row = setting.only(table, trace=name, devices=devices, solver=solver).iloc[0]
            assert row["cross_top1"] == pytest.approx(cross, abs=0.03)
            assert row["load_max_over_mean"] == pytest.approx(load, abs=0.05)


def test_profile_of_half_is_of_that_half(own: Any) -> None:
    assert isinstance(own.sums, Profile) and own.sums.n_tokens == own.profile.n_tokens
    assert not set(own.profile.requests) & set(own.evaluation.requests)
