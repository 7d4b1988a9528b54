"""Duplex (MICRO 2024, arXiv 2409.01141): the published numbers that study 06 finds, and its README's tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

MODULES = ("setting", "reproduce", "served", "split", "hetero", "beyond", "sizes", "figures", "pages", "study")


@pytest.fixture(scope="module")
def folder(repo: Path) -> Path:
    return repo / "studies" / "06_duplex"


@pytest.fixture(scope="module")
def parts(folder: Path, study_modules: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with study_modules(folder, MODULES) as found:
        found["setting"].OUT = tmp_path_factory.mktemp("duplex")  # where uniform routing is written
        yield found


@pytest.fixture(scope="module")
def stages(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "stages.csv")


def test_every_published_number_is_met_at_the_settings_fixed_in_advance(
        parts: dict[str, Any], stages: pd.DataFrame) -> None:
    table = parts["reproduce"].compared(stages)
    assert len(table) == 22 and table["held"].all(), table[~table["held"]]
    must = {"Duplex+PE+ET over GPU, maximum": 0.12, "Duplex+PE+ET over GPU, mean": 0.12,
            "Duplex over GPU, maximum": 0.15, "Duplex+PE over Duplex, mean": 0.04,
            "Duplex+PE+ET over Duplex, maximum": 0.10,
            "E2E of GLaM, GPU over Duplex+PE+ET": 0.12, "E2E of GLaM, 2xGPU over Duplex+PE+ET": 0.12,
            "Bank-PIM over GPU, Mixtral, batch 64, (256, 256)": 0.12, "Duplex+PE+ET over GPU, same point": 0.12,
            **{f"energy below GPU, {model}, best, %": 5 for model in ("Mixtral", "GLaM", "Grok1")}}
    held = table.set_index("what").loc[list(must)]
    assert (held["error"].abs() <= pd.Series(must)).all()
    assert parts["setting"].EFFICIENCY == 0.75 and parts["setting"].LATENCY_S == 3e-6


def test_every_claim_of_order_holds(parts: dict[str, Any], stages: pd.DataFrame, folder: Path) -> None:
    claims = (parts["reproduce"].orders(stages) | parts["pages"]._served(pd.read_csv(folder / "served.csv"))
              | parts["pages"]._split(pd.read_csv(folder / "split.csv"))
              | parts["hetero"].orders(pd.read_csv(folder / "hetero.csv"), stages))
    assert len(claims) == 15 and all(held for _, held in claims.values()), claims


def test_what_follows_from_sizes(parts: dict[str, Any]) -> None:
    for found in parts["sizes"].identities():
        assert abs(found.ours - found.published) <= found.tolerance, found
    table = parts["sizes"].edap()
    better = {op: table.loc["Bank-PIM", op] < table.loc["Logic-PIM", op] for op in parts["sizes"].OPS}
    assert better[4] and not better[8]  # the turn lies between 4 and 8 operations per byte


@pytest.mark.parametrize(("system", "published"), [("Duplex+PE+ET", 2.05), ("Bank-PIM", 1.18)])
def test_mixtral_with_batch_64_runs_as_published(
        parts: dict[str, Any], stages: pd.DataFrame, system: str, published: float) -> None:
    """The point of figure 14, run again: within 12 %, and what the table says."""
    setting = parts["setting"]
    layers, experts, top_k = setting.SIZES["Mixtral"]
    if not setting.trace_path("Mixtral").exists():
        setting.uniform(layers, experts, top_k).write(setting.trace_path("Mixtral"))
    found = {s: setting.stages("Mixtral", setting.SYSTEMS[s], 64, 256, 256) for s in ("GPU", system)}
    assert found["GPU"].mean_s / found[system].mean_s == pytest.approx(published, rel=0.12)
    point = stages[(stages["model"] == "Mixtral") & (stages["batch"] == 64) & (stages["prompt"] == 256)
                   & (stages["output"] == 256)].set_index("system")
    for name, run in found.items():
        assert point.loc[name, "decode_s"] == pytest.approx(run.decode_s, rel=1e-4)
        assert point.loc[name, "mixed_j"] == pytest.approx(run.mixed_j, rel=1e-4)


def test_a_hop_more_or_less_is_what_the_calibration_takes_it_for(parts: dict[str, Any]) -> None:
    """Stages grow by their hops x the latency: the run at 4 us is the run at 3 us and its 32 x 2 x 6 hops."""
    setting, reproduce = parts["setting"], parts["reproduce"]
    if not setting.trace_path("Mixtral").exists():
        setting.uniform(*setting.SIZES["Mixtral"]).write(setting.trace_path("Mixtral"))
    row = reproduce.row("Mixtral", "Duplex", 32, 256, 256)
    assert row["hops"] == 32 * 2 * 2 * 3
    longer = reproduce.with_latency(pd.DataFrame([row]), 4e-6).iloc[0]
    run = setting.stages("Mixtral", setting.SYSTEMS["Duplex"], 32, 256, 256, hardware__scale_up__message="4 us")
    assert longer["decode_s"] == pytest.approx(run.decode_s, rel=1e-9)


def test_the_page_says_what_the_tables_say(parts: dict[str, Any], folder: Path) -> None:
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in parts["study"].TABLES}
    assert parts["pages"].numbers(tables) in (folder / "README.md").read_text(encoding="utf-8")
