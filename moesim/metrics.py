"""Numbers derived from result tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

# Phases in which the processor works; in the others the device communicates.
COMPUTE = ("attention", "gate", "shared", "experts", "dense", "head")

# What ``summary`` returns.
SUMMARY_KEYS = (*(f"{time}_{point}_s" for time in ("ttft", "tpot", "e2e") for point in ("mean", "p50", "p90", "p99")),
                "throughput_tok_per_s", "makespan_s", "energy_j", "energy_per_token_j", "mfu", "mbu")


def summary(requests: pd.DataFrame, steps: pd.DataFrame, meta: dict[str, Any]) -> dict[str, float]:
    """Return latency percentiles, throughput, makespan, energy and utilisation (keys: ``SUMMARY_KEYS``).

    ``tpot_s`` counts requests with two output tokens or more. ``throughput_tok_per_s``: output tokens over the
    makespan, which runs from time 0 to the last finish. ``mfu``, ``mbu``: ``utilisation`` of all steps.
    On devices that say what accesses and arithmetic cost, also ``joules_by_cause``.
    """
    numbers: dict[str, float] = {}
    for metric in ("ttft", "tpot", "e2e"):
        values = requests[f"{metric}_s"].dropna().to_numpy()
        numbers[f"{metric}_mean_s"] = float(values.mean()) if len(values) else float("nan")
        for point in (50, 90, 99):
            numbers[f"{metric}_p{point}_s"] = float(np.percentile(values, point)) if len(values) else float("nan")
    makespan = float(requests["finish_s"].max())
    served = requests["finish_s"].notna()
    output_tokens = float(requests.loc[served, "output_tokens"].sum())
    numbers["throughput_tok_per_s"] = output_tokens / makespan
    numbers["makespan_s"] = makespan
    numbers["energy_j"] = energy(steps, meta["devices"], makespan)
    numbers["energy_per_token_j"] = numbers["energy_j"] / output_tokens
    return numbers | utilisation(steps, meta).loc["all", ["mfu", "mbu"]].to_dict() | joules_by_cause(steps).to_dict()


def utilisation(steps: pd.DataFrame, meta: dict[str, Any]) -> pd.DataFrame:
    """Return ``steps, time_s, model_flop, read_bytes, mfu, mbu`` of steps by what they run, and of ``all``.

    Rows: ``prefill`` (steps with prompt tokens alone), ``decode`` (with decodes alone), ``mixed`` (with both; their
    time cannot be told apart), those that there are. ``mfu``: the seconds that the model's FLOP take at
    the peak of their data types, over those of the devices; ``mbu``: bytes that must be read once, over what the
    devices' memory could have given (both: ``moesim.sim.needs``). ``time_s``: of the devices that step, without what
    lies between steps; where steps overlap, each has what it adds.
    """
    devices = meta["devices"]
    flop = {dtype: steps[f"model_flop_{dtype}"] for dtype in devices["peak_flop_per_s"]}
    prompts, decodes = steps["prefill_tokens"] > 0, steps["decode_tokens"] > 0
    kind = np.where(prompts & decodes, "mixed", np.where(prompts, "prefill", "decode"))
    own_s = _own_seconds(steps)
    each = pd.DataFrame({
        "steps": 1, "time_s": own_s, "device_s": own_s * _devices(steps, devices),
        "model_flop": sum(flop.values()), "read_bytes": steps["read_bytes"],
        "mfu": sum(flop[dtype] / peak for dtype, peak in devices["peak_flop_per_s"].items()),
        "mbu": steps["read_bytes"] / devices["bandwidth_bytes_per_s"]})
    table = each.groupby(kind).sum().reindex([k for k in ("prefill", "decode", "mixed") if (kind == k).any()])
    table.loc["all"] = each.sum()
    available = table.pop("device_s")
    return table.assign(steps=table["steps"].astype(int), mfu=table["mfu"] / available, mbu=table["mbu"] / available)


def _devices(steps: pd.DataFrame, devices: dict[str, Any]) -> np.ndarray:
    """Return how many devices each step has, those of all its pipeline stages."""
    stages = (steps[[c for c in steps if c.startswith("end_s_stage_")]] > 0).sum(axis=1)
    together = steps["devices"] if "devices" in steps else devices["step_together"]
    return (np.maximum(stages, 1) * together).to_numpy()


def _own_seconds(steps: pd.DataFrame) -> np.ndarray:
    """Return the seconds that each step adds to those of the steps of its island that began before it."""
    seconds = np.empty(len(steps))
    start, end = steps["start_s"].to_numpy(), steps["end_s"].to_numpy()
    island = steps["island"].to_numpy() if "island" in steps else np.zeros(len(steps))
    for one in np.unique(island):
        rows = np.flatnonzero(island == one)
        rows = rows[np.argsort(start[rows], kind="stable")]
        busy_until = np.maximum.accumulate(np.concatenate([[-np.inf], end[rows[:-1]]]))
        seconds[rows] = np.maximum(end[rows] - np.maximum(start[rows], busy_until), 0.0)
    return seconds


def energy(steps: pd.DataFrame, devices: dict[str, float], makespan_s: float) -> float:
    """Return the joules of all devices over *makespan_s*: idle power throughout, busy power while a processor works.

    A busy processor is taken to draw its thermal design power (too much), a communicating one idle power (too little).
    """
    together = steps["devices"] if "devices" in steps else devices["step_together"]
    busy_s = sum(float((steps[f"{phase}_s"] * together).sum()) for phase in COMPUTE if f"{phase}_s" in steps)
    idle, busy = devices["idle_power_w"], devices["busy_power_w"]
    return devices["count"] * idle * makespan_s + (busy - idle) * busy_s


def joules_by_cause(steps: pd.DataFrame) -> pd.Series:
    """Return the joules of accesses, by processor, of opening rows and of arithmetic; empty if nothing is known."""
    return steps[[c for c in steps if c.endswith("_j")]].sum()


def stages(steps: pd.DataFrame, makespan_s: float) -> pd.DataFrame:
    """Return, for each stage of each pipeline, the seconds in which it had a batch, and the share without one.

    Columns: island, stage, busy_s, idle_share (of *makespan_s*). Without stages a step is one.
    """
    ends = {c.removeprefix("end_s_"): c for c in steps if c.startswith("end_s_")} or {"stage_0": "end_s"}
    island = steps["island"] if "island" in steps else pd.Series(0, steps.index)
    found = []
    for i, of in steps.groupby(island):
        mine = {stage: end for stage, end in ends.items() if (of[end] > 0).any()}  # pools may differ in stages
        found += [{"island": i, "stage": int(stage.removeprefix("stage_")),
                   "busy_s": float((of[end] - of["start_s" if end == "end_s" else f"begin_s_{stage}"]).sum())}
                  for stage, end in (mine or {"stage_0": "end_s"}).items()]
    return pd.DataFrame(found).assign(idle_share=lambda t: (1 - t["busy_s"] / makespan_s).clip(lower=0.0))


def good(requests: pd.DataFrame, slo: dict[str, float]) -> pd.Series:
    """Return which requests were served within *slo*: the most of ``ttft_s``, ``tpot_s``, ``e2e_s`` (those given).

    A request with one output token has no time per output token to keep.
    """
    kept = requests["finish_s"].notna()
    for metric, limit in slo.items():
        kept &= (requests[metric] <= limit) | (requests[metric].isna() & (metric == "tpot_s"))
    return kept


def breakdown(steps: pd.DataFrame) -> pd.Series:
    """Return the share of each phase in the time of all steps (mean over devices; ``wait`` is waiting for others)."""
    phases = [c for c in steps if c.endswith("_s") and c not in ("start_s", "end_s")]
    total = steps[phases].sum()
    return (total / total.sum()).rename(lambda c: c.removesuffix("_s"))


def expert_cache(steps: pd.DataFrame) -> pd.Series:
    """Return hit_ratio, fetched_bytes and what became of misses, of a run with ``cache``; empty without one.

    Of all choices of tokens, where a part may do that: ``skipped_share``, ``deferred_share``, ``low_precision_share``,
    ``host_share`` (computed by the host at once). ``host_busy_share``: of the steps' time, mean over nodes.
    With ``cache.reroute`` also swapped_share, of all choices, and given_up_share, of the gate probability.
    """
    if "expert_hits" not in steps:
        return pd.Series(dtype="float64")
    hits, misses = float(steps["expert_hits"].sum()), float(steps["expert_misses"].sum())
    fetched = float(steps["fetched_bytes"].sum()) if "fetched_bytes" in steps else 0.0  # misses computed at the host
    found = {"hit_ratio": hits / (hits + misses), "fetched_bytes": fetched}
    for what in ("skipped", "deferred", "low_precision", "host", "swapped"):
        if f"{what}_choices" in steps:
            found[f"{what}_share"] = float(steps[f"{what}_choices"].sum()) / float(steps["expert_choices"].sum())
    if "gate_probability" in steps:
        found["given_up_share"] = float(steps["given_up_probability"].sum() / steps["gate_probability"].sum())
    if "host_busy_share" in steps:
        length = steps["end_s"] - steps["start_s"]
        found["host_busy_share"] = float((steps["host_busy_share"] * length).sum() / length.sum())
    return pd.Series(found)


def link_class_bytes(links: pd.DataFrame) -> pd.Series:
    """Return the bytes carried by all links of each class."""
    return links.groupby("class", sort=False)["bytes"].sum()
