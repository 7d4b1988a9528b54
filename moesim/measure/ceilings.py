"""A device described by what was measured on it: the best rates that any kernel reached stand for the data sheet."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd

from moesim.hardware import Device
from moesim.kernels import ops
from moesim.kernels.rates import Rates
from moesim.layers import DTYPE_BYTES
from moesim.measure.target import Target
from moesim.units import text

# Watts of a device whose power nothing here reads (assumed: a server CPU's share; the energy block says better).
IDLE_W, BUSY_W = 50.0, 150.0


def best_rates(table: pd.DataFrame, dtype: str, multiprocessors: int) -> tuple[float, float]:
    """Return FLOP/s of the fastest operator and bytes/s of the fastest cold one in the measurements *table*.

    Bytes are those that the operator cannot avoid. A short call may find part of them in a cache, so that only calls of
    at least 100 us count, unless there is none. Raises ``ValueError`` if nothing computes, or nothing is cold.
    """
    value = DTYPE_BYTES[dtype]
    rates = Rates(1.0, 1.0, multiprocessors, value, value)
    flop, moved = 0.0, 0.0
    good = table[(table["status"] == "ok") & (table["dtype"] == dtype)]
    for op in (*ops.OPS, "copy"):
        rows = good[good["op"] == op]
        long = rows[rows["time_s"] >= 1e-4]
        for row in (long if len(long) else rows).to_dict("records"):
            amount, size = _work(op, row, rates)
            flop = max(flop, amount / row["time_s"])
            moved = max(moved, size / row["time_s"] if row["cold"] else 0.0)
    if not flop or not moved:
        what = "a product" if not flop else "anything cold"
        raise ValueError(f"no {dtype} measurement of {what}; measure the blocks dense_gemm and memory first")
    return flop, moved


def _work(op: str, row: dict[str, Any], rates: Rates) -> tuple[float, float]:
    if op == "copy":
        return 0.0, float(row["bytes"])
    known = ops.OPS[op].required + ops.OPS[op].optional
    given = {name: row[name] for name in known if name in row and (np.ndim(row[name]) or pd.notna(row[name]))}
    shapes = ops.shapes(op, given, rates)
    return float(ops.flop(op, shapes)), float(ops.moved(op, shapes, rates))


def device(target: Target, table: pd.DataFrame, date: str = "") -> Device:
    """Return *target* as a device of ``hw_configs/devices``; its peaks are the best rates in *table*.

    *date*: of the measurements (default: today).
    """
    date = date or datetime.date.today().isoformat()
    flop, moved = best_rates(table, target.dtype, target.threads)
    peak = {target.dtype: text(flop, "flop/second")}
    if not {"bf16", "fp16"} & set(peak):
        peak["bf16"] = peak[target.dtype]  # a device needs a 16-bit rate; not measured here: that of fp32
    bandwidth = text(moved, "byte/second")
    return Device.model_validate({
        "name": target.name, "source": f"measured by moesim measure on {date} with {target.threads} "
                                       f"{'threads' if target.kind == 'cpu' else 'multiprocessors'}",
        "processor": {"kind": "cpu" if target.kind == "cpu" else "gpu", "peak": peak, "bandwidth": bandwidth,
                      "multiprocessors": target.threads},
        "memory": [{"name": "dram" if target.kind == "cpu" else "hbm", "capacity": text(target.memory_bytes, "byte"),
                    "bandwidth": bandwidth}],
        "idle_power": text(IDLE_W, "watt"), "busy_power": text(BUSY_W, "watt")})


def as_yaml(found: Device) -> str:
    """Return *found* as a file of ``hw_configs/devices`` that says which of its numbers were measured."""
    import io

    from ruamel.yaml import YAML

    body = io.StringIO()
    YAML(typ="safe", pure=True).dump(found.dump(), body)
    return ("# Written by moesim measure. peak and bandwidth: measured ceilings, the best rate of any kernel, not\n"
            f"# a data sheet. capacity: what was free for buffers. Power: assumed, not measured.\n{body.getvalue()}")
