"""Measuring and fitting, worked on paper: a split, an error, a noise floor, a tree, cells, a fading correction."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.kernels import fitting, ops
from moesim.kernels.accuracy import accuracy
from moesim.kernels.domain import Cells
from moesim.kernels.features import axes
from moesim.kernels.forest import from_table
from moesim.kernels.formats import _draws
from moesim.kernels.measurements import Measurements, checked
from moesim.kernels.models.residual import Residual
from moesim.kernels.models.table import Table
from moesim.kernels.models.tile import Tile
from moesim.kernels.rates import Rates, Setting
from moesim.kernels.stored import Stored
from moesim.kernels.tiles.matrix import StreamTiles

RATES = Rates(flop_per_s=1e12, bandwidth=100e9, multiprocessors=4, weight_bytes=2, value_bytes=2)
# 100 GB/s, all of it reached, no launch: 1 MB takes 10 us.
TILE = Tile(elementwise=StreamTiles(launch="0 s", stream=1.0), measured={"elementwise": {"bytes": [1e6, 8e6]}})


def elementwise(sizes: list[float], seconds: list[float], **columns: Any) -> Measurements:
    return checked(pd.DataFrame({"op": "elementwise", "dtype": "bf16", "bytes": sizes, "time_s": seconds, **columns}))


def test_accuracy() -> None:
    # 10 % too high, right, 40 % too low, 20 % too high: sizes 0, 10, 20, 40; signed -40, 0, 10, 20.
    found = accuracy(np.array([1.1, 2.0, 0.6, 3.6]), np.array([1.0, 2.0, 1.0, 3.0]))
    assert (found.median, found.mean, found.bias, found.rows) == (15.0, 17.5, 5.0, 4)
    assert found.p90 == 34.0  # 7/10 of the way from the third to the fourth


def test_one_tree() -> None:
    # feature 0 <= 1.5: +1; else feature 1 <= 0: +10, else +100. Starts from 0.5.
    nodes = pd.DataFrame([(-1, 0, -1, 0, 0.5), (0, 0, 0, 1.5, 0), (0, 1, -1, 0, 1), (0, 2, 1, 0.0, 0),
                          (0, 5, -1, 0, 10), (0, 6, -1, 0, 100)],
                         columns=["tree", "node", "feature", "threshold", "value"])
    features = np.array([[1.5, 1.6, 1.6, 0.0], [9.0, 0.0, 0.1, -1.0]], dtype=np.float32)
    assert from_table(nodes).predict(features).tolist() == [1.5, 10.5, 100.5, 1.5]


def test_cells() -> None:
    cells = Cells.of(np.log2([[1.0, 1024.0], [2.0, 1024.0], [2.2, 1000.0]]))
    assert cells.cells.tolist() == [[0, 10], [1, 10]]
    assert cells.distance(np.log2([[1.0, 1024], [4, 1024], [4, 4096], [1.3, 1400]])).tolist() == [
        0, 1, pytest.approx(5**0.5), 0]


def corrected(by: float, **options: Any) -> Residual:
    """A residual whose only tree says *by* everywhere, measured at 1 MB (2**20 bytes) alone."""
    nodes = pd.DataFrame([(-1, 0, -1, 0, 0.0, None), (0, 0, -1, 0, by, None), (-2, 0, 0, 0, 0, [20])],
                         columns=["tree", "node", "feature", "threshold", "value", "cell"]).assign(op="elementwise")
    return Residual(tile=TILE, data=Stored(table=nodes), bound=0.5, near=1.0, fade=2.0, **options)


def test_a_correction_is_bounded_and_fades() -> None:
    size = 2.0 ** np.array([20, 21, 22, 23, 24])  # 0, 1, 2, 3, 4 octaves away; beyond 1 it fades over 2
    model, shapes = corrected(np.log(1.2)), {"bytes": size}
    times = model.time_s(RATES, "elementwise", shapes) / (size / 100e9)
    assert times == pytest.approx([1.2, 1.2, 1.2**0.5, 1, 1])
    assert corrected(9.0).time_s(RATES, "elementwise", shapes)[0] == pytest.approx(np.exp(0.5) * size[0] / 100e9)
    assert corrected(-9.0).time_s(RATES, "elementwise", shapes)[0] == pytest.approx(np.exp(-0.5) * size[0] / 100e9)


def test_inside_needs_the_range_and_a_point_nearby() -> None:
    # Range 1e6 to 8e6; measured cell 2**20 = 1.05e6, so up to the cell of 2**21 is near: below 2**21.5 = 2.97e6.
    asked = {"bytes": np.array([0.9e6, 1e6, 2.9e6, 3.1e6, 8e6, 9e6])}
    assert corrected(0.1).inside("elementwise", asked).tolist() == [False, True, True, False, False, False]
    assert TILE.inside("elementwise", asked).tolist() == [False, True, True, True, True, False]


def test_table_is_right_at_measured_points_and_in_between() -> None:
    # Roofline 10 and 40 us; measured 2 and 8 times as long. Halfway in octaves: the geometric mean, 4 times.
    points = elementwise([1e6, 4e6], [20e-6, 320e-6]).of("elementwise")
    table = Table().fitted({"elementwise": points}, Setting(RATES, "toy", "bf16"), 0)
    assert table.time_s(RATES, "elementwise", {"bytes": np.array([1e6, 4e6, 2e6])}) == pytest.approx(
        [20e-6, 320e-6, 80e-6])
    assert table.fitted_on == "toy" and table.domain("elementwise") == {"bytes": (1e6, 4e6)}


def test_tile_constants_come_back() -> None:
    size = 2.0 ** np.arange(10, 31)
    points = elementwise(list(size), list(3e-6 + size / 80e9)).of("elementwise")
    fitted = Tile().fitted({"elementwise": points}, Setting(RATES, "toy", "bf16"), 0)
    assert fitted.elementwise.launch == pytest.approx(3e-6, rel=2e-3)
    assert fitted.elementwise.stream == pytest.approx(0.8, rel=2e-3)
    assert fitted.measured == {"elementwise": {"bytes": (1024, 2.0**30)}} and fitted.fitted_on == "toy"


def test_noise_is_what_repeats_differ_by() -> None:
    once = elementwise([1e6, 1e6, 1e6, 2e6], [1.0, 1.1, 0.8, 5.0], sentinel=True)
    floor = fitting.noise(once)["elementwise"]  # against the first: 10 % and 20 %; 2 MB was measured once
    assert (floor.median, floor.mean) == (15.0, 15.0) and floor.source == "2 repeats"
    first, second = elementwise([1e6, 2e6], [1.0, 2.0]), elementwise([2e6, 1e6, 9e6], [2.2, 1.0, 3.0])
    assert fitting.noise(first, second)["elementwise"].mean == 5.0  # 0 and 10 %


def test_split_goes_by_shape() -> None:
    points = elementwise([float(s) for s in range(1, 4001)] * 2, [1.0] * 8000, impl=["a"] * 4000 + ["b"] * 4000)
    parts = fitting.split(points.of("elementwise"))
    assert (parts[:4000] == parts[4000:]).all()  # another kernel at the same shape is not news
    shares = pd.Series(parts).value_counts(normalize=True)
    assert shares["fit"] == pytest.approx(0.65, abs=0.03) and shares["reserve"] == pytest.approx(0.15, abs=0.02)
    said = dataclasses.replace(points, table=points.table.assign(split=["test", "", "fit", "reserve"] * 2000))
    assert fitting.split(said.of("elementwise"))[[0, 2, 3]].tolist() == ["test", "fit", "reserve"]


def test_who_has_which_tokens_does_not_change_the_part() -> None:
    table = pd.DataFrame({"op": "moe", "dtype": "bf16", "time_s": 1.0, "hidden": 64.0, "inter": 32.0,
                          "impl": list("ab"), "tokens_per_expert": [[4, 0, 2], [0, 2, 4]]})
    parts = fitting.split(checked(table).of("moe"))
    assert parts[0] == parts[1]


def test_axes_of_experts() -> None:
    shapes = ops.shapes("moe", {"tokens_per_expert": [[8, 0, 0, 8]], "hidden": 64, "inter": 32, "rows": 64}, RATES)
    assert {name: float(np.ravel(value)[0]) for name, value in axes("moe", shapes).items()} == {
        "tokens_per_active": 3, "active": 1, "hidden": 6, "inter": 5, "rows_per_token": 2}


def test_loads_of_the_collector() -> None:
    # 4 tokens, top 2 of 8: choices of token t are (t + 0) and (t + 4) mod 8, each expert once.
    assert _draws.balanced(4, 8, 2, 1).tolist() == [1] * 8
    assert _draws.balanced(1, 8, 2, 2).tolist() == [1, 0, 0, 0]
    # A single token of top 2 chooses two of four experts, and with two ranks the busier one gets both or one.
    assert _draws.power_law(1, 4, 2, 1, 1.2).tolist() == [1, 1, 0, 0]
    for tokens, experts, top_k in ((16, 128, 8), (1000, 64, 6), (7, 16, 1)):
        counts = _draws.power_law(tokens, experts, top_k, 1, 1.2)
        assert counts.sum() == tokens * top_k and counts.max() <= tokens
        half = _draws.power_law(tokens, experts, top_k, 2, 1.2)
        assert len(half) == experts // 2 and half.sum() >= tokens * top_k / 2  # the most loaded of two ranks
