"""The tables of this study: one function for each, rows of plain numbers."""

from __future__ import annotations

import itertools

import pandas as pd
from setting import BATCHES, CAPACITIES, FORCED, NAMES, POLICIES, SWAPPING, WINDOWS

from moesim.memory import compare, events_of, replay
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


def rerouting(name: str, trace: RoutingTrace) -> pd.DataFrame:
    """Return what LRU hits if tokens choose by what is resident, and what of their choices that changes.

    Nothing of traces that do not say which experts came next in rank.
    """
    rows: list[dict[str, float | str]] = []
    for batch in (1, 8) if trace.n_ranked > trace.top_k else ():
        events = events_of(trace.evaluation(), batch)
        for capacity in SWAPPING:
            best = replay(events, "belady", capacity, overflow="stream").misses
            for keep, window in [(trace.top_k, trace.top_k), *itertools.product((1, 0), WINDOWS)]:
                found = replay(events, "lru", capacity, overflow="stream",
                               reroute={"name": "cache_conditional", "keep": keep, "window": window})
                rows.append({"batch": batch, "capacity": capacity, "keep": keep, "window": window,
                             "hit_ratio": found.hit_ratio, "misses": found.misses, "over_belady": found.misses / best,
                             "swapped_share": found.swapped_share, "given_up": found.given_up})
    return _named(name, pd.DataFrame(rows))


def _named(trace: str, table: pd.DataFrame) -> pd.DataFrame:
    if "policy" in table:
        table = table.assign(policy=table["policy"].replace(NAMES))
    if "best_causal" in table:
        table = table.assign(best_causal=table["best_causal"].replace(NAMES))
    return table.assign(trace=trace)
