"""Fitting, files and the command: constants come back, what is written is what is read, wrong input is exit 2."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from moesim import registry
from moesim.cli import app
from moesim.config import ConfigError
from moesim.hardware import Device
from moesim.kernels import KernelModel, bind, fit, fitting, library, load
from moesim.kernels.features import axes, features
from moesim.kernels.forest import from_table
from moesim.kernels.measurements import MeasurementError, Measurements, checked
from moesim.kernels.models.residual import Residual
from moesim.kernels.stored import Stored

H200, _ = fitting.device_of("h200")
assert isinstance(H200, Device)


def measured(rows: int = 160, seed: int = 0, wobble: float = 0.0) -> Measurements:
    """Products and elementwise kernels as a tile model of known constants times them, times a function of shape."""
    rng = np.random.default_rng(seed)
    truth = bind(H200.processor, {"name": "tile", "gemm": {"launch": "5 us", "compute": 0.6},
                                  "elementwise": {"launch": "4 us", "stream": 0.5}})
    m, n, k = (2.0 ** rng.integers(low, high, rows) for low, high in ((0, 14), (6, 14), (6, 14)))
    moved = np.rint(2.0 ** rng.uniform(10, 30, rows))
    gemm = pd.DataFrame({"op": "gemm", "m": m, "n": n, "k": k}).drop_duplicates()
    gemm["time_s"] = truth.time_s("gemm", m=gemm["m"], n=gemm["n"], k=gemm["k"]) * np.exp(
        wobble * np.sin(np.log2(gemm["m"])))
    other = pd.DataFrame({"op": "elementwise", "bytes": moved, "time_s": truth.time_s("elementwise", bytes=moved)})
    return checked(pd.concat([gemm, other], ignore_index=True).assign(dtype="bf16", impl="toy", source="made up"))


@pytest.fixture(scope="module")
def table() -> Measurements:
    return measured(wobble=0.3)


def test_tile_finds_what_made_the_times() -> None:
    kernels = fit(measured(), "h200", "tile")
    assert kernels.model.elementwise.stream == pytest.approx(0.5, rel=0.01)
    for op, found in kernels.info["accuracy"].items():
        assert found.median < 5.0 and found.rows > 10, op  # constants trade off against each other: not exact
    assert kernels.info["source"] == "made up; kernels: elementwise toy; gemm toy"
    assert kernels.model.fitted_on == H200.name
    assert set(kernels.model.measured) == {"gemm", "elementwise", "gate"} and kernels.domain("moe") is None


@pytest.fixture(scope="module")
def fitted(table: Measurements) -> Callable[[str], KernelModel]:
    """Each kernel model fitted to the table, once."""

    @cache
    def get(name: str) -> KernelModel:
        if name == "residual":
            pytest.importorskip("sklearn")
        return fit(table, "h200", name)

    return get


def test_models_get_better_with_what_they_may_learn(fitted: Callable[[str], KernelModel]) -> None:
    error = {name: fitted(name).info["accuracy"]["gemm"].mean for name in ("roofline", "table", "tile", "residual")}
    assert error["residual"] < error["tile"] < error["roofline"] and error["table"] < error["roofline"], error


@pytest.mark.parametrize("model", registry.names("kernel_model"))
def test_what_is_written_is_what_is_read(table: Measurements, fitted: Callable[[str], KernelModel], model: str,
                                         tmp_path: Path) -> None:
    kernels = fitted(model)
    library.save(kernels, tmp_path / "mine.yaml", "a test")
    again = load(tmp_path / "mine.yaml")
    assert again.model == registry.make("kernel_model", registry.dump(again.model)) and again.rates == kernels.rates
    assert again.info["source"].startswith("a test; made up") and again.info["name"] == "mine"
    assert again.info["accuracy"]["gemm"] == kernels.info["accuracy"]["gemm"].model_dump()
    for op in ("gemm", "elementwise"):
        shapes = table.of(op).shapes
        assert np.array_equal(again.time_s(op, **shapes), kernels.time_s(op, **shapes))
        assert np.array_equal(again.in_domain(op, **shapes), kernels.in_domain(op, **shapes))
    (tmp_path / "moved").mkdir()
    for file in tmp_path.glob("mine.*"):
        file.rename(tmp_path / "moved" / file.name)
    assert load(tmp_path / "moved" / "mine.yaml").time_s("gemm", m=3, n=64, k=64) == kernels.time_s(
        "gemm", m=3, n=64, k=64)


@pytest.mark.slow
def test_fitting_twice_gives_the_same(table: Measurements, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    for name in ("a", "b"):
        library.save(fit(table, "h200", "residual", seed=3), tmp_path / name / "x.yaml")
    for file in ("x.yaml", "x.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_trees_are_those_that_were_grown() -> None:
    """scikit-learn's own prediction is the twin of ours."""
    ensemble = pytest.importorskip("sklearn.ensemble")
    from moesim.kernels import forest

    rng = np.random.default_rng(0)
    features_, target = rng.random((5, 300)).astype(np.float32), rng.random(300)
    grown: list[Any] = []
    original = ensemble.GradientBoostingRegressor.fit

    def remember(self: Any, *args: Any) -> Any:
        grown.append(self)
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble.GradientBoostingRegressor, "fit", remember)
        patch.setattr(forest, "_TREES", 20)
        table = forest.grow(features_, target, 0)
    asked = rng.random((5, 1000)).astype(np.float32)
    assert from_table(table).predict(asked) == pytest.approx(grown[0].predict(asked.T), rel=1e-5)
    # the loop against plain Python
    one = from_table(table)
    node = np.zeros((20, 1000), dtype=int)
    for _ in range(7):
        at = np.arange(20)[:, None]
        node = 2 * node + 1 + (asked[one.feature[at, node], np.arange(1000)] > one.threshold[at, node])
    assert one.predict(asked) == pytest.approx(one.start + one.value[np.arange(20)[:, None], node - 127].sum(axis=0))


