"""Study 07, offload: its README and files are those of its tables, and its comparison tells what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.page import BEGIN, END

MODULES = ("setting", "replays", "links", "against", "figures", "pages", "study")


@pytest.fixture(scope="module")
def folder(repo: Path) -> Path:
    return repo / "studies" / "07_offload"


@pytest.fixture(scope="module")
def parts(folder: Path, study_modules: Any) -> Iterator[dict[str, Any]]:
    with study_modules(folder, MODULES) as found:
        yield found


def test_the_readme_has_the_numbers_of_the_tables(parts: dict[str, Any], folder: Path) -> None:
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in (*parts["study"].TABLES, "published")}
    page = (folder / "README.md").read_text(encoding="utf-8")
    # Numbers that the CSV has as text: 33.0 stays 33.0
    tables["published"] = pd.read_csv(folder / "published.csv", dtype={
        c: str for c in ("published", "here", "error", "tolerance")}, keep_default_na=False)
    assert parts["pages"].text(tables) == page.partition(BEGIN)[2].partition(END)[0].strip()
    assert {f.stem for f in (folder / "figures").iterdir()} == {"readme", "expertflow", "bits", "residency", "links"}


def test_figures_are_drawn_from_the_tables(parts: dict[str, Any], folder: Path) -> None:
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in parts["study"].TABLES}
    lines = {name: [len(ax.lines) for ax in figure.axes] for name, figure in parts["figures"].drawn(tables).items()}
    # LRU, four kinds of Belady, two published; PLEC, LRU, two published; two rules and their bounds, LRU, LFRU; ...
    assert lines == {"readme": [7], "expertflow": [4] * 3, "bits": [6] * 3, "residency": [3, 3], "links": [10]}


def test_rows_say_whether_they_are_kept(parts: dict[str, Any]) -> None:
    against = parts["against"]
    assert against.near("a", 10, 12, 2)["held"] and not against.near("a", 10, 12.5, 2)["held"]
    assert against.share("a", 10, 11, 0.1)["error"] == "+10.0%" and not against.share("a", 10, 8, 0.1)["held"]
    assert against.between("a", 5, 4, 6)["held"] and not against.between("a", 7, 4, 6)["held"]


@given(missing=st.floats(0, 1), more=st.floats(0, 1), each=st.floats(1e-4, 1), rest=st.floats(0, 1))
def test_more_misses_never_make_a_token_faster(parts: dict[str, Any], missing: float, more: float, each: float,
                                               rest: float) -> None:
    cost = parts["links"].Offloaded(64, missing, each, rest)
    assert cost.with_missing(max(missing, more)).token_s >= cost.token_s >= rest


def test_a_copy_takes_its_bytes_over_the_rate(parts: dict[str, Any]) -> None:
    assert parts["links"].copy_s(3e9, 1.5e9) == pytest.approx(2.0)
