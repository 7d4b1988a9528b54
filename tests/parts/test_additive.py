"""The additive kernel model: terms on paper, factors and corrections that come back, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.hardware import Device
from moesim.kernels import KernelModel, fit, library, load, ops, smooth, terms
from moesim.kernels.measurements import Measurements, checked
from moesim.kernels.rates import Rates

RATES = Rates(flop_per_s=100e9, bandwidth=20e9, multiprocessors=2, weight_bytes=4.0, value_bytes=4.0)
CPU = Device.model_validate({
    "name": "toy", "source": "made up", "memory": [{"name": "dram", "capacity": "8 GB", "bandwidth": "20 GB/s"}],
    "processor": {"kind": "cpu", "peak": {"fp32": "100 GFLOP/s", "bf16": "100 GFLOP/s"}, "bandwidth": "20 GB/s",
                  "multiprocessors": 2}, "idle_power": "1 W", "busy_power": "1 W"})


def gemm_s(m: np.ndarray, n: np.ndarray, k: np.ndarray, wobble: float = 0.0) -> np.ndarray:
    """Return 5 us, 3 times the weights' and 1.5 times the arithmetic's time at the peaks, times a function of m."""
    plain = 5e-6 + 3 * 4 * n * k / 20e9 + 1.5 * 2 * m * n * k / 100e9
    return plain * np.exp(wobble * np.sin(np.log2(m)))


def drawn(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, ...]:
    return tuple(np.rint(2.0 ** rng.uniform(low, high, rows)) for low, high in ((0, 8), (7, 12), (7, 12)))


def experts_s(counts: np.ndarray, hidden: float, inter: float) -> float:
    """Return 40 us, 20 us an expert with tokens, and its two products."""
    active = counts[counts > 0].astype(float)
    one = np.ones(len(active))
    return float(4e-5 + (2e-5 + gemm_s(active, 2 * inter * one, hidden * one, 0.3)
                         + gemm_s(active, hidden * one, inter * one, 0.3)).sum())


@pytest.fixture(scope="module")
def measured() -> Measurements:
    rng = np.random.default_rng(0)
    m, n, k = drawn(rng, 150)
    gemm = pd.DataFrame({"op": "gemm", "m": m, "n": n, "k": k, "time_s": gemm_s(m, n, k, 0.3), "split": "fit"})
    rows = []
    for i in range(20):
        hidden, inter = (float(2 ** rng.integers(8, 11)) for _ in "hi")
        counts = rng.multinomial(int(2 ** rng.integers(0, 8)), rng.dirichlet(np.ones(8)))
        rows.append({"op": "moe", "tokens_per_expert": counts.tolist(), "hidden": hidden, "inter": inter,
                     "time_s": experts_s(counts, hidden, inter), "split": "fit" if i < 15 else "test"})
    return checked(pd.concat([gemm, pd.DataFrame(rows)], ignore_index=True).assign(dtype="fp32", impl="toy"))


@pytest.fixture(scope="module")
def fitted(measured: Measurements) -> KernelModel:
    return fit(measured, CPU, "additive")


def test_experts_are_the_products_of_those_with_tokens() -> None:
    shapes = ops.shapes("moe", {"tokens_per_expert": [[2, 0, 3], [0, 0, 1]], "hidden": 4, "inter": 5}, RATES)
    found = terms.of_experts(shapes, lambda s: s["m"] * s["n"] * s["k"] + 1000)
    # each token 10 x 4 up and 4 x 5 down, each expert two products: 5 x 60 + 4 x 1000, and 60 + 2 x 1000
    assert found.tolist() == [4300.0, 2060.0]


@pytest.mark.parametrize("op", ops.OPS)
def test_terms_are_seconds_at_the_peaks(op: str) -> None:
    sizes = {"m": 8, "n": 64, "k": 32, "tokens_per_expert": [3, 0, 1], "hidden": 64, "inter": 32, "batch": 2,
             "q_len": 4, "kv_len": 9, "heads_q": 4, "heads_kv": 2, "head_dim": 16, "bytes": 1e4, "tokens": 4,
             "experts": 8, "top_k": 2}
    shapes = ops.shapes(op, {name: sizes[name] for name in ops.OPS[op].required}, RATES)
    found = terms.terms(op, shapes, RATES, lambda s: s["m"] * 1e-6)
    assert all(np.all(seconds > 0) for seconds in found.values()) and found["call"] == 1e-6
    if "flop" in found:
        assert found["flop"] == ops.flop(op, shapes) / 100e9


def test_factors_come_back() -> None:
    m, n, k = drawn(np.random.default_rng(1), 200)
    table = checked(pd.DataFrame({"op": "gemm", "m": m, "n": n, "k": k, "time_s": gemm_s(m, n, k), "dtype": "fp32"}))
    found = fit(table, CPU, "additive")
    assert found.model.factors["gemm"] == pytest.approx({"call": 5.0, "weights": 3.0, "values": 0.0, "flop": 1.5},
                                                        abs=0.02)
    assert found.info["accuracy"]["gemm"].p90 < 0.1


def test_what_products_show_experts_know(measured: Measurements, fitted: KernelModel) -> None:
    """Fifteen expert layers do not show how products depend on rows; 150 products do."""
    assert fitted.info["accuracy"]["moe"].p90 < 6.0
    alone = fit(Measurements(measured.table[measured.table["op"] == "moe"]), CPU, "additive")
    assert alone.info["accuracy"]["moe"].median > 2 * fitted.info["accuracy"]["moe"].median


def test_far_from_all_points_only_the_sum_is_left(fitted: KernelModel) -> None:
    far = {"m": 2.0**40, "n": 128.0, "k": 128.0}
    assert not fitted.in_domain("gemm", **far) and fitted.in_domain("gemm", m=17, n=500, k=500)
    factors = fitted.model.factors["gemm"]
    found = terms.terms("gemm", ops.shapes("gemm", dict(far), RATES), RATES, lambda s: s["m"])
    assert fitted.time_s("gemm", **far) == pytest.approx(sum(factors[name] * found[name] for name in factors),
                                                        rel=1e-3)


def test_a_disturbed_measurement_counts_less() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 8, (150, 1))
    y = 0.3 * np.sin(x[:, 0]) + rng.normal(0, 0.02, 150)
    y[::10] += 1.0  # almost three times as long
    lengths, weights = smooth.fit(x, y, seed=0)
    asked = np.linspace(0.5, 7.5, 30)[:, None]
    assert np.abs(smooth.value(x, weights, lengths, asked) - 0.3 * np.sin(asked[:, 0])).max() < 0.05


def test_of_many_points_some_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smooth, "MOST", 40)
    x = np.linspace(0, 6, 100)[:, None]
    _, weights = smooth.fit(x, np.sin(x[:, 0]), seed=0)
    assert np.count_nonzero(weights) == 40


def test_what_is_written_is_what_is_read(fitted: KernelModel, tmp_path: Path) -> None:
    files = library.save(fitted, tmp_path / "toy.yaml", "made up")
    assert [file.name for file in files] == ["toy.yaml", "toy.parquet"]
    read = load(tmp_path / "toy.yaml")
    shapes = {"tokens_per_expert": [[4] * 8, [32] + [0] * 7], "hidden": 512.0, "inter": 1024.0}
    np.testing.assert_allclose(read.time_s("moe", **shapes), fitted.time_s("moe", **shapes), rtol=1e-4)
