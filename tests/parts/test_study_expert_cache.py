"""Study 07: its README's numbers are those of its tables, and they show what they have to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moesim.page import BEGIN, END

MODULES = ("setting", "replays", "figures", "pages", "study")


@pytest.fixture(scope="module")
def folder(repo: Path) -> Path:
    return repo / "studies" / "07_expert_cache"


@pytest.fixture(scope="module")
def parts(folder: Path, study_modules: Any) -> Iterator[dict[str, Any]]:
    with study_modules(folder, MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def tables(parts: dict[str, Any], folder: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(folder / f"{name}.csv") for name in parts["study"].OF_TRACES}


def test_the_readme_has_the_numbers_of_the_tables(parts: dict[str, Any], tables: dict[str, pd.DataFrame],
                                                  folder: Path) -> None:
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert parts["pages"].numbers(tables) == page.partition(BEGIN)[2].partition(END)[0].strip()
    assert {f.stem for f in (folder / "figures").iterdir()} == {"misses", "bits", "rerouting"}


def test_belady_is_the_best_and_the_gap_closes(tables: dict[str, pd.DataFrame]) -> None:
    grid = tables["grid"]
    best = grid[grid["policy"] == "belady"].set_index(["trace", "batch", "capacity"])["misses"]
    for policy, rows in grid.groupby("policy"):
        ours = rows.set_index(["trace", "batch", "capacity"])["misses"]
        assert (ours >= best[ours.index]).all(), policy
    gap = grid.drop_duplicates(["trace", "batch", "capacity"]).pivot(index=["trace", "capacity"], columns="batch",
                                                                    values="gap")
    assert (gap[16] < gap[1]).all()


def test_the_contract_turns_the_ranking(tables: dict[str, pd.DataFrame]) -> None:
    wide = tables["contracts"].query("scope == 'layer'").pivot_table(index=["trace", "policy"], columns="contract",
                                                                     values="misses")
    for trace in ("reference-moe", "GPT-OSS-20B"):
        ratio = (wide["sequential"] / wide["event"])[trace]
        assert ratio["lru"] > 1.2 and ratio["static"] == 1 and ratio["belady"] < 1.1
        # sequential replay makes LRU the worst, behind a random victim; with whole events it is not
        assert wide.loc[(trace, "lru"), "sequential"] > 0.99 * wide.loc[(trace, "random"), "sequential"]
        assert wide.loc[(trace, "lru"), "event"] <= wide.loc[(trace, "random"), "event"]


def test_bits(tables: dict[str, pd.DataFrame]) -> None:
    for _, rows in tables["bits"].groupby("trace"):
        exact = rows[rows["error"] == 0].groupby("policy")["ratio"].first()
        assert exact["mark0"] <= 1 and 1 < exact["mark_predict"] < 2 and exact["mark_predict"] < exact["lru"]
        for (_, wrong), curve in rows[rows["policy"].str.startswith("mark")].groupby(["policy", "wrong"]):
            assert curve["ratio"].is_monotonic_increasing, wrong


def test_rerouting_gains_what_was_published(tables: dict[str, pd.DataFrame]) -> None:
    """arXiv 2412.00099: more than half of the misses go; a reimplementation: +15 points with 17.8 % swapped, from 74 %.
    """
    table = tables["rerouting"].query("batch == 1 and capacity == '50%'").set_index(["keep", "window"])
    plain, most = table.iloc[0], table.loc[(1, 8)]
    assert 0.70 < plain["hit_ratio"] < 0.74 and plain["swapped_share"] == 0
    assert most["misses"] < 0.5 * plain["misses"] and 0.13 < most["hit_ratio"] - plain["hit_ratio"] < 0.18
    assert 0.15 < most["swapped_share"] < 0.20 and most["over_belady"] < 1 < table.loc[(1, 4), "over_belady"]


def test_what_a_missing_public_trace_says(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no gptoss20b_decode_167seq.npz"):
        parts["setting"].traces(tmp_path)
