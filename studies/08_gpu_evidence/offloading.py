"""Decoding with experts on the host, predicted: fitted kernels, fitted copies, and what starting them costs the CPU.

Nothing here was measured on the runs that it predicts, but how many experts they used, missed and fetched ahead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from moesim.hardware import Device
from moesim.kernels import KernelModel
from moesim.measure import validate
from moesim.measure.blocks import layer_stack
from moesim.measure.stack import Step
from moesim.model import ModelSpec

# Rows of the block launch, measured on layers so narrow that the device has nothing to do (moesim.measure.blocks).
LAUNCHES = ("layer_submit", "experts_submit_8", "experts_submit_64", "guess_submit", "copy_submit", "sync")
CHAIN = ("graph_100", "graph_1000")  # graphs of so many kernels that do next to nothing: their slope is one
COPIES = {"cuda": ("h2d_pinned_1", 1), "cpu": ("host_memcpy", 2)}  # rows of copies; how often they count a byte
NEEDED = ("x_hits_per_step", "x_misses_per_step", "x_context")     # columns of the runs


class Copies(NamedTuple):
    """A copy from the host takes ``start_s`` + bytes x ``s_per_byte``."""

    start_s: float
    s_per_byte: float

    def seconds(self, size: float) -> float:
        """Return the seconds of one copy of *size* bytes."""
        return self.start_s + size * self.s_per_byte


class Layer(NamedTuple):
    """A mean layer: experts used, missed, and fetched ahead of it; device seconds of its rest and of its experts."""

    used: float
    missed: float
    ahead: float
    rest_s: float
    experts_s: float


def offload(folder: Path, device: Device, model: KernelModel, kind: str) -> tuple[pd.DataFrame, str]:
    """Return a row per measured run: tokens/s measured and predicted, error in percent; and why there are none, if so.
    """
    file = folder / "offload/others.parquet"
    table = pd.read_parquet(file) if file.exists() else pd.DataFrame(columns=["op"])
    table = table[table["op"] == "offload"]
    table = table[(table["status"] == "ok") & ~table["sentinel"].astype(bool)] if len(table) else table
    if table.empty:
        return pd.DataFrame(), "Not measured."
    launch, lacking = launches(folder), [name for name in NEEDED if name not in table]
    lacking += [name for name in (*LAUNCHES, *CHAIN) if kind == "cuda" and name not in launch]
    copies = fitted_copies(folder, *COPIES[kind])
    if lacking or copies is None:
        return pd.DataFrame(), ("Measured, and not predicted: " + ", ".join(lacking or [COPIES[kind][0]])
                                + " missing among the rows; measure again.")
    spec = layer_stack.model(str(table["x_model"].iloc[0]), model.dtype)
    rows = []
    for row in table.to_dict("records"):
        layer = mean_layer(row, spec, device, model, kind, launch)
        ahead = row["impl"] == "lru_prefetch"
        guess = spec.layers * (on_gpu(layer, spec, copies, launch, ahead) if kind == "cuda" else
                               on_cpu(layer, spec, copies))
        rows.append({"model": row["x_model"], "fetch": row["x_fetch"], "ahead": ahead,
                     "resident": row["x_resident"], "batch": row["x_batch"], "hit_rate": row["x_hit_rate"],
                     "used_per_layer": layer.used, "missed_per_layer": layer.missed, "ahead_per_layer": layer.ahead,
                     "spread_percent": 100 * (row["time_p90_s"] - row["time_p10_s"]) / row["time_s"],
                     "measured_tok_s": row["x_batch"] / row["time_s"], "predicted_tok_s": row["x_batch"] / guess,
                     "error_percent": 100 * (row["time_s"] / guess - 1)})
    return pd.DataFrame(rows).sort_values(["ahead", "resident", "batch"], ignore_index=True), ""


def launches(folder: Path) -> dict[str, float]:
    """Return the seconds of every measured row of the block launch, by its name."""
    table = pd.read_parquet(folder / "kernels/measurements.parquet")
    table = table[(table["op"] == "launch") & (table["status"] == "ok") & ~table["sentinel"].astype(bool)]
    return {str(name): float(seconds) for name, seconds in zip(table["impl"], table["time_s"], strict=True)}


def fitted_copies(folder: Path, impl: str, counted: int) -> Copies | None:
    """Return the line through the seconds of all copies by *impl*, by relative errors; None if there is no copy.

    Of one size only the rate is known.
    """
    table = pd.read_parquet(folder / "kernels/measurements.parquet")
    rows = table[(table["op"] == "copy") & (table["status"] == "ok") & (table["impl"] == impl)
                 & ~table["sentinel"].astype(bool)]
    if rows.empty:
        return None
    size, seconds = rows["bytes"].to_numpy(float) / counted, rows["time_s"].to_numpy(float)
    both = np.stack([1 / seconds, size / seconds], axis=1)
    scale = both.max(axis=0)
    found = np.linalg.lstsq(both / scale, np.ones(len(rows)), rcond=None)[0] / scale
    if found[0] < 0 or rows["bytes"].nunique() < 2:  # no copy starts before it begins: the rate alone
        found = np.array([0.0, both[:, 1].sum() / (both[:, 1] ** 2).sum()])
    return Copies(*map(float, found))


def mean_layer(row: dict[str, Any], spec: ModelSpec, device: Device, model: KernelModel, kind: str,
               launch: dict[str, float]) -> Layer:
    """Return the mean layer of the run in *row*; its tokens are as even over the experts used as can be.

    On a CPU experts are priced as in a step. On a GPU here each is two products of its own and two small kernels, and
    not part of the one kernel that a step has.
    """
    batch = int(row["x_batch"])
    used, missed = (float(row["x_hits_per_step"] + row["x_misses_per_step"]) / spec.layers,
                    float(row["x_misses_per_step"]) / spec.layers)
    ahead = max(float(row["x_bytes_per_step"]) / spec.expert_bytes / spec.layers - missed, 0.0)
    step = Step(contexts=(int(row["x_context"]),) * batch)
    phases = validate.predicted_phases_s(validate.Case(spec, step), device, model.model, even(used, batch, spec))
    in_experts = phases.pop("experts")
    if kind == "cuda":
        tokens = max(batch * spec.top_k / used, 1.0)
        kernel_s = (launch[CHAIN[1]] - launch[CHAIN[0]]) / 900
        products = sum(product_s(model, tokens, n, k) for n, k in matrices(spec))
        in_experts = spec.layers * used * (products + 2 * kernel_s)
    return Layer(used, missed, ahead, sum(phases.values()) / spec.layers, in_experts / spec.layers)


def matrices(spec: ModelSpec) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return outputs and inputs of an expert's two products: gate and up together, and down."""
    inter = spec.expert_gemms()[1].k
    return (2 * inter, spec.hidden), (spec.hidden, inter)


