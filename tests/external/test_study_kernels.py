"""Study 04: its pieces by hand, the bars that its committed errors have to keep, and its README's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.kernels.measurements import checked
from moesim.kernels.models.tile import Tile
from moesim.page import renewed

MODULES = ("setting", "models", "beyond", "learning", "speed", "lookup", "pages", "figures", "study")
# Median, mean, 90th percentile of the absolute error in percent that shapes never fitted may have.
BARS = {("gemm", "tile"): (6.5, 10, 21), ("gemm", "residual"): (2.5, 4, 9),
        ("moe", "tile"): (7, 11.5, 28), ("moe", "residual"): (2, 4, 9),
        ("attention_prefill", "tile"): (11, 19, 36), ("attention_prefill", "residual"): (2.5, 4, 9),
        ("attention_decode", "tile"): (7, 11, 28), ("attention_decode", "residual"): (1.5, 2.5, 5)}


@pytest.fixture(scope="module")
def folder(repo: Path) -> Path:
    return repo / "studies" / "04_kernel_accuracy"


@pytest.fixture(scope="module")
def parts(folder: Path, study_modules: Any) -> Iterator[dict[str, Any]]:
    with study_modules(folder, MODULES) as found:
        yield found


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(folder / f"{name}.csv") for name in ("models", "beyond", "learning", "speed")}


def below(row: pd.Series, bars: tuple[float, float, float]) -> bool:
    return all(row[name] <= bar for name, bar in zip(("median", "mean", "p90"), bars, strict=True))


@pytest.mark.parametrize(("op", "model"), BARS)
def test_errors_of_held_out_shapes(parts: dict[str, Any], tables: dict[str, pd.DataFrame], op: str, model: str) -> None:
    row = parts["pages"].one(tables["models"], op=op, model=model, part="all")
    assert below(row, BARS[op, model])
    assert row["rows"] > 2000 and row["inside"] > 0.99


def test_better_models_are_better_and_the_roofline_is_unusable(tables: dict[str, pd.DataFrame]) -> None:
    median = tables["models"].query("part == 'all'").pivot(index="op", columns="model", values="median")
    assert (median["roofline"] > 40).all() and (median["tile"] < median["roofline"] / 5).all()
    assert (median["residual"] < median[["tile", "table"]].min(axis=1) / 1.8).all()


def test_residual_is_as_close_as_two_collections(parts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
    for op in parts["setting"].OPERATORS:
        row = parts["pages"].one(tables["models"], op=op, model="residual", part="all")
        assert row["median"] < parts["setting"].noise(op)[1]


def test_residual_is_never_worse_than_tile_on_shapes_of_the_whole_domain(tables: dict[str, pd.DataFrame]) -> None:
    keys = ["what", "op", "points", "seed"]
    median = tables["learning"].query("tested == 'all'").pivot(index=keys, columns="model", values="median")
    assert len(median) > 100 and (median["residual"] <= median["tile"]).all()


def test_what_is_far_from_every_point_is_called_so(tables: dict[str, pd.DataFrame]) -> None:
    larger = tables["beyond"].query("case == 'larger shapes' and anchors == 0")
    assert (larger["inside"] < 0.3).all()


def test_a_newer_engine_is_as_far_from_an_older_one_as_what_it_taught(tables: dict[str, pd.DataFrame]) -> None:
    median = tables["beyond"].query("case == 'another version'").pivot(index="op", columns="model", values="median")
    assert len(median) == 2 and (median["residual"] / median["measured_again"]).between(0.9, 1.1).all()


@pytest.mark.parametrize("start", ["shipped", "stranger"])
def test_a_model_left_out_entirely(parts: dict[str, Any], tables: dict[str, pd.DataFrame], start: str) -> None:
    """The constants that ship have seen rows of these models: a stranger's start is the honest one, and a bit worse."""
    six = tables["beyond"].query("case == 'model left out' and model == 'residual' and start == @start")
    row = parts["pages"].mean_of(six, part="all six")
    assert below(row, (4.5, 8.5, 20))
    assert six["part"].nunique() == 7
    assert six.query("part != 'all six' and seed == 0")["rows"].sum() == row["rows"]


@pytest.mark.parametrize("devices", ["one device", "any"])
def test_skew_from_balanced_measurements(parts: dict[str, Any], tables: dict[str, pd.DataFrame], devices: str) -> None:
    true, blind = (parts["pages"].one(tables["beyond"], case=f"skewed routing, {case}", part=devices, model="residual")
                   for case in ("true loads", "assumed balanced"))
    assert below(true, (6.5, 11.5, 27))
    assert true["median"] <= 0.6 * blind["median"] and true["mean"] <= 0.6 * blind["mean"]


@pytest.mark.parametrize("fitted", ["all small", "300 small"])
def test_larger_experts_with_anchors(parts: dict[str, Any], tables: dict[str, pd.DataFrame], fitted: str) -> None:
    row = parts["pages"].one(tables["beyond"], case="larger shapes", op="moe", part=fitted, model="residual",
                             start="stranger", anchors=100)
    assert below(row, (6, 9, 18))


