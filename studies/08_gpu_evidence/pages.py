"""The page "How accurate is it?": its words and tables, from what was measured."""

from __future__ import annotations

from typing import Any

import pandas as pd
from judging import OFFLOAD_BAR, SHORTEST_S, STEP_BAR, Found, errors

NAMES = {"gemm": "products", "moe": "experts", "attention_decode": "attention, decode",
         "attention_prefill": "attention, prefill", "elementwise": "norms", "gate": "gates"}

PIECES = ("kernels", "steps", "offload", "again", "rest", "training", "capture")
ROUTING = (("load_max_over_mean", "load, busiest expert / mean", 1), ("load_variation", "load, deviation / mean", 1),
           ("entropy_normalised", "entropy of the load, 1 is even", 1), ("affinity_nat", "affinity, nat", 1),
           ("affinity_fraction", "affinity, % of the entropy", 100),
           ("next_top1_hit", "next first choice guessed from this one, %", 100),
           ("next_top1_hit_popularity", "the same from popularity, %", 100),
           ("overlap", "experts shared by consecutive tokens, %", 100),
           ("overlap_independent", "the same if they were independent, %", 100))


def text(found: Found, figures: str) -> str:
    """Return everything between the markers of the page; *figures*: where they are, seen from it."""
    parts = [machine(found.environment), "### Kernels that were not fitted", operators(found.operators),
             f"![Predicted beside measured kernels]({figures}/kernels.png)",
             "### Whole steps, which nothing was fitted to", steps(found.steps, found.said),
             f"![Predicted beside measured steps]({figures}/steps.png)",
             "### Experts in host memory", offload(found),
             *([f"![Measured and predicted tokens per second]({figures}/offload.png)"] if len(found.offload) else []),
             "### How steady the machine was", drift(found.said), "### A router trained there", trained(found.said)]
    if found.losses is not None and len(found.losses):
        parts.append(f"![Loss in training and on held-out text]({figures}/losses.png)")
    if found.routing is not None:
        parts += [routing(found.routing), f"![Routing by layer]({figures}/routing.png)"]
    return "\n\n".join([*parts, "### What was cut short", incomplete(found)])


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
        error, last, bar, noise = (_three(row, kind, form) for kind, form in (
            ("", ".1f"), ("reserve_", ".1f"), ("bar_", "g"), ("noise_", ".1f")))
        rows.append([NAMES.get(row["op"], row["op"]), error, last, bar, noise,
                     f"{row['bias']:+.1f}" if row["shapes"] else "-", f"{row['shapes']} + {row['reserve_shapes']}"])
    head = ["median / mean / p90 %", "error", "of the reserve", "wanted", "a second pass", "bias", "shapes"]
    return markdown(head, rows) + (f"\n\nKernels of at least {1e6 * SHORTEST_S:g} µs. Noise floor: *a second pass*, "
                                   "over the shapes of *error*.")


def _three(row: dict[str, Any], kind: str, form: str) -> str:
    """Return median, mean and p90 of a *kind* in *row*; "-" without them."""
    found = [row[f"{kind}{name}"] for name in ("median", "mean", "p90")]
    return "-" if pd.isna(found).any() else " / ".join(f"{value:{form}}" for value in found)


def steps(table: pd.DataFrame, said: dict[str, dict[str, Any]]) -> str:
    """Return errors of steps by model and kind, and of all; and how many of them there was time for."""
    points = said.get("steps", {}).get("points")
    kept = (f"{points['measured']} of {points['all']} steps were measured, every shape before any twice. "
            if points else "")
    groups = [((model, kind), part) for (model, kind), part in table.groupby(["model", "kind"])]
    rows = [[model, kind, *_errors(part)] for (model, kind), part in [*groups, (("all", "all"), table)]]
    return (markdown(["stack", "step", "median %", "p90 %", "worst %", "bias %", "steps"], rows)
            + f"\n\n{kept}Wanted: median {STEP_BAR[0]} %, worst {STEP_BAR[1]} %. Every step: `steps.csv`. Noise floor: "
            f"replays of one step are {table['spread_percent'].median():.1f} % apart (p90 less p10, median step).")