def product_s(model: KernelModel, m: float, n: int, k: int) -> float:
    """Return the fitted seconds of a product, of the whole numbers of rows next to *m* in proportion."""
    below = int(np.floor(m))
    low, high = (float(model.time_s("gemm", m=float(rows), n=float(n), k=float(k))) for rows in (below, below + 1))
    return low + (m - below) * (high - low)


def even(used: float, batch: int, spec: ModelSpec) -> np.ndarray:
    """Return experts [batch, layers, K] of tokens that choose about *used* experts per layer, all as often."""
    count = int(np.clip(round(used), spec.top_k, batch * spec.top_k))
    ids = (np.arange(batch)[:, None] * spec.top_k + np.arange(spec.top_k)) % count
    return np.repeat(ids[:, None, :], spec.layers, axis=1)


def on_cpu(layer: Layer, spec: ModelSpec, copies: Copies) -> float:
    """Return the seconds of a layer on a CPU: one thing after the other, also what is fetched ahead."""
    return layer.rest_s + layer.experts_s + (layer.missed + layer.ahead) * fetch_s(spec, copies)


def on_gpu(layer: Layer, spec: ModelSpec, copies: Copies, launch: dict[str, float], ahead: bool) -> float:
    """Return the seconds of a layer on a GPU, from one wait for its routing to the next.

    The CPU starts fetches and experts, then the next layer's rest, at whose end it waits for the device. With *ahead*
    it waits for these experts too, starts the fetches of the next layer's, which run beside that layer's rest, and that
    layer's experts wait for them.
    """
    slope = (launch["experts_submit_64"] - launch["experts_submit_8"]) / 56
    experts_cpu = max(launch["experts_submit_8"] + slope * (layer.used - 8), 0.0)
    starting = experts_cpu + 2 * layer.missed * launch["copy_submit"]
    one, rest_cpu = fetch_s(spec, copies), launch["layer_submit"]
    fetched = layer.missed * one
    if not ahead:
        return max(starting + rest_cpu, fetched + layer.experts_s + layer.rest_s + launch["sync"])
    begun = 2 * layer.ahead * launch["copy_submit"]
    known = begun + max(rest_cpu, layer.rest_s + launch["sync"])  # the routing, since the fetches ahead began
    there = max(known, layer.ahead * one)
    return max(known + starting, there + fetched + layer.experts_s) + launch["guess_submit"]


def fetch_s(spec: ModelSpec, copies: Copies) -> float:
    """Return the seconds of the two copies that fetch an expert."""
    value = spec.expert_bytes / sum(n * k for n, k in matrices(spec))
    return sum(copies.seconds(value * n * k) for n, k in matrices(spec))
