"""What the SN40L paper (MICRO 2024, arXiv 2405.07518) prints, against study 07; no input is compared with itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def study(repo: Path, study_modules: Any) -> Iterator[dict[str, Any]]:
    names = ["setting", "switching", "fusion", "placing", "drawing", "pages", "study"]
    with study_modules(repo / "studies" / "07_sn40l", names) as found:
        yield found


def test_switching_by_arithmetic(study: dict[str, Any]) -> None:
    """Bytes of the model over published bandwidths: 31 and 15 times (16 in the text); both accountings."""
    ratio = study["switching"].switches().set_index(["machine", "accounting"])["ratio"]
    assert ratio["DGX A100", "paper"] == pytest.approx(31, rel=0.05)
    assert all(ratio["DGX H100", "paper"] == pytest.approx(published, rel=0.05) for published in (15, 16))
    assert 3.9 <= ratio["DGX A100", "all links"] < ratio["DGX A100", "all links, measured"] <= 5.1
    assert 1.9 <= ratio["DGX H100", "all links"] < ratio["DGX H100", "all links, measured"] <= 2.3


def test_table_v_from_two_stated_inputs(study: dict[str, Any]) -> None:
    table = study["switching"].table_v()
    stated, seen = (table[table["router"] == name] for name in ("stated", "one cell"))
    assert len(stated) == 6 and (stated["error"].abs() < 0.05).all()
    assert seen["input"].sum() == 1 and (seen[~seen["input"]]["error"].abs() < 0.05).all()


def test_table_v_by_its_formula(study: dict[str, Any]) -> None:
    """router + prompts * (copy + expert): what the runtime simulates, when every prompt misses."""
    setting, switching = study["setting"], study["switching"]
    size = setting.model().total_bytes
    for prompts, tokens, name in setting.TABLE_V:
        times = [setting.router_s(m) + prompts * (size / rate + setting.expert_s(m, tokens))
                 for m, rate in (("SN40L", 1e12), (name, {"DGX A100": 32e9, "DGX H100": 64e9}[name]))]
        found = switching.speedup(name, "paper", prompts, tokens, setting.STATED)
        assert found == pytest.approx(times[1] / times[0], rel=1e-9)


def test_capacities(study: dict[str, Any]) -> None:
    """Latency jumps at about 50 experts, the host memory is full at 150; SN40L holds fewer near and far more in all."""
    setting = study["setting"]
    holds = {m: setting.accountings(m)["paper"].holds(setting.model().total_bytes) for m in setting.MACHINES}
    for name in setting.GPUS:
        assert 45 <= holds[name][0] <= 50 and 145 <= holds[name][1] <= 155
    assert holds["SN40L"][0] < 45 and holds["SN40L"][1] > 850


def test_footprint(study: dict[str, Any]) -> None:
    """Up to 19 times fewer machines: with 80 to 90 % of the DDR, every expert in a DGX's HBM."""
    table = study["switching"].footprint().set_index("share")
    assert table.loc[0.8, "dgx_hbm"] < 19 <= table.loc[0.9, "dgx_hbm"] <= 20 and table.loc[0.9, "dgx_host"] < 7


def test_launch_costs(study: dict[str, Any]) -> None:
    """Fig. 10: 15 to 20 us satisfy three of four ranges; one cost cannot reach both 8 (by hardware) and 13 (fused)."""
    within = study["fusion"].within().set_index(["phase", "ratio"])
    low = max(within.loc[key, "least_s"] for key in (("decode", "orchestration"), ("prefill", "orchestration")))
    high = min(within.loc[key, "most_s"] for key in (("decode", "fusion"), ("prefill", "orchestration")))
    assert 10e-6 < low < high < 40e-6
    assert within.loc[("decode", "orchestration"), "most_s"] > 10 * within.loc[("decode", "fusion"), "most_s"]


def test_calls(study: dict[str, Any]) -> None:
    """20 and more operators a layer; 11 times fewer calls of prefill."""
    found = study["fusion"].kernels().iloc[0]
    assert found["operators"] >= 20 and found["operators"] / round(found["fused"]) == pytest.approx(11, rel=0.2)


def test_weights_stay_and_results_go(repo: Path) -> None:
    """Section V: sorted by bytes moved, results of operators spill; weights stay as long as anything else can go."""
    table = pd.read_csv(repo / "studies" / "07_sn40l" / "spilled.csv")
    gone = table[table["weights"] > 0]
    assert (table["results"] > 0).sum() > len(gone) >= 1 and (gone["cache"] == gone["cache"].max()).all()
    assert table["moved_down"].is_monotonic_increasing and table["moved_down"].iloc[0] == 0


def test_the_page_has_these_numbers(study: dict[str, Any], repo: Path) -> None:
    """The README is what the CSV files say, and these are what the study computes (of the quick tables)."""
    folder = repo / "studies" / "07_sn40l"
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in study["study"].TABLES}
    assert study["pages"].text(tables) in (folder / "README.md").read_text(encoding="utf-8")
    for name in ("switches", "footprint", "kernels", "decoding"):
        pd.testing.assert_frame_equal(tables[name], study["study"].TABLES[name](), check_dtype=False, rtol=1e-5)


def test_figures_are_drawn(study: dict[str, Any], repo: Path) -> None:
    tables = {name: pd.read_csv(repo / "studies" / "07_sn40l" / f"{name}.csv") for name in study["study"].TABLES}
    drawing = study["drawing"]
    assert drawing.capacity(tables["capacity"]).axes and drawing.speedup(tables["table_v"]).axes
    assert len(drawing.launches(tables["launches"], study["fusion"].PUBLISHED).axes) == 2