def test_a_correction_without_work_or_points_changes_nothing() -> None:
    empty = Residual(data=Stored(table=pd.DataFrame({"op": ["gemm"], "tree": [-2], "cell": [[0]]}).iloc[:0]))
    shapes = {"m": [0, 4], "n": 64, "k": 64}
    assert np.array_equal(KernelModel(bind(H200.processor).rates, empty).time_s("gemm", **shapes),
                          bind(H200.processor, "tile").time_s("gemm", **shapes))


@pytest.mark.parametrize("op", ["gemm", "moe", "attention_prefill", "attention_decode", "elementwise", "gate"])
def test_features_of_every_operator(op: str) -> None:
    from moesim.kernels import ops

    sizes: dict[str, Any] = {"moe": {"tokens_per_expert": np.ones((3, 4)), "hidden": 64, "inter": 32}}
    given = sizes.get(op) or dict.fromkeys(ops.OPS[op].required, np.array([1.0, 2.0, 100.0]))
    rates = bind(H200.processor).rates
    complete = ops.shapes(op, given, rates)
    found = features(op, complete, rates, np.full(3, 1e-5), axes(op, complete))
    assert found.shape[1] == 3 and len(found) >= len(axes(op, complete)) + 3 and np.isfinite(found).all()


def test_experts_that_have_no_tokens_may_be_listed_or_not() -> None:
    kernels = load("h200-residual")
    counts = np.array([[4] * 64, [1] * 60 + [100] * 4, [8] * 32 + [0] * 32])
    padded = np.concatenate([counts, np.zeros((3, 64))], axis=1)
    times = [kernels.time_s("moe", tokens_per_expert=c, hidden=2048, inter=768) for c in (counts, padded)]
    assert np.array_equal(*times)
    assert kernels.domain("moe")["experts"] == (1, 512)


