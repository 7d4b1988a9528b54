"""What each part of the model is worth: both runs with one thing left out, and with nothing left out, many times."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import setting

WHOLE = "nothing left out"
SEEDS = {WHOLE: 8}  # replays with steps that differ at random; others:
FEW = 3
_MEASURED = "profile=null"
_SKEWED = "trace.synthetic.parameters={sigma_b: 0.86, a: 2.20, s: 1.53, sigma_d: 1.40, domains: 10}"

# What is left out -> overrides. A captured size needs a graph: without graphs no step is filled up, none is eager.
# Without chunks a step must have room for the longest prompt, 4,570 tokens (vLLM asks for the whole context).
ALL = {
    WHOLE: [],
    "time of steps without a graph": ["engine.eager=0 s"],
    "graphs: neither filled up nor eager": ["engine.graphs=0", "engine.eager=0 s"],
    "uneven contexts (by their mean)": ["profile.uneven=false"],
    "asynchronous scheduling": ["engine.asynchronous=false"],
    "chunked prefill": ["scheduler.chunked=false", "scheduler.max_tokens=4608"],
    "prefix cache": ["kv.prefix_cache=false"],
    "measured layers: kernels of an H200": [_MEASURED, "hardware.device.kernels=h200-residual"],
    "measured layers: roofline": [_MEASURED, "kernels=roofline"],
}
QWEN = {
    "random routing (balanced)": ["trace={balanced: true}"],
    "random routing (skewed as gpt-oss-20b)": [_SKEWED],
    "late counts: the router always knows": ["request_router.period=0 s"],
    "the router (in turn)": ["request_router=round_robin"],
    "NCCL's efficiency and start-up": [
        "hardware.scale_up={bandwidth: 63 GB/s, efficiency: 1, startup: 0 s, ramp: 0 s}"],
}
SLOW = ("measured layers",)  # kernels are priced one by one: two replays


class Replay(NamedTuple):
    """One simulation: its errors (metric, statistic, error_percent, spearman) and its latencies [requests], seconds."""

    errors: pd.DataFrame
    latencies: pd.DataFrame
    seconds: float


def tasks(folder: str) -> list[tuple[str, str, str, int]]:
    """Return the arguments of every ``replay``."""
    return [(folder, name, what, seed) for name in setting.RUNS
            for what in ({**ALL, **QWEN} if name == "qwen" else ALL) for seed in range(seeds(what))]


def seeds(what: str) -> int:
    """Return how many replays there are without *what*."""
    return SEEDS.get(what, 2 if what.startswith(SLOW) else FEW)


def replay(folder: str, name: str, what: str, seed: int) -> Replay:
    """Simulate the run *name* without *what*, steps differing at random."""
    found = setting.validate(Path(folder), name, [*{**ALL, **QWEN}[what], *setting.jittered(seed)])
    comparison = found.comparison
    rows = comparison.errors.merge(comparison.ranks[["metric", "spearman"]], on="metric")
    rows = rows[rows["metric"].isin(setting.SHOWN)][["metric", "statistic", "error_percent", "spearman"]]
    latencies = comparison.requests[[f"{metric}_simulated_s" for metric in setting.SHOWN]]
    return Replay(rows.assign(run=name, left_out=what, seed=seed), latencies, found.seconds)


def table(replays: list[Replay]) -> pd.DataFrame:
    """Return run, left_out, metric, statistic; mean and sd over replays of error_percent and spearman; replays."""
    rows = pd.concat([each.errors for each in replays], ignore_index=True)
    keys = ["run", "left_out", "metric", "statistic"]
    found = rows.groupby(keys, sort=False).agg(
        error_percent=("error_percent", "mean"), error_sd=("error_percent", "std"), spearman=("spearman", "mean"),
        spearman_sd=("spearman", "std"), replays=("seed", "size"))
    return found.reset_index()


def ceiling(replays: list[Replay]) -> pd.DataFrame:
    """Return run, metric, mean and sd of Spearman over all pairs of replays of the whole model, and of their mean.

    ``ensemble``: Spearman between one replay and the mean of all others: what would be left if the mean were known.
    """
    rows = []
    for name in setting.RUNS:
        whole = [each.latencies for each in replays if (each.errors["run"] == name).all()
                 and (each.errors["left_out"] == WHOLE).all()]
        for metric in setting.SHOWN:
            ranks = np.array([each[f"{metric}_simulated_s"].rank() for each in whole])
            pairs = [np.corrcoef(ranks[i], ranks[j])[0, 1] for i, j in combinations(range(len(ranks)), 2)]
            values = np.array([each[f"{metric}_simulated_s"] for each in whole])
            others = [pd.Series(np.delete(values, i, 0).mean(0)).rank() for i in range(len(values))]
            alone = [np.corrcoef(ranks[i], others[i])[0, 1] for i in range(len(ranks))]
            rows.append({"run": name, "metric": metric, "spearman": np.mean(pairs),
                         "spearman_sd": np.std(pairs, ddof=1), "ensemble": np.mean(alone)})
    return pd.DataFrame(rows)
