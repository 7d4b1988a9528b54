"""The tables of this study that caches decide: one function for each, rows of plain numbers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import setting
from setting import FORCED

from moesim.memory import CacheStats, events_of, replay
from moesim.memory.bits import discard_bits, phase_bits
from moesim.memory.setup import Options, job_of

RECALLS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
WRONG = {"missed": ("missed",), "spurious": ("spurious",), "both": ("missed", "spurious")}


def readme() -> pd.DataFrame:
    """Return hit ratios in % of uniform requests for six experts: policies, and Belady by what it sees."""
    events = events_of(setting.read_me())
    policies = {"random": "random", "lru": "lru", "belady, free": "belady", "belady, forced": FORCED}
    policies |= {f"belady, window {w}": FORCED | {"window": w} for w in (2, 3, 4, 8)}
    return pd.DataFrame([{"policy": name, "capacity": c, "hit_percent": 100 * replay(events, policy, c).hit_ratio}
                         for name, policy in policies.items() for c in (2, 3, 4, 5)])


def batches() -> pd.DataFrame:
    """Return the distinct experts of a batch: tokens in the order in which they came, and by expert."""
    trace = setting.pre_gated()
    return pd.DataFrame([{"by_expert": by, "distinct": float(np.diff(events_of(
        trace, setting.BATCHING | {"by_expert": by}).starts).mean())} for by in (False, True)])


def expertflow() -> pd.DataFrame:
    """Return hit ratios in % of LRU, and of PLEC by the recall of its predictor."""
    trace, rows = setting.switch(32), []
    for slots, batch in ((16, 4), (16, 16), (8, 16)):
        runs: list[tuple[str, Any, float]] = [("lru", "none", np.nan)]
        runs += [("plec", {"name": "rpp", "recall": r}, r) for r in RECALLS]
        for policy, prefetcher, recall in runs:
            stats = replay(trace, policy, slots, batch=batch, prefetcher=prefetcher, overflow="stream")
            rows.append({"policy": policy, "recall": recall, "slots": slots, "batch": batch,
                         "hit_percent": 100 * stats.hit_ratio})
    return pd.DataFrame(rows)


def scheduler() -> pd.DataFrame:
    """Return what dealing two batches of 16 tokens anew saves, by the number of experts and how alike requests are."""
    rows = []
    for subjects, experts in itertools.product((64, 8, 2), setting.SCHEDULER):
        trace = setting.switch(experts, subjects)
        plain, dealt = (events_of(trace, {"name": "regroup", "size": 16, "iterations": i}) for i in (0, 10))
        misses = [replay(events, "lru", 16, overflow="stream").misses for events in (plain, dealt)]
        rows.append({"subjects": subjects, "experts": experts, "fewer_distinct": 1 - len(dealt.keys) / len(plain.keys),
                     "fewer_misses": 1 - misses[1] / misses[0]})
    return pd.DataFrame(rows)


def bits(requests: int = 20_000) -> pd.DataFrame:
    """Return faults over OPT's by wrong bits, one of *requests* at a time, beside the bound of the theorem.

    Bounds, over OPT, of alpha OPT + beta eta_0 + gamma eta_1: (1, 2 H_k, 1) for MARK0 that draws its victims,
    (2, H_k, 1) for MARK&PREDICT; eta_0, eta_1: wrong bits that say 0, that say 1, as many as are drawn on average.
    """
    rows: list[dict[str, Any]] = []
    for experts, room in setting.PAGING:
        events = events_of(setting.paging(experts, requests))
        opt, harmonic = replay(events, FORCED, room).misses, sum(1 / i for i in range(1, room + 1))
        job = job_of(events, "event", room, Options.of({}), 0)
        rows += [{"experts": experts, "room": room, "policy": policy, "wrong": "none", "error": 0.0,
                  "ratio": replay(events, policy, room).misses / opt, "bound": np.nan} for policy in ("lru", "lfru")]
        for policy, told, (alpha, beta) in (("mark0", discard_bits(job), (1, 2 * harmonic)),
                                            ("mark_predict", phase_bits(job), (2, harmonic))):
            ones, zeros = int(told.sum()), int((1 - told).sum())
            for wrong, kinds in WRONG.items():
                for error in setting.ERRORS:
                    stats = replay(events, {"name": policy} | dict.fromkeys(kinds, error), room)
                    lies = beta * error * ones * ("missed" in kinds) + error * zeros * ("spurious" in kinds)
                    rows.append({"experts": experts, "room": room, "policy": policy, "wrong": wrong, "error": error,
                                 "ratio": stats.misses / opt, "bound": alpha + lies / opt})
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
