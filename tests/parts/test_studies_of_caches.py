"""Studies 07 of single papers: their pages and files are those of their tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.page import BEGIN, END
from moesim.published import between, near, share, summary

MODULES = ("replays", "against", "figures", "pages", "study")
# Of each its own modules, and the lines of each panel of its figures: LRU, four kinds of Belady, two published; PLEC,
# LRU, two published; zero, a batch, three numbers of experts; two rules and their bounds, LRU, LFRU; ...
STUDIES = {"07_readme": ((), {"hits": [7]}),
           "07_expertflow": (("regrouping",), {"hits": [4] * 3, "scheduler": [5] * 8}),
           "07_succinct_bits": ((), {"bits": [6] * 3}),
           "07_offload": (("setting", "links", "engine", "held", "miss_figure", "miss_page"),
                          {"misses": [7] * 9, "residency": [3, 3], "links": [10]})}


@pytest.fixture(scope="module", params=STUDIES)
def folder(repo: Path, request: pytest.FixtureRequest) -> Path:
    return repo / "studies" / request.param


@pytest.fixture(scope="module")
def parts(folder: Path, study_modules: Any) -> Iterator[dict[str, Any]]:
    with study_modules(folder, (*STUDIES[folder.name][0], *MODULES)) as found:
        yield found


def test_the_page_has_the_numbers_of_the_tables(parts: dict[str, Any], folder: Path) -> None:
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in parts["study"].TABLES}
    # Numbers that the CSV has as text: 33.0 stays 33.0
    tables["published"] = pd.read_csv(folder / "published.csv", dtype={
        c: str for c in ("published", "here", "error", "tolerance")}, keep_default_na=False)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert parts["pages"].text(tables) == page.partition(BEGIN)[2].partition(END)[0].strip()
    assert {f.stem for f in folder.glob("*.csv")} == set(tables)
    assert {f.stem for f in (folder / "figures").iterdir()} == set(STUDIES[folder.name][1])


def test_figures_are_drawn_from_the_tables(parts: dict[str, Any], folder: Path) -> None:
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in parts["study"].TABLES}
    lines = {name: [len(ax.lines) for ax in figure.axes] for name, figure in parts["figures"].drawn(tables).items()}
    assert lines == STUDIES[folder.name][1]


def test_rows_say_whether_they_are_kept() -> None:
    assert near("a", 10, 12, 2)["held"] and not near("a", 10, 12.5, 2)["held"]
    assert near("a", 10, 12, 10)["tolerance"] == "10" and near("a", 1, 1, 0.001)["tolerance"] == "0.001"
    assert share("a", 10, 11, 0.1)["error"] == "+10.0%" and not share("a", 10, 8, 0.1)["held"]
    assert between("a", 5, 4, 6)["held"] and not between("a", 7, 4, 6)["held"]
    assert summary([near("a", 1, 1, 0.5)]) == "**1 of 1 rows are met within their tolerance.**"


@pytest.fixture(scope="module")
def links(repo: Path, study_modules: Any) -> Iterator[Any]:
    with study_modules(repo / "studies" / "07_offload", ("setting", "links")) as found:
        yield found["links"]


@given(missing=st.floats(0, 1), more=st.floats(0, 1), each=st.floats(1e-4, 1), rest=st.floats(0, 1))
def test_more_misses_never_make_a_token_faster(links: Any, missing: float, more: float, each: float,
                                               rest: float) -> None:
    cost = links.Offloaded(64, missing, each, rest)
    assert cost.with_missing(max(missing, more)).token_s >= cost.token_s >= rest


def test_a_copy_takes_its_bytes_over_the_rate(links: Any) -> None:
    assert links.copy_s(3e9, 1.5e9) == pytest.approx(2.0)
