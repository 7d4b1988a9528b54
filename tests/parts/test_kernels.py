"""Contract of every kernel model, laws, numpy twins of the numba loops, files, and error messages."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

import moesim
from moesim import registry
from moesim.kernels import KernelModel, bind, load, ops
from moesim.kernels.models.tile import Tile
from moesim.kernels.rates import Rates
from moesim.kernels.tiles import loops, overlapped

RATES = Rates(flop_per_s=989.4e12, bandwidth=4.8e12, multiprocessors=132, weight_bytes=2.0, value_bytes=2.0)  # H200
SHAPES: dict[str, dict[str, Any]] = {
    "gemm": {"m": 64, "n": 4096, "k": 2048},
    "moe": {"tokens_per_expert": [8, 0, 3, 1, 0, 0, 2, 1], "hidden": 2048, "inter": 768},
    "attention_prefill": {"batch": 2, "q_len": 512, "kv_len": 700, "heads_q": 32, "heads_kv": 4, "head_dim": 128},
    "attention_decode": {"batch": 8, "kv_len": 1000.5, "heads_q": 32, "heads_kv": 4, "head_dim": 128},
    "elementwise": {"bytes": 1e6},
    "gate": {"tokens": 64, "hidden": 2048, "experts": 128, "top_k": 8},
}
WORK = {"gemm": "m", "moe": "tokens_per_expert", "attention_prefill": "batch", "attention_decode": "batch",
        "elementwise": "bytes", "gate": "tokens"}  # the shape that says how much there is to do
TINY = Path(__file__).parents[1] / "data/tiny.yaml"
MODELS = registry.names("kernel_model")
EVERY = [(model, op) for model in MODELS for op in ops.OPS]


def kernels(name: str = "tile", rates: Rates = RATES) -> KernelModel:
    return KernelModel(rates, registry.make("kernel_model", name))


def test_all_operators_are_tested() -> None:
    assert set(SHAPES) == set(WORK) == set(ops.OPS)


@pytest.mark.parametrize(("name", "op"), EVERY)
def test_contract(name: str, op: str) -> None:
    model, shapes = kernels(name), {k: np.asarray(v, float) for k, v in SHAPES[op].items()}
    one = model.time_s(op, **shapes)
    assert one.shape == () and one > 0 and model.time_s(op, **shapes) == one
    assert model.time_s(op, **shapes | {WORK[op]: 0 * shapes[WORK[op]]}) == 0
    batched = {k: np.broadcast_to(v, (3, 2, *v.shape)) for k, v in shapes.items()}
    assert np.array_equal(model.time_s(op, **batched), np.full((3, 2), one))
    rows = np.stack([0 * shapes[WORK[op]], shapes[WORK[op]], 4 * shapes[WORK[op]]])  # one shape per row
    times = model.time_s(op, **shapes | {WORK[op]: rows})
    assert times[0] == 0 and times[1] == one and times[2] >= one
    inside = model.in_domain(op, **shapes)
    assert inside.dtype == bool and bool(inside) == (model.domain(op) is not None)
    assert model.in_domain(op, **shapes | {WORK[op]: 0 * shapes[WORK[op]]})
    assert registry.make("kernel_model", registry.dump(model.model)) == model.model


@pytest.mark.parametrize(("name", "op"), EVERY)
def test_a_faster_processor_is_faster(name: str, op: str) -> None:
    base = kernels(name).time_s(op, **SHAPES[op])
    for change in ({"flop_per_s": 2e15}, {"bandwidth": 9.6e12}, {"flop_per_s": 2e15, "bandwidth": 9.6e12}):
        assert kernels(name, dataclasses.replace(RATES, **change)).time_s(op, **SHAPES[op]) <= base


@pytest.mark.parametrize("name", MODELS)
def test_twice_the_bandwidth_halves_what_bandwidth_bounds(name: str) -> None:
    launch = kernels(name).time_s("elementwise", bytes=1e-9)
    fast = dataclasses.replace(RATES, bandwidth=2 * RATES.bandwidth)
    for op, shapes, within in (("elementwise", {"bytes": 1e9}, 1e-9), ("gemm", {"m": 1, "n": 16384, "k": 16384}, 0.05)):
        slow = kernels(name).time_s(op, **shapes) - launch
        assert kernels(name, fast).time_s(op, **shapes) - launch == pytest.approx(slow / 2, rel=within)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("op", "grows", "others"), [
    ("gemm", "m", {"n": 4096, "k": 4096}), ("gemm", "m", {"n": 128, "k": 2048}), ("gemm", "n", {"m": 3, "k": 512}),
    ("attention_prefill", "batch", {"q_len": 200, "kv_len": 300, "heads_q": 32, "heads_kv": 4, "head_dim": 128}),
    ("attention_decode", "batch", {"kv_len": 300.5, "heads_q": 32, "heads_kv": 8, "head_dim": 128}),
    ("attention_decode", "kv_len", {"batch": 3, "heads_q": 32, "heads_kv": 8, "head_dim": 128}),
    ("gate", "tokens", {"hidden": 2048, "experts": 64, "top_k": 6}), ("elementwise", "bytes", {}),
])
def test_more_work_never_takes_less(name: str, op: str, grows: str, others: dict[str, Any]) -> None:
    times = kernels(name).time_s(op, **{grows: np.arange(4000)}, **others)
    assert (np.diff(times) >= -1e-15).all()


@pytest.mark.parametrize("name", MODELS)
def test_longer_prompts_never_take_less(name: str) -> None:
    length = np.arange(4000)
    for batch, kv_heads in ((1, 32), (3, 8), (40, 1)):
        times = kernels(name).time_s("attention_prefill", batch=batch, q_len=length, kv_len=length + 100, heads_q=32,
                                     heads_kv=kv_heads, head_dim=128)
        assert (np.diff(times) >= -1e-15).all()


@given(st.lists(st.integers(0, 300), min_size=4, max_size=16), st.integers(0, 15), st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_experts_pay_for_their_own_tokens(tokens: list[int], expert: int, more: int) -> None:
    """Adding tokens anywhere costs; a device is no slower with the same tokens on one expert: fewer weights, tiles."""
    for name in MODELS:
        model, counts = kernels(name), np.array(tokens)
        grown = counts.copy()
        grown[expert % len(counts)] += more
        packed = np.zeros_like(counts)
        packed[0] = counts.sum()
        times = model.time_s("moe", tokens_per_expert=[counts, grown, packed], hidden=2048, inter=768)
        assert times[1] >= times[0] >= times[2] * (1 - 1e-12)


def test_where_experts_are_compute_bound_balance_over_devices_wins() -> None:
    balanced, skewed = np.full((8, 4), 4096), np.array([[8192] * 4] + [[3510] * 4] * 7)
    times = [kernels().time_s("moe", tokens_per_expert=c, hidden=4096, inter=1536).max() for c in (balanced, skewed)]
    assert times[1] > 1.8 * times[0]  # the slowest device decides, and it has twice the tokens


def test_gemm_loop_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    shapes = np.stack([rng.integers(1, 5000, 200), rng.integers(1, 9000, 200), rng.integers(1, 9000, 200),
                       rng.choice([1.0, 2.0], 200)], axis=1).astype(float)
    speeds, split_s, reduce = loops.Speeds(132, 6e12, 1.5e11, 4e12, 161.0), 2.4e-6, 9e12
    out = np.empty(200)
    loops.gemm(shapes, 2.0, speeds, split_s, reduce, out)
    m, n, k, weight = shapes.T[:, :, None, None]
    rows, columns = np.array(loops.TILES, float).T[:, :, None]
    split = np.array(loops.SPLITS, float)
    step = np.maximum(2 * rows * columns / speeds.flop_per_s_each, (rows * 2 + columns * weight) / speeds.load_each)
    waves = np.maximum(np.ceil(m / rows) * np.ceil(n / columns) * split / 132, 1)
    memory = (m * (n + k) * 2 + n * k * weight) / speeds.stream
    times = overlapped(waves * step * (k / split + 161), memory)
    times = times + np.where(split > 1, split_s + split * m * n * 8 / reduce, 0)
    assert np.allclose(out, times.min(axis=(1, 2)), rtol=1e-13)


def test_expert_loop_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.choice([0.3, 5, 200], 100)[:, None], (100, 8)).astype(float)
    shapes = np.stack([rng.choice([64, 2048.0], 100), rng.choice([24, 768.0], 100), np.full(100, 2.0),
                       np.full(100, 2.0)], axis=1)
    speeds = loops.Speeds(132, 7e12, 9e10, 4.3e12, 413.0)
    out = np.empty(100)
    loops.experts(counts, shapes, 2.0, speeds, 0.33, out)

    def product(n: np.ndarray, k: np.ndarray) -> np.ndarray:
        times = []
        for rows in loops.EXPERT_ROWS:
            for columns in loops.EXPERT_COLUMNS:
                waves = np.ceil(np.ceil(counts / rows).sum(axis=1) * np.ceil(n / columns) / 132)
                step = max(2 * rows * columns / 7e12, (rows + columns) * 2 / 9e10)
                times.append(waves * step * (k + 413))
        moved = ((counts > 0).sum(axis=1) * n * k + counts.sum(axis=1) * (n + k)) * 2
        return overlapped(np.min(times, axis=0), moved / 4.3e12)

    hidden, inter, wide, _ = shapes.T
    expected = (product(wide * inter, hidden) + product(hidden, inter)) / np.where(inter % 16, 0.33, 1)
    assert np.allclose(out, expected, rtol=1e-13)


def test_shipped_file_is_the_default() -> None:
    shipped = load("h200-tile")
    assert shipped.model == Tile() and shipped.rates == RATES and shipped.dtype == "bf16"
    assert shipped.info["accuracy"]["gemm"]["median"] < 6 and "aiconfigurator" in shipped.info["source"]
    assert load(Path(__file__).parents[2] / "hw_configs/kernels/h200-tile.yaml") == shipped


def test_a_scenario_uses_what_was_fitted_to_its_device(tmp_path: Path) -> None:
    """H200 by default; H100 by transfer, marked; nothing fitted: tile; a name that leads nowhere is an error."""
    used = {}
    for device in ("h200", "h100", "a100"):
        result = moesim.simulate(moesim.load(TINY, (f"hardware.device={device}",)))
        carried = any("constants fitted on" in warning for warning in result.meta["warnings"])
        used[device] = (*(result.meta["kernels"][key] for key in ("model", "file", "transferred_from")), carried)
        assert (result.meta["kernels"]["accuracy"] != {}) == (device == "h200")  # measured there
    assert used == {"h200": ("residual", "h200-residual", "", False),
                    "h100": ("residual", "h100-residual", "h200-residual", True), "a100": ("tile", "", "", True)}
    chosen = moesim.simulate(moesim.load(TINY, ("hardware.device=h200", "kernels=tile"))).meta["kernels"]
    assert chosen == {"model": "tile", "file": "", "transferred_from": "", "accuracy": {}}
    with pytest.raises(moesim.ConfigError, match="hardware.device.kernels: no kernels 'h200-x' in hw_configs/kernels"):
        moesim.load(TINY, ("hardware.device=h200", "hardware.device.kernels=h200-x"))
    resolved = moesim.load(TINY, ("hardware.device=h200",))
    again = tmp_path / "again.yaml"
    with open(again, "w", encoding="utf-8") as file:
        YAML().dump(resolved.dump(), file)
    assert moesim.load(again) == resolved


def test_domain_says_what_was_measured() -> None:
    model = kernels()
    shapes = SHAPES["attention_decode"]
    inside = model.in_domain("attention_decode", **shapes | {"kv_len": [100, 131072, 131073]})
    assert inside.tolist() == [True, True, False]
    assert not model.in_domain("attention_decode", **shapes | {"head_dim": 576, "head_dim_v": 512})  # latent attention
    tokens = {"tokens_per_expert": np.ones(16), "hidden": 2048}
    assert model.in_domain("moe", inter=[768, 20000], **tokens).tolist() == [True, False]


def test_latent_attention_reads_its_cache_once() -> None:
    wide = {"batch": 64, "kv_len": 8000, "heads_q": 16, "heads_kv": 1, "head_dim": 576, "head_dim_v": 512}
    both, once = (kernels("roofline").time_s("attention_decode", **wide, **extra) for extra in ({}, {"kv_values": 576}))
    assert both / once == pytest.approx((576 + 512) / 576, rel=0.01)


class _Processor:
    bandwidth, multiprocessors = 1e12, 100

    def peak_flop_per_s(self, dtype: str) -> float:
        return {"fp8": 2e15}.get(dtype, 1e15)


def test_bind() -> None:
    model = bind(_Processor(), {"name": "tile", "elementwise": {"launch": "5 us", "stream": 0.5}}, "fp8")
    assert model.rates == Rates(2e15, 1e12, 100, 1.0, 2.0)
    assert model.time_s("elementwise", bytes=1e6) == pytest.approx(5e-6 + 1e6 / 0.5e12)
    assert bind(_Processor(), "roofline", "fp32").rates.value_bytes == 4


@pytest.mark.parametrize(("make", "message"), [
    (lambda: kernels().time_s("gem", m=1), "unknown operator 'gem'; did you mean 'gemm'?"),
    (lambda: kernels().time_s("gemm", m=1, n=1, kk=1), "gemm has no shape 'kk'; did you mean 'k'?"),
    (lambda: kernels().time_s("gemm", m=1), "gemm needs n, k; add what is missing"),
    (lambda: kernels().time_s("gemm", m=[1, -2], n=1, k=1), "gemm: m has the value -2.0; give finite numbers >= 0"),
    (lambda: kernels().in_domain("elementwise", bytes=np.nan), "elementwise: bytes has the value nan"),
    (lambda: bind(_Processor(), "tyle"), "unknown kernel model 'tyle'; did you mean 'tile'?"),
    (lambda: bind(_Processor(), {"name": "tile", "gemm": {"lunch": 1}}), "constant 'lunch'; did you mean 'launch'?"),
    (lambda: bind(_Processor(), {"name": "tile", "moe": {"launch": 3.0}}), "moe: launch: 3.0 has no unit"),
    (lambda: bind(_Processor(), "tile", "bf61"), "unknown dtype 'bf61'; did you mean 'bf16'?"),
    (lambda: load("h200-tiles"), "no kernels 'h200-tiles' in hw_configs/kernels, and no such file; did you mean 'h20"),
])
def test_wrong_input_says_what_to_do(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


def test_numba_is_imported_only_when_needed() -> None:
    code = "import sys, moesim.kernels, moesim.network; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