def test_anchors_help_every_operator(tables: dict[str, pd.DataFrame]) -> None:
    some = tables["learning"].query("what == 'anchors' and model == 'residual'")
    median = some.groupby(["op", "points"])["median"].mean().unstack()
    assert (median[100] < 0.75 * median[0]).all() and (median[300] <= median[30]).all()


def test_constants_that_ship_know_the_answer(parts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
    stranger, shipped = (parts["pages"].one(tables["beyond"], case="larger shapes", op="moe", part="300 small",
                                            model="tile", start=start, anchors=0)["median"]
                         for start in ("stranger", "shipped"))
    assert shipped < 0.7 * stranger


def test_residual_goes_on_learning_where_tile_does_not(parts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> None:
    mean_at = parts["pages"].mean_at
    tile, residual = ((mean_at(tables["learning"], model, 250) / mean_at(tables["learning"], model, 0))
                      for model in ("tile", "residual"))
    assert (residual > 1.7).all() and (tile < 1.25).all()


def test_speed(tables: dict[str, pd.DataFrame]) -> None:
    assert len(tables["speed"]) == 16
    assert tables["speed"]["fit_s"].max() <= 60 and tables["speed"]["predict_s"].max() <= 0.5


def test_readme_says_what_the_tables_have(parts: dict[str, Any], tables: dict[str, pd.DataFrame], folder: Path) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert renewed(readme, parts["pages"].numbers(tables)) == readme


def test_corners_come_first(parts: dict[str, Any]) -> None:
    sizes = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [0.0, 2.0], [2.0, 0.0], [1.0, 0.0]])
    chosen = parts["learning"].corners(sizes, 4, np.random.default_rng(0))
    assert sorted(chosen.tolist()) == [0, 2, 3, 4]


def test_a_stranger_knows_other_constants_and_no_other_rules(parts: dict[str, Any]) -> None:
    mine, ships = parts["setting"].stranger("attention_prefill", 3), Tile()
    assert mine.decode == ships.decode and mine.prefill.split_below == ships.prefill.split_below
    apart = [abs(np.log(getattr(mine.prefill, n) / getattr(ships.prefill, n)))
             for n in ("launch", "softmax", "prologue", "wave", "write")]
    assert min(apart) > 0.01 and max(apart) > 0.5
    assert mine.prefill.compute <= 1 and mine.prefill.stream <= 0.9
    assert parts["setting"].stranger("attention_prefill", 3) == mine != parts["setting"].stranger("moe", 4)


def test_errors_of_left_out_models_are_pooled_by_rows(parts: dict[str, Any]) -> None:
    one = {"op": "moe", "case": "model left out", "start": "stranger", "seed": 0, "fitted": 5, "anchors": 0,
           "inside": True}
    rows = pd.DataFrame([one | {"part": part, "measured": 1.0, **dict.fromkeys(parts["setting"].MODELS, predicted)}
                         for part, predicted in (("a", 1.1), ("a", 1.2), ("b", 0.5))])
    found = parts["beyond"].summary(rows).query("model == 'tile'").set_index("part")
    assert found["median"].to_dict() == pytest.approx({"a": 15, "b": 50, "all six": 20})
    assert found["rows"].to_dict() == {"a": 2, "b": 1, "all six": 3}


def test_small_and_extreme_shapes(parts: dict[str, Any]) -> None:
    rows = pd.DataFrame({"op": "gemm", "dtype": "bf16", "time_s": 1e-3, "m": [1024.0, 1025.0, 8.0, 16384.0],
                         "n": [8192.0, 64.0, 16384.0, 64.0], "k": 64.0})
    points = checked(rows).of("gemm")
    assert parts["setting"].is_small(points).tolist() == [True, False, False, False]
    assert parts["setting"].is_extreme(points).tolist() == [False, False, False, True]


def test_what_is_missing_is_named(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no gemm_perf.parquet of vLLM 0.24.0"):
        parts["setting"].points(str(tmp_path), "gemm")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pd.DataFrame({"version": ["0.24.0"]}).to_parquet(tmp_path / name / "gemm_perf.parquet")
    with pytest.raises(SystemExit, match="has several tables of gemm"):
        parts["setting"].points(str(tmp_path), "gemm")
    with pytest.raises(SystemExit, match="give the folder of the tables"):
        parts["study"].main(["models"])
    with pytest.raises(SystemExit, match="give the folder of the tables"):
        parts["study"].main(["no-such-folder"])


@pytest.mark.external
def test_a_row_again(parts: dict[str, Any], tables: dict[str, pd.DataFrame], shared_data: Path) -> None:
    pytest.importorskip("sklearn")
    again = parts["learning"].table(str(shared_data / "kernels"), "random", "attention_decode", "60", "0")
    for row in again.to_dict("records"):
        where = {c: row[c] for c in ("what", "op", "points", "seed", "tested", "model")}
        known = parts["pages"].one(tables["learning"], **where)
        assert row["rows"] == known["rows"] and row["median"] == pytest.approx(known["median"], rel=0.1)