def test_transferred_kernels(tmp_path: Path) -> None:
    file = tmp_path / "h100-x.yaml"
    file.write_text("name: h100-x\nsource: none\ndevice: h100\ntransferred_from: h200-tile\n")
    transferred, origin = load(file), load("h200-tile")
    assert transferred.model == origin.model and transferred.info["accuracy"] == {}
    assert transferred.rates.bandwidth == 3.35e12 and transferred.info["transferred_from"] == "h200-tile"
    file.write_text("name: h100-x\nsource: none\ndevice: h100\ntransferred_from: h200-tyle\n")
    with pytest.raises(ConfigError, match=r"h100-x.yaml:4: transferred_from: no kernels 'h200-tyle'"):
        load(file)
    file.write_text("name: h100-x\nsource: none\ndevice: h100\n")
    with pytest.raises(ConfigError, match="give a model, or the name of the kernels it is transferred_from"):
        load(file)


@pytest.mark.parametrize(("make", "message"), [
    (lambda t: fit(t, "h300"), "no device 'h300' in hw_configs/devices, and no such file; did you mean 'h"),
    (lambda t: fit(t, 3), "3 is no device"),
    (lambda t: fit(t, "h200", dtype="fp8"), "no usable rows of fp8"),
    (lambda t: fit(t, "h200", "tyle"), "unknown kernel model 'tyle'"),
    (lambda t: fit(Measurements(t.table.assign(impl=["a", "b"] * 80)[:150]), "h200"), "several values of kernel"),
    (lambda t: t.only(impl=["toi"]), "no row is of the kernel 'toi'; did you mean 'toy'?"),
    (lambda t: library.save(bind(H200.processor), "x.yaml"), "do not say which device they are of"),
    (lambda t: library.save(fit(t, "h200"), "x.json"), "end the name in .yaml"),
    (lambda t: registry.dump(fit(t, "h200", "table").model), "in memory only; write it with kernels.save"),
    (lambda t: registry.make("kernel_model", {"name": "table", "data": "none.parquet"}), "no file 'none.parquet'"),
])
def test_wrong_input_says_what_to_do(table: Measurements, make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make(Measurements(table.table.iloc[:160]))
    assert message in str(error.value)


def test_only_keeps_one_kernel() -> None:
    rows = pd.DataFrame({"op": "gemm", "dtype": "bf16", "m": [1, 2, 3], "n": 8, "k": 8, "time_s": 1.0,
                         "impl": ["a", "b", "b"], "cold": [True, True, False]})
    table = checked(rows)
    assert len(table.only(impl=["b"]).table) == 2 and len(table.only(impl=["b"], cold=True).table) == 1
    with pytest.raises(MeasurementError, match="several values of cold for gemm"):
        fit(table.only(impl=["b"]), "h200")


def test_command(table: Measurements, tmp_path: Path) -> None:
    table.table.drop(columns="row").to_csv(tmp_path / "m.csv", index=False)
    run = CliRunner().invoke(app, ["calibrate", str(tmp_path / "m.csv"), "--hardware", "h200", "--model", "tile",
                                   "--out", str(tmp_path / "out" / "mine"), "--source", "a test", "--reserve"])
    assert run.exit_code == 0, run.output
    assert "operator" in run.stdout and "gemm" in run.stdout and "not measured" in run.stdout
    assert load(tmp_path / "out" / "mine.yaml").info["source"].startswith("a test")
    assert len(list((tmp_path / "out" / "mine-figures").glob("*.png"))) == 3


def test_command_names_what_is_wrong(table: Measurements, tmp_path: Path) -> None:
    bad = table.table.drop(columns="row")
    bad.loc[3, "time_s"] = np.nan
    bad.to_csv(tmp_path / "m.csv", index=False)
    run = CliRunner().invoke(app, ["calibrate", str(tmp_path / "m.csv"), "--hardware", "h200", "--out",
                                   str(tmp_path / "x")])
    assert run.exit_code == 2 and "m.csv: row 4: time_s nan must be finite" in run.output
    assert not (tmp_path / "x.yaml").exists()
