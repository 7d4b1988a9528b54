"""From measurements to errors, without a GPU: fit kernels, predict what no fit has seen, compare with measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from offloading import offload

from moesim import config, kernels, trace_stats
from moesim.hardware import Device
from moesim.kernels.fitting import compared, judge
from moesim.kernels.measurements import Measurements, checked
from moesim.measure import validate
from moesim.measure.blocks import layer_stack
from moesim.measure.stack import Step
from moesim.model import ModelSpec
from moesim.trace import read_trace

# Held-out errors to reach, median / mean / p90 in percent; steps median / worst; offload median. Set before measuring.
BARS = {"gemm": (4, 7, 15), "moe": (4, 8, 17), "attention_decode": (4, 6, 13), "attention_prefill": (6, 10, 22)}
STEP_BAR, OFFLOAD_BAR = (5, 12), 10
NEEDED = ("kernels/engine.parquet", "kernels/measurements.parquet", "kernels/device.yaml", "kernels/environment.json",
          "steps/others.parquet")
SHORTEST_S = 5e-6  # shorter kernels are not judged: the bars are for longer ones
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
    no_offload: str                          # why there are no rows of it; "" if there are
    said: dict[str, dict[str, Any]] = field(default_factory=dict)  # of every piece
    standing: dict[str, str] = field(default_factory=dict)         # of every piece: done, cut, open, failed
    losses: pd.DataFrame | None = None                             # of training: step, tokens, loss, every domain
    routing: pd.DataFrame | None = None                            # of the captured trace, by layer


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
    kind = environment["kind"]
    table = validate.to_fit(pd.read_parquet(folder / "kernels/engine.parquet"), kind, validate.HELD_OUT)
    measurements = checked(table, str(folder / "kernels"))
    fitted = kernels.fit(measurements, device, model=model or validate.MODEL[kind])
    said = {f.parent.name: json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*/said.json"))}
    summary = folder / "summary.json"
    pieces = json.loads(summary.read_text(encoding="utf-8"))["pieces"] if summary.exists() else {}
    return Found(environment, operators(fitted, measurements, repeated(folder, table)), compared(fitted, measurements),
                 steps(folder, device, fitted.model, environment["dtype"]), *offload(folder, device, fitted, kind),
                 said, {name: piece["is"] for name, piece in pieces.items()}, *trained(folder))


def trained(folder: Path) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """Return the losses of training, and what the captured trace's routing is like by layer; None of what is not there.
    """
    losses, trace = folder / "training/loss.csv", folder / "capture/trace.parquet"
    return (pd.read_csv(losses) if losses.exists() else None,
            trace_stats.per_layer(read_trace(trace)).reset_index() if trace.exists() else None)


def repeated(folder: Path, first: pd.DataFrame) -> pd.DataFrame:
    """Return how far the second pass is from the *first*, by operator: median, mean, p90 in percent, points.

    Of the points that are judged.
    """
    file = folder / "again/engine.parquet"
    columns = ["noise_median", "noise_mean", "noise_p90", "repeated"]
    if not file.exists():
        return pd.DataFrame(columns=columns)
    first = first[(first["split"] == "test") & (first["time_s"] >= SHORTEST_S)]
    plain = [t[(t["status"] == "ok") & ~t["sentinel"]][["op", "x_key", "time_s"]]
             for t in (first, pd.read_parquet(file))]
    both = plain[0].merge(plain[1], on=["op", "x_key"], suffixes=("", "_again"))
    both["percent"] = 100 * (both["time_s_again"] / both["time_s"] - 1).abs()
    grouped = both.groupby("op")["percent"]
    return pd.DataFrame(dict(zip(columns, (grouped.median(), grouped.mean(), grouped.quantile(0.9), grouped.size()),
                                 strict=True)))


def operators(fitted: kernels.KernelModel, measurements: Measurements, noise: pd.DataFrame) -> pd.DataFrame:
    """Return a row per operator: errors on shapes that were not fitted, their bars, the noise of a second pass.

    ``reserve_``: errors on the shapes that nothing was chosen by. Kernels below ``SHORTEST_S`` do not count.
    """
    long = Measurements(measurements.table[measurements.table["time_s"] >= SHORTEST_S])
    known = {prefix: judge(fitted, long, (part,)) for prefix, part in (("", "test"), ("reserve_", "reserve"))}
    rows = []
    for op in dict.fromkeys([*known[""], *known["reserve_"]]):
        row: dict[str, Any] = {"op": op}
        for prefix, errors_of in known.items():
            error = errors_of.get(op)
            row |= {f"{prefix}{name}": getattr(error, name, np.nan) for name in ("median", "mean", "p90", "bias")}
            row[f"{prefix}shapes"] = error.rows if error else 0
        rows.append(row | dict(zip(("bar_median", "bar_mean", "bar_p90"), BARS.get(op, (np.nan,) * 3), strict=True)))
    columns = ["op", "median", "mean", "p90", "bias", "shapes"]
    found = pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)
    return found.merge(noise, left_on="op", right_index=True, how="left")


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
                     "spread_percent": 100 * (row["time_p90_s"] - row["time_p10_s"]) / row["time_s"],
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


def errors(table: pd.DataFrame) -> dict[str, float]:
    """Return median, p90 and worst of the absolute errors of *table*, the median signed one, and how many."""
    size = table["error_percent"].abs()
    return {"median": float(size.median()), "p90": float(size.quantile(0.9)), "worst": float(size.max()),
            "bias": float(table["error_percent"].median()), "rows": len(table)}
