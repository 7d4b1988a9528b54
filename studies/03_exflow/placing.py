"""What placements do to routing alone: cross-GPU fractions, by GPUs, by solver, by the tokens that were profiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import setting

from moesim import placement as placing
from moesim import trace_stats
from moesim.trace import RoutingTrace

TOKENS = (100, 300, 1000, 3000, 10_000)  # profiled; ExFlow finds 1,000 (8 experts) to 3,000 (64) enough
ILP = ((8, 4), (8, 8), (16, 4))  # experts, GPUs: where the integer program is tried
ILP_LIMIT = "20 s"


def rows(experts: int, gpus: int) -> list[dict[str, Any]]:
    """Return a row per placement: what ``evaluate`` says of it on the half of the requests that it was not made for."""
    whole = setting.trace(experts)
    profile, evaluation = whole.profile(0.5, setting.SEED), whole.evaluation(0.5, setting.SEED)
    names: list[Any] = [*setting.PLACEMENTS, "random"]
    if (experts, gpus) in ILP:
        names.append({"name": "exflow_ilp", "time_limit": ILP_LIMIT})
    found = []
    for name in names:
        placed = placing.solve(profile, gpus, name, setting.SEED, devices_per_node=setting.nodes_of(gpus))
        info = {key: placed.info.get(key) for key in ("objective", "bound", "status")}
        found.append({"experts": experts, "gpus": gpus, "placement": name if isinstance(name, str) else name["name"]}
                     | dict(placing.evaluate(placed, evaluation, setting.nodes_of(gpus))) | info)
    return found


def by_tokens(experts: int, gpus: int) -> list[dict[str, Any]]:
    """Return the cross-GPU fraction of affinity placements made from ever more tokens of the profile half."""
    whole = setting.trace(experts)
    profile, evaluation = whole.profile(0.5, setting.SEED), whole.evaluation(0.5, setting.SEED)
    order = np.random.default_rng(setting.SEED).permutation(profile.n_tokens)
    found = []
    for tokens in TOKENS:
        some = profile.select(np.sort(order[:tokens]))  # all of them, if there are fewer
        placed = placing.solve(some, gpus, "affinity_sweep", setting.SEED, devices_per_node=setting.nodes_of(gpus))
        for seen, judged in (("profiled", some), ("unseen", evaluation)):
            found.append({"experts": experts, "gpus": gpus, "tokens": some.n_tokens, "judged_on": seen,
                          "cross_top1": float(placing.evaluate(placed, judged)["cross_top1"])})
    return found


def strength(experts: int) -> dict[str, Any]:
    """Return how strong the affinity of the trace is, and how uneven its load."""
    whole: RoutingTrace = setting.trace(experts)
    summary = trace_stats.summary(whole)
    guessed, popular = trace_stats.predictability(whole)
    return {"experts": experts, "tokens": whole.n_tokens, "mutual_information_nat":
            float(trace_stats.mutual_information(whole).mean()), "of_entropy": summary["affinity_fraction"],
            "null_nat": float(trace_stats.mutual_information_null(whole).mean()), "guessed": float(guessed.mean()),
            "popular": float(popular.mean()), "load_max_over_mean": float(trace_stats.load_imbalance(whole).mean())}


def tasks() -> Iterator[tuple[int, int]]:
    """Yield the points of ``rows``."""
    yield from sorted(setting.GRID, key=lambda point: point not in ILP)  # the integer programs first
