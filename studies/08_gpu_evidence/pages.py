"""The page "How accurate is it?": its tables and plots, from what was measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from judging import OFFLOAD_BAR, STEP_BAR, Found, errors

from moesim import plots

NAMES = {"gemm": "products", "moe": "experts", "attention_decode": "attention, decode",
         "attention_prefill": "attention, prefill", "elementwise": "norms", "gate": "gates"}


def text(found: Found, figures: str) -> str:
    """Return everything between the markers of the page; *figures*: where they are, seen from it."""
    parts = [machine(found.environment), "### Kernels that were not fitted", operators(found.operators),
             f"![Predicted beside measured kernels]({figures}/kernels.png)",
             "### Whole steps, which nothing was fitted to", steps(found.steps),
             f"![Predicted beside measured steps]({figures}/steps.png)",
             "### Experts in host memory", offload(found.offload),
             "### How steady the machine was", drift(found.said), "### A router trained there", trained(found.said)]
    return "\n\n".join(parts)


def machine(about: dict[str, Any]) -> str:
    """Return which device, driver, versions and date."""
    gpu, versions = about.get("gpu") or {}, about["versions"]
    facts = {"device": about["device"], "driver": gpu.get("driver_version"), "CUDA": versions.get("cuda"),
             "PyTorch": versions.get("torch"), "Triton": versions.get("triton"), "dtype": about["dtype"],
             "date": about["date"]}
    return "Measured on " + ", ".join(f"{name} {value}" for name, value in facts.items() if value) + "."


def operators(table: pd.DataFrame) -> str:
    """Return held-out errors beside what was asked for and what two passes differ by."""
    rows = []
    for row in table.to_dict("records"):
        error, bar, noise = (" / ".join(f"{row[f'{kind}{n}']:{form}}" for n in ("median", "mean", "p90"))
                             for kind, form in (("", ".1f"), ("bar_", "g"), ("noise_", ".1f")))
        rows.append([NAMES.get(row["op"], row["op"]), error, bar if row["bar_median"] > 0 else "-",
                     noise if row["repeated"] > 0 else "-", f"{row['bias']:+.1f}", row["shapes"]])
    return markdown(["median / mean / p90 %", "error", "wanted", "a second pass", "bias", "shapes"], rows)


def steps(table: pd.DataFrame) -> str:
    """Return errors of steps by model and kind, and of all."""
    groups = [((model, kind), part) for (model, kind), part in table.groupby(["model", "kind"])]
    rows = [[model, kind, *_errors(part)] for (model, kind), part in [*groups, (("all", "all"), table)]]
    return (markdown(["stack", "step", "median %", "p90 %", "worst %", "bias %", "steps"], rows)
            + f"\n\nWanted: median {STEP_BAR[0]} %, worst {STEP_BAR[1]} %. Every step: `steps.csv`.")


def offload(table: pd.DataFrame) -> str:
    """Return tokens per second with experts on the host; says so if nothing was measured."""
    if table.empty:
        return "Not measured."
    rows = [[f"{100 * r['resident']:.0f} %", r["batch"], "yes" if r["ahead"] else "no", f"{r['hit_rate']:.2f}",
             f"{r['measured_tok_s']:.1f}", f"{r['predicted_tok_s']:.1f}", f"{r['error_percent']:+.1f}"]
            for r in table.to_dict("records")]
    found = errors(table)
    return (markdown(["on the device", "batch", "fetched ahead", "hit rate", "tokens/s", "predicted", "error %"], rows)
            + f"\n\n{table['model'].iloc[0]}, fetches: {table['fetch'].iloc[0]}. Median error {found['median']:.1f} % "
            f"(wanted: {OFFLOAD_BAR} %). Predicted from the measured step with all experts on the device, the measured "
            "rate of copies, and the hit rates that were measured.")


def drift(said: dict[str, dict[str, Any]]) -> str:
    """Return how far sentinels drifted in every piece that measured."""
    rows = [[name, told["rows"], told["failed_rows"], f"{d['median']:+.1f}", f"{d['worst']:.1f}", f"{d['noise']:.1f}",
             d["points"]] for name, told in said.items() if (d := told.get("drift_percent"))]
    return markdown(["piece", "rows", "failed", "last against first, median %", "worst of one point %", "noise %",
                     "points measured again"], rows)


def trained(said: dict[str, dict[str, Any]]) -> str:
    """Return what was trained and what its routing is like; says so if nothing was."""
    if "training" not in said or "capture" not in said:
        return "Not trained."
    model, trace = said["training"], said["capture"]
    losses = {k: v for k, v in model["last_row"].items() if k in {"loss", *trace["domains"]}}
    told = ", ".join(f"{'training' if k == 'loss' else k + ' held out'} {v}" for k, v in losses.items())
    return (f"{model['parameters'] / 1e6:.1f} M weights, {model['steps']} of {model['planned_steps']} steps. Loss, nat "
            f"per token: {told}. Captured {trace['prefill']:,} tokens of prefill and {trace['decode']:,} of decode in "
            f"{len(trace['domains'])} domains, {trace['bytes'] / 1e6:.1f} MB: load, max / mean "
            f"{trace['load_max_over_mean']:.2f}; affinity of adjacent layers {trace['affinity_nat']:.2f} nat, "
            f"{100 * trace['affinity_fraction']:.0f} % of the entropy; overlap of consecutive tokens "
            f"{trace['overlap']:.2f}, {trace['overlap_independent']:.2f} if they were independent.")


def _errors(table: pd.DataFrame) -> list[str]:
    found = errors(table)
    return [f"{found['median']:.1f}", f"{found['p90']:.1f}", f"{found['worst']:.1f}", f"{found['bias']:+.1f}",
            f"{found['rows']:.0f}"]


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """Return a table."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in [head, ["---"] * len(head), *rows])


def draw(found: Found, folder: Path) -> None:
    """Save the two plots of the page into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = found.steps.assign(op=found.steps["model"] + ", " + found.steps["kind"], split="test")
    for name, table in (("kernels", found.points), ("steps", whole)):
        figure, axes = plt.subplots(figsize=(6.0, 5.2), layout="constrained")
        plots.kernel_prediction(table, axes, title="{answer}")
        part = folder / f"{name}.part.png"
        figure.savefig(part, dpi=110, metadata={"Software": ""})
        plt.close(figure)
        os.replace(part, folder / f"{name}.png")
