"""From measurements to errors, without a GPU: fit kernels, predict what no fit has seen, compare with measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim import config, kernels
from moesim.hardware import Device
from moesim.kernels.fitting import compared
from moesim.kernels.measurements import checked
from moesim.measure import validate
from moesim.measure.blocks import layer_stack
from moesim.measure.stack import Step
from moesim.model import ModelSpec

# Held-out errors to reach, median / mean / p90 in percent; steps median / worst; offload median. Set before measuring.
BARS = {"gemm": (4, 7, 15), "moe": (4, 8, 17), "attention_decode": (4, 6, 13), "attention_prefill": (6, 10, 22)}
STEP_BAR, OFFLOAD_BAR = (5, 12), 10
NEEDED = ("kernels/engine.parquet", "kernels/measurements.parquet", "kernels/device.yaml", "kernels/environment.json",
          "steps/others.parquet")
OPERATOR_COLUMNS = ["op", "median", "mean", "p90", "bias", "shapes", "bar_median", "bar_mean", "bar_p90"]
FEW = 64  # tokens, up to which all inputs of a step are priced: their routings differ


class NotMeasured(ValueError):
    """There is nothing to judge: what is missing and where it comes from."""


@dataclass
class Found:
    """Everything that measurements of one device say; tables that were not measured are empty."""

    environment: dict[str, Any]
    operators: pd.DataFrame                  # op, bars, errors, noise
    points: pd.DataFrame                     # of kernels.fitting.compared
    steps: pd.DataFrame
    offload: pd.DataFrame
    said: dict[str, dict[str, Any]] = field(default_factory=dict)  # of every piece


def judged(folder: Path, model: Any = None) -> Found:
    """Return the errors of a kernel *model* (default: the device's) fitted to the measurements in *folder*.

    Raises ``NotMeasured`` if they are not there.
    """
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise NotMeasured(f"{folder}: no measurements ({', '.join(missing)} missing); nothing is shown that was not "
                          "measured. On a machine with the GPU run python studies/08_gpu_evidence/evidence.py --out "
                          "out/h200 until it says that all is done, and unpack out/h200.tar.gz there")
    environment = json.loads((folder / "kernels/environment.json").read_text(encoding="utf-8"))
    device = config.load(Device, folder / "kernels/device.yaml")
    table = validate.to_fit(pd.read_parquet(folder / "kernels/engine.parquet"), environment["kind"])
    measurements = checked(table, str(folder / "kernels"))
    fitted = kernels.fit(measurements, device, model=model or validate.MODEL[environment["kind"]])
    said = {f.parent.name: json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*/said.json"))}
    return Found(environment, operators(fitted.info, repeated(folder, table)), compared(fitted, measurements),
                 steps(folder, device, fitted.model, environment["dtype"]), offload(folder), said)


def repeated(folder: Path, first: pd.DataFrame) -> pd.DataFrame:
    """Return how far the second pass is from the *first*, by operator: median, mean, p90 in percent, points."""
    file = folder / "again/engine.parquet"
    columns = ["noise_median", "noise_mean", "noise_p90", "repeated"]
    if not file.exists():
        return pd.DataFrame(columns=columns)
    plain = [t[(t["status"] == "ok") & ~t["sentinel"]][["op", "x_key", "time_s"]]
             for t in (first, pd.read_parquet(file))]
    both = plain[0].merge(plain[1], on=["op", "x_key"], suffixes=("", "_again"))
    both["percent"] = 100 * (both["time_s_again"] / both["time_s"] - 1).abs()
    grouped = both.groupby("op")["percent"]
    return pd.DataFrame(dict(zip(columns, (grouped.median(), grouped.mean(), grouped.quantile(0.9), grouped.size()),
                                 strict=True)))


def operators(info: dict[str, Any], noise: pd.DataFrame) -> pd.DataFrame:
    """Return a row per operator: errors on shapes that were not fitted, their bars, the noise of a second pass."""
    rows = []
    for op, error in info["accuracy"].items():
        bar = BARS.get(op, (np.nan,) * 3)
        rows.append({"op": op, "median": error.median, "mean": error.mean, "p90": error.p90, "bias": error.bias,
                     "shapes": error.rows, "bar_median": bar[0], "bar_mean": bar[1], "bar_p90": bar[2]})
    return pd.DataFrame(rows, columns=OPERATOR_COLUMNS).merge(noise, left_on="op", right_index=True, how="left")


def steps(folder: Path, device: Device, model: Any, dtype: str) -> pd.DataFrame:
    """Return a row per measured step: what ran, seconds measured, predicted, error in percent."""
    table = pd.read_parquet(folder / "steps/others.parquet")
    # A sentinel's turns are repeats of rows that are there.
    table = table[(table["op"] == "step") & (table["status"] == "ok") & ~table["sentinel"]]
    specs = {name: layer_stack.model(name, dtype) for name in sorted(set(table["x_model"]))}
    rows = []
    for row in table.to_dict("records"):
        guess = predicted_s(specs[row["x_model"]], row, device, model)
        kind = "mixed" if row["x_batch"] and row["x_prompt"] else "decode" if row["x_batch"] else "prefill"
        rows.append({"model": row["x_model"], "kind": kind, "prompt": row["x_prompt"], "chunk": row["x_chunk"],
                     "batch": row["x_batch"], "context": row["x_context"], "routing": row["routing"],
                     "measured_s": row["time_s"], "predicted_s": guess,
                     "error_percent": 100 * (guess / row["time_s"] - 1)})
    return pd.DataFrame(rows).sort_values(["model", "kind", "prompt", "batch", "context", "routing"],
                                          ignore_index=True)


def predicted_s(spec: ModelSpec, row: dict[str, Any], device: Device, model: Any) -> float:
    """Return the simulator's seconds of the step in *row*, with the tokens per expert that it had."""
    step = Step((int(row["x_prompt"]),) if row["x_prompt"] else (), (int(row["x_context"]),) * int(row["x_batch"]),
                int(row["x_chunk"]))
    loads = row["x_loads"] if step.tokens <= FEW else row["x_loads"][:1]
    return float(np.median([validate.predicted_s(validate.Case(spec, step), device, model, choices(one, step.tokens))
                            for one in loads]))


def choices(loads: Any, tokens: int) -> np.ndarray:
    """Return experts [T, layers, K] of *tokens* tokens that give the *loads* [layers][experts]; none twice in a token.

    Which token has which expert is lost in counts, and one device that holds all experts does not ask.
    """
    found = []
    for counts in loads:
        counts = np.asarray(counts, np.int64)
        if counts.sum() % tokens or counts.max() > tokens:
            raise ValueError(f"loads of {counts.sum()} choices, at most {counts.max()} of one expert, are none of "
                             f"{tokens} tokens; measure the step again")
        found.append(np.repeat(np.arange(len(counts)), counts).reshape(-1, tokens).T)
    return np.stack(found, axis=1)


def offload(folder: Path) -> pd.DataFrame:
    """Return a row per measured run with experts on the host: tokens/s measured and predicted, error in percent.

    Predicted: the step with all experts on the device, and for every byte that was fetched the seconds of the measured
    copy of the size nearest to an expert's; with prefetch the longer of the two. Hit rates are the measured ones.
    """
    file = folder / "offload/others.parquet"
    table = pd.read_parquet(file) if file.exists() else pd.DataFrame()
    if table.empty:
        return table
    table = table[(table["op"] == "offload") & (table["status"] == "ok") & ~table["sentinel"]]
    resident = table[table["x_resident"] == 1].set_index("x_batch")["time_s"]
    rows = []
    for row in table[(table["x_resident"] < 1) & table["x_batch"].isin(resident.index)].to_dict("records"):
        per_byte = copy_s_per_byte(folder, row["x_model"])
        base, fetch = float(resident[row["x_batch"]]), row["x_bytes_per_step"] * per_byte
        guess = max(base, fetch) if row["impl"] == "lru_prefetch" else base + fetch
        rows.append({"model": row["x_model"], "fetch": row["x_fetch"], "ahead": row["impl"] == "lru_prefetch",
                     "resident": row["x_resident"], "batch": row["x_batch"], "hit_rate": row["x_hit_rate"],
                     "measured_tok_s": row["x_batch"] / row["time_s"], "predicted_tok_s": row["x_batch"] / guess,
                     "error_percent": 100 * (row["time_s"] / guess - 1)})
    found = pd.DataFrame(rows)
    return found.sort_values(["ahead", "resident", "batch"], ignore_index=True) if rows else found


def copy_s_per_byte(folder: Path, model: str) -> float:
    """Return the seconds per byte of copies from pinned memory of about the size of an expert's smaller matrix.

    On a CPU, of memcpy: its rows count bytes read and written.
    """
    table = pd.read_parquet(folder / "kernels/measurements.parquet")
    for impl, counted in (("h2d_pinned_1", 1), ("host_memcpy", 2)):
        rows = table[(table["op"] == "copy") & (table["status"] == "ok") & (table["impl"] == impl)]
        if len(rows):
            spec = layer_stack.model(model, str(table["dtype"].iloc[0]))
            near = rows.iloc[int(np.argmin(np.abs(np.log(rows["bytes"] / counted / (spec.expert_bytes / 3)))))]
            return float(near["time_s"] / near["bytes"] * counted)
    raise NotMeasured(f"{folder / 'kernels'}: no copy from the host was measured; measure the block host_copy")


def errors(table: pd.DataFrame) -> dict[str, float]:
    """Return median, p90 and worst of the absolute errors of *table*, the median signed one, and how many."""
    size = table["error_percent"].abs()
    return {"median": float(size.median()), "p90": float(size.quantile(0.9)), "worst": float(size.max()),
            "bias": float(table["error_percent"].median()), "rows": len(table)}
