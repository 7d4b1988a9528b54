"""The tables of this study: one function for each, rows of plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import setting
from setting import BATCHES, CAPACITIES, FORCED, NAMES, POLICIES

from moesim.memory import CacheStats, compare, events_of, replay
from moesim.trace import RoutingTrace

KEPT = ["batch", "capacity", "policy", "oracle", "logical", "union", "misses", "miss_fraction", "hit_ratio",
        "mean_fill", "best_causal", "gap", "admission_share", "victim_share", "misses_over_best"]


def grid(name: str, trace: RoutingTrace) -> pd.DataFrame:
    """Return every policy at every capacity and batch, on the half of the requests that ``static`` did not see."""
    table = compare(trace.evaluation(), POLICIES, CAPACITIES, BATCHES, fit=trace.profile(), overflow="stream")
    return _named(name, table[KEPT])


def contracts(name: str, trace: RoutingTrace) -> pd.DataFrame:
    """Return the misses of policies in both contracts and scopes, at 40 % of the experts and batch 8."""
    rows = []
    for contract, scope in (("event", "layer"), ("sequential", "layer"), ("event", "global")):
        table = compare(trace.evaluation(), ("random", "lru", "lfu", "lfru", "static"), ("40%",), (8,), contract,
                        scope=scope, fit=trace.profile(), overflow="stream")
        rows.append(table[["contract", "scope", "policy", "misses", "miss_fraction", "hit_ratio"]])
    return _named(name, pd.concat(rows, ignore_index=True))


def prefetching(name: str, trace: RoutingTrace) -> pd.DataFrame:
    """Return what prefetchers load and leave to be missed, at 30 % of the experts, LRU, batches 1 and 8."""
    rows, asked, fit = [], trace.evaluation(), trace.profile()
    known = (trace.tokens["token_id"] >= 0).all()
    for batch in (1, 8):
        for prefetcher in ("none", "eam", *(["token_id"] if known else []), "next_layer_gate", "rpp", "oracle"):
            stats = replay(asked, "lru", "30%", batch=batch, prefetcher=prefetcher, fit=fit, overflow="stream")
            rows.append({"batch": batch, "prefetcher": prefetcher, "oracle": stats.oracle, "misses": stats.misses,
                         "loads": stats.loads, "unused_ahead": stats.unused_ahead, "logical": stats.logical,
                         "union": stats.union})
    return _named(name, pd.DataFrame(rows))


def bits(name: str, trace: RoutingTrace) -> pd.DataFrame:
    """Return misses over those of Belady, forced, with wrong bits: 30 % of the experts, one request at a time."""
    events, rows = events_of(trace.evaluation()), []
    best = replay(events, FORCED, "30%", scope="layer", overflow="stream").misses
    for policy in ("lru", "lfru"):
        misses = replay(events, policy, "30%", scope="layer", overflow="stream").misses
        rows.append({"policy": policy, "wrong": "none", "error": 0.0, "ratio": misses / best})
    for policy in ("mark0", "mark_predict"):
        for wrong in ("both", "missed", "spurious"):
            for error in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5):
                rates = {kind: error for kind in ("missed", "spurious") if wrong in ("both", kind)}
                misses = replay(events, {"name": policy} | rates, "30%", scope="layer", overflow="stream").misses
                rows.append({"policy": policy, "wrong": wrong, "error": error, "ratio": misses / best})
    return _named(name, pd.DataFrame(rows))


def readme() -> pd.DataFrame:
    """Return hit ratios in % of uniform requests for six experts: policies, and Belady by what it sees."""
    events = events_of(setting.read_me())
    policies = {"random": "random", "lru": "lru", "belady, free": "belady", "belady, forced": FORCED}
    policies |= {f"belady, window {w}": FORCED | {"window": w} for w in (2, 3, 4, 8)}
    return pd.DataFrame([{"policy": name, "capacity": c, "hit_percent": 100 * replay(events, policy, c).hit_ratio}
                         for name, policy in policies.items() for c in (2, 3, 4, 5)])


def expertflow() -> pd.DataFrame:
    """Return hit ratios in % of LRU, and of PLEC by the recall of its predictor; and what regrouping saves."""
    trace, rows = setting.switch(32), []
    for slots, batch in ((16, 4), (16, 16), (8, 16)):
        runs: list[tuple[str, Any, float]] = [("lru", "none", np.nan)]
        runs += [("plec", {"name": "rpp", "recall": r}, r) for r in (0.5, 0.8, 0.9, 0.95, 1.0)]
        for policy, prefetcher, recall in runs:
            stats = replay(trace, policy, slots, batch=batch, prefetcher=prefetcher, overflow="stream")
            rows.append({"policy": policy, "recall": recall, "experts": 32, "slots": slots, "batch": batch,
                         "value": 100 * stats.hit_ratio})
    for experts in (32, 64, 128):
        asked = setting.switch(experts)
        plain, regrouped = (events_of(asked, {"name": "regroup", "size": 16, "iterations": i}) for i in (0, 10))
        for what, events in (("plain", plain), ("regrouped", regrouped)):
            misses = replay(events, "lru", 16, overflow="stream").misses
            rows += [{"policy": f"{what}: {kind}", "recall": np.nan, "experts": experts, "slots": 16, "batch": 16,
                      "value": value} for kind, value in (("union", len(events.keys)), ("misses", misses))]
    return pd.DataFrame(rows)


def residency() -> pd.DataFrame:
    """Return the share of expert uses that are on the GPUs by the share of experts there, beside the published gain.

    random     any experts: on average the share itself
    frequency  those that other requests used most
    dynamic    for each request those that its own first tokens used most; what they did not use comes in any order
    """
    trace = setting.qwen_next()
    asked, fit = trace.evaluation(), trace.profile()
    rows = []
    alone = [asked.of_requests([r]) for r in asked.requests]
    for i, share in enumerate(np.arange(11) / 10):
        room = f"{share:.0%}"
        for policy, published in setting.RESIDENCY.items():
            if policy == "random" or not i:
                found = share
            elif policy == "frequency":
                found = _on_gpu(replay(asked.phase("decode"), "static", room, fit=fit, overflow="stream"))
            else:
                found = float(np.mean([_on_gpu(replay(r.phase("decode"), "static", room, fit=r.phase("prefill"),
                                                      overflow="stream")) for r in alone]))
            rows.append({"policy": policy, "share": share, "on_gpu": found, "published": saved(published)[i]})
    return pd.DataFrame(rows)


def saved(tokens_per_s: tuple[float, ...]) -> np.ndarray:
    """Return of the seconds per token between none and all experts on the GPUs the part that each share saves."""
    seconds = 1 / np.array(tokens_per_s)
    return (seconds[0] - seconds) / (seconds[0] - seconds[-1])


def _on_gpu(stats: CacheStats) -> float:
    return 1 - stats.miss_fraction


def _named(trace: str, table: pd.DataFrame) -> pd.DataFrame:
    if "policy" in table:
        table = table.assign(policy=table["policy"].replace(NAMES))
    if "best_causal" in table:
        table = table.assign(best_causal=table["best_causal"].replace(NAMES))
    return table.assign(trace=trace)