def offload(about: Found) -> str:
    """Return tokens per second with experts on the host; says so if nothing was measured."""
    table = about.offload
    if table.empty:
        return about.no_offload
    rows = [[f"{100 * r['resident']:.0f} %", r["batch"], "yes" if r["ahead"] else "no", f"{r['used_per_layer']:.1f}",
             f"{r['hit_rate']:.2f}", f"{r['measured_tok_s']:.1f}", f"{r['predicted_tok_s']:.1f}",
             f"{r['error_percent']:+.1f}"]
            for r in table.to_dict("records")]
    found = errors(table)
    head = ["on the device", "batch", "fetched ahead", "experts used per layer", "hit rate", "tokens/s", "predicted",
            "error %"]
    return (markdown(head, rows)
            + f"\n\n{table['model'].iloc[0]}, fetches: {table['fetch'].iloc[0]}. Median error {found['median']:.1f} % "
            f"(wanted: {OFFLOAD_BAR} %). Predicted from fitted kernels, fitted copies and launches that were measured "
            "elsewhere; how many experts were used, missed and fetched ahead are the measured ones. Noise floor: steps "
            f"of one run are {table['spread_percent'].median():.1f} % apart (p90 less p10, median run).")


def drift(said: dict[str, dict[str, Any]]) -> str:
    """Return how far sentinels drifted in every piece that measured."""
    rows = [[name, told["rows"], told["failed_rows"], f"{d['median']:+.1f}", f"{d['worst']:.1f}", f"{d['noise']:.1f}",
             d["points"],
             f"{c['median']:+.1f} / {c['worst']:.1f}" if (c := told.get("against_kernels_percent")) else "-"]
            for name, told in said.items() if (d := told.get("drift_percent"))]
    return (markdown(["piece", "rows", "failed", "last against first, median %", "worst of one point %", "noise %",
                      "points measured again", "kernels of the first piece once more, median / worst %"], rows)
            + "\n\nNoise: how far the fastest of every other time of a point is from the fastest of the rest.")


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


def routing(table: pd.DataFrame) -> str:
    """Return what the routing of the captured trace is like, over its layers."""
    rows = [[words, *(f"{scale * value:.2f}" for value in (table[name].mean(), table[name].min(), table[name].max()))]
            for name, words, scale in ROUTING]
    return markdown(["captured trace, by layer", "mean", "least", "most"], rows)


def incomplete(found: Found) -> str:
    """Return a table of the pieces that are not whole, and of what is missing of them."""
    rows = []
    for name in PIECES:
        told, lacks = found.said.get(name, {}), []
        turns, points = told.get("turns", [0, 0]), told.get("points")
        if name not in found.said:
            lacks.append("nothing of it is here")
        if found.standing.get(name, "done") != "done":
            lacks.append({"cut": "its time was used up", "open": "not at its end when this was packed",
                          "failed": "failed for good"}.get(found.standing[name], found.standing[name]))
        if turns[0] < turns[1]:
            lacks.append(f"stopped after {turns[0]} of {turns[1]} turns")
        if points and points["measured"] < points["all"]:
            lacks.append(f"{points['measured']} of {points['all']} points measured ({points['planned']} were planned "
                         f"for its time, {told['failed_rows']} rows failed)")
        if told.get("steps", 0) < told.get("planned_steps", 0):
            lacks.append(f"{told['steps']} of {told['planned_steps']} training steps")
        if told.get("complete") is False:
            lacks.append(f"{told['prefill']:,} of {told['wanted'][0]:,} tokens of prefill, {told['decode']:,} of "
                         f"{told['wanted'][1]:,} of decode")
        rows += [[name, "; ".join(lacks)]] if lacks else []
    return markdown(["piece", "what is missing"], rows) if rows else "Nothing: every piece came to its end."


def _errors(table: pd.DataFrame) -> list[str]:
    found = errors(table)
    return [f"{found['median']:.1f}", f"{found['p90']:.1f}", f"{found['worst']:.1f}", f"{found['bias']:+.1f}",
            f"{found['rows']:.0f}"]


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """Return a table."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in [head, ["---"] * len(head), *rows])
