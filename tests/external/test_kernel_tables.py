"""Kernel models against H200 tables: held-out error per operator, and where nothing near was fitted.

Bars are median, mean, p90 of the absolute error in percent. What is slow fits models again; the rest judges those that
ship on the rows that were not fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.kernels import KernelModel, bind, fitting, load, read
from moesim.kernels.accuracy import Accuracy, accuracy
from moesim.kernels.formats import _draws
from moesim.kernels.measurements import Measurements, Points

pytestmark = pytest.mark.external

FILES = {"gemm": "gemm", "moe": "moe", "attention_prefill": "attention_context",
         "attention_decode": "attention_generation"}
TILE = {"gemm": (6.5, 10, 21), "moe": (7, 11.5, 28), "attention_prefill": (11, 19, 36), "attention_decode": (7, 11, 28)}
RESIDUAL = {"gemm": (2.5, 4, 9), "moe": (2, 4, 9), "attention_prefill": (2.5, 4, 9), "attention_decode": (1.5, 2.5, 5)}
Tables = Callable[[str], Measurements]


@pytest.fixture(scope="module")
def tables(shared_data: Path) -> Tables:
    """Measurements of an operator; attention by FlashAttention-3 (heads 512 wide have another kernel)."""

    @cache
    def get(op: str) -> Measurements:
        table = read(shared_data / "kernels" / f"h200_vllm0.24_bf16_{FILES[op]}.parquet")
        return table.only(impl=["vllm_flash_attn_fa3"]) if op.startswith("attention") else table

    return get


@pytest.fixture(scope="module")
def shipped() -> KernelModel:
    return load("h200-residual")


def held_out(table: Measurements, op: str) -> Points:
    points = table.of(op)
    return points.take(fitting.split(points) != "fit")


def errors(kernels: KernelModel, points: Points) -> Accuracy:
    return accuracy(kernels.time_s(points.op, **points.shapes), points.seconds)


def tile_of(kernels: KernelModel) -> KernelModel:
    return dataclasses.replace(kernels, model=kernels.model.tile)


def below(found: Accuracy, bars: tuple[float, float, float]) -> bool:
    return all(value <= bar for value, bar in zip((found.median, found.mean, found.p90), bars, strict=True))


def fitted_on(table: Measurements, op: str, fit: np.ndarray, test: np.ndarray, model: str = "residual"
              ) -> tuple[KernelModel, Points]:
    """Return the model fitted on the rows *fit*, and the rows *test*."""
    said = Measurements(table.table.assign(split=np.where(fit, "fit", np.where(test, "test", "reserve"))))
    return fitting.fit(said, "h200", model), said.of(op).take(test)


@pytest.mark.parametrize("op", FILES)
def test_held_out_error_of_what_ships(tables: Tables, shipped: KernelModel, op: str) -> None:
    rows = held_out(tables(op), op)
    assert below(errors(shipped, rows), RESIDUAL[op]), errors(shipped, rows)
    assert below(errors(tile_of(shipped), rows), TILE[op]), errors(tile_of(shipped), rows)
    roofline = bind(fitting.device_of("h200")[1], "roofline")
    assert errors(roofline, rows).median > 5 * errors(tile_of(shipped), rows).median
    assert shipped.in_domain(op, **rows.shapes).mean() > 0.99
    recorded = fitting.judge(shipped, tables(op), ("test",))[op].model_dump()  # what the file claims comes out
    assert shipped.info["accuracy"][op] == pytest.approx(recorded, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("op", FILES)
def test_fitting_again_gives_what_ships(tables: Tables, shipped: KernelModel, op: str) -> None:
    pytest.importorskip("sklearn")
    again = fitting.fit(tables(op), "h200", "residual")
    assert again.info["accuracy"][op].model_dump() == pytest.approx(shipped.info["accuracy"][op], abs=0.1)


def test_experts_with_and_without_other_devices(tables: Tables, shipped: KernelModel) -> None:
    rows = held_out(tables("moe"), "moe")
    alone = (rows.table["x_ep"] == 1).to_numpy()
    for part in (rows.take(alone), rows.take(~alone)):
        assert below(errors(tile_of(shipped), part), TILE["moe"]) and len(part) > 1000
        assert below(errors(shipped, part), (2.5, 4, 9)), errors(shipped, part)


@pytest.mark.parametrize("op", FILES)
def test_predicted_order_is_the_measured_order(tables: Tables, shipped: KernelModel, op: str) -> None:
    rows = held_out(tables(op), op)
    both = pd.DataFrame({"p": shipped.time_s(op, **rows.shapes), "m": rows.seconds})
    assert both.corr("spearman").loc["p", "m"] > 0.99


@pytest.mark.slow
def test_a_model_left_out_entirely(tables: Tables) -> None:
    """Shapes of Qwen3-30B-A3B, Mixtral 8x7B and 8x22B, MiniMax-M2, Qwen3.5-35B and 397B, each fitted without."""
    pytest.importorskip("sklearn")
    table, found = tables("moe"), []
    for name in ("2048/768/8/128", "4096/14336/2/8", "6144/16384/2/8", "3072/1024/8/256", "2048/512/8/256",
                 "4096/1024/10/512"):
        left_out = (table.table["x_model"] == name).to_numpy()
        kernels, rows = fitted_on(table, "moe", ~left_out, left_out)
        found.append(pd.DataFrame({"p": kernels.time_s("moe", **rows.shapes), "m": rows.seconds}))
    both = pd.concat(found)
    pooled = accuracy(both["p"].to_numpy(), both["m"].to_numpy())
    assert below(pooled, (4.5, 8.5, 20)), pooled


@pytest.mark.slow
@pytest.mark.parametrize("ep", ["alone", "all"])
def test_skewed_routing_from_balanced_measurements(tables: Tables, ep: str) -> None:
    """True loads of power laws against loads as if routing were balanced, which is how the model was fitted."""
    pytest.importorskip("sklearn")
    table = tables("moe")
    table = Measurements(table.table[(table.table["x_ep"] == 1) | (ep == "all")].reset_index(drop=True))
    even = (table.table["routing"] == "balanced").to_numpy()
    kernels, rows = fitted_on(table, "moe", even, ~even)
    assumed = np.zeros_like(rows.shapes["tokens_per_expert"])
    for i, row in enumerate(rows.table.itertuples()):
        *_, top_k, experts = map(int, row.x_model.split("/"))
        counts = _draws.balanced(int(row.x_tokens), experts, top_k, int(row.x_ep))
        assumed[i, :len(counts)] = counts
    true = errors(kernels, rows)
    blind = accuracy(kernels.time_s("moe", **rows.shapes | {"tokens_per_expert": assumed}), rows.seconds)
    assert below(true, (6.5, 11.5, 27)), true
    assert true.median <= 0.6 * blind.median and true.mean <= 0.6 * blind.mean, (true, blind)


@pytest.mark.slow
@pytest.mark.parametrize("small", [300, None])
def test_larger_shapes_with_anchors(tables: Tables, small: int | None) -> None:
    """Up to 1024 tokens (300 points of them, or all) and 100 points of more: tested on the rest of more."""
    pytest.importorskip("sklearn")
    table, rng = tables("moe"), np.random.default_rng(0)
    few = np.flatnonzero(table.table["x_tokens"] <= 1024)
    many = np.flatnonzero(table.table["x_tokens"] > 1024)
    fit = np.zeros(len(table.table), bool)
    fit[rng.choice(few, small, replace=False) if small else few] = True
    fit[rng.choice(many, 100, replace=False)] = True
    kernels, rows = fitted_on(table, "moe", fit, (table.table["x_tokens"] > 1024).to_numpy() & ~fit)
    assert below(errors(kernels, rows), (6, 9, 18)), errors(kernels, rows)


@pytest.fixture(scope="module")
def tile() -> KernelModel:
    return load("h200-tile")


@pytest.mark.parametrize("op", FILES)
def test_the_default_tile_model(tables: Tables, tile: KernelModel, op: str) -> None:
    """Fitted on another random 65 % (balanced routing, one device): its errors are about those that the file says."""
    points = tables(op).of(op)
    points = points.take(points.shapes["head_dim"] <= 256) if "head_dim" in points.shapes else points
    if op == "moe":
        points = points.take(((points.table["x_ep"] == 1) & (points.table["routing"] == "balanced")).to_numpy())
    found, recorded = errors(tile, points), tile.info["accuracy"][op]
    assert below(found, TILE[op]) and abs(found.bias) < 1.5
    assert (found.median, found.mean) == pytest.approx((recorded["median"], recorded["mean"]), abs=0.6)
    assert tile.in_domain(op, **points.shapes).all()
    roofline = bind(fitting.device_of("h200")[1], "roofline").time_s(op, **points.shapes)
    assert (tile.time_s(op, **points.shapes) >= roofline).all()


@pytest.mark.parametrize(("file", "op", "bar"), [("context", "attention_prefill", 14),
                                                 ("generation", "attention_decode", 10)])
def test_another_collection(shared_data: Path, tile: KernelModel, shipped: KernelModel, file: str, op: str,
                            bar: float) -> None:
    """Another engine version, without the cache write (most of the time below 50 us): not even the same kernels."""
    points = read(shared_data / "kernels" / f"h200_vllm0.18_bf16_attention_{file}_d64.parquet").of(op)
    points = points.take(points.seconds > 50e-6)
    assert errors(tile, points).median < bar and errors(shipped, points).median < bar


def test_experts_with_narrow_weights(shared_data: Path) -> None:
    """gpt-oss, mxfp4 weights unpacked to bf16: the unpacking share is fitted here, the rest is the bf16 fit."""
    points = read(shared_data / "kernels" / "h200_vllm0.18_mxfp4_moe_gptoss.parquet").of("moe")
    points = points.take(((points.table["x_ep"] == 1) & (points.table["routing"] == "balanced")).to_numpy())
    assert errors(bind(fitting.device_of("h200")[1], "tile", "mxfp4"), points).median < 15


def test_activated_experts_law(shared_data: Path) -> None:
    """Another GPU's profile of one model: time follows the experts that are hit, fitted on 65 % of its 50 points."""
    folder = shared_data / "serving/profiles/RTXPRO6000/Qwen/Qwen3-30B-A3B-Instruct-2507/bf16/tp1"
    table = read(folder)
    device = load("h200-tile").device.model_copy(update={"name": "RTX PRO 6000", "processor": load(
        "h200-tile").device.processor.model_copy(update={"bandwidth": 1.792e12, "multiprocessors": 188})})
    experts = Measurements(table.table[table.table["op"] == "moe"])  # 1.792 TB/s, 188 SMs: data sheet
    found = errors(fitting.fit(experts, device, "tile"), experts.of("moe"))
    assert found.median < 10, found
