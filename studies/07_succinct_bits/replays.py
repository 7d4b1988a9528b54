"""Requests one at a time, replayed with right and wrong bits beside the bounds of the theorems."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moesim.memory import events_of, replay
from moesim.memory.bits import discard_bits, phase_bits
from moesim.memory.setup import Options, job_of

# Paging with succinct predictions: (experts, room). Requests: Zipf 0.6, and 30 % ask again for one of the last eight
# (assumed: skewed and local, as expert choices are; the theorems hold for any)
PAGING = ((8, 4), (64, 16), (64, 32))
ERRORS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
FORCED: dict[str, Any] = {"name": "belady", "bypass": False}
WRONG = {"missed": ("missed",), "spurious": ("spurious",), "both": ("missed", "spurious")}


def paging(experts: int, requests: int) -> list[set[int]]:
    """Return requests for one of *experts* each: Zipf 0.6, three in ten for one of the last eight again."""
    rng = np.random.default_rng(experts)
    weights = np.arange(1, experts + 1) ** -0.6
    drawn = rng.choice(experts, requests, p=weights / weights.sum())
    again, back = rng.random(requests) < 0.3, rng.integers(1, 9, requests)
    for t in range(8, requests):
        if again[t]:
            drawn[t] = drawn[t - back[t]]
    return [{e} for e in drawn.tolist()]


def bits(requests: int = 20_000) -> pd.DataFrame:
    """Return faults over OPT's by wrong bits, one of *requests* at a time, beside the bound of the theorem.

    Bounds, over OPT, of alpha OPT + beta eta_0 + gamma eta_1: (1, 2 H_k, 1) for MARK0 that draws its victims,
    (2, H_k, 1) for MARK&PREDICT; eta_0, eta_1: wrong bits that say 0, that say 1, as many as are drawn on average.
    """
    rows: list[dict[str, Any]] = []
    for experts, room in PAGING:
        events = events_of(paging(experts, requests))
        opt, harmonic = replay(events, FORCED, room).misses, sum(1 / i for i in range(1, room + 1))
        job = job_of(events, "event", room, Options.of({}), 0)
        rows += [{"experts": experts, "room": room, "policy": policy, "wrong": "none", "error": 0.0,
                  "ratio": replay(events, policy, room).misses / opt, "bound": np.nan} for policy in ("lru", "lfru")]
        for policy, told, (alpha, beta) in (("mark0", discard_bits(job), (1, 2 * harmonic)),
                                            ("mark_predict", phase_bits(job), (2, harmonic))):
            ones, zeros = int(told.sum()), int((1 - told).sum())
            for wrong, kinds in WRONG.items():
                for error in ERRORS:
                    stats = replay(events, {"name": policy} | dict.fromkeys(kinds, error), room)
                    lies = beta * error * ones * ("missed" in kinds) + error * zeros * ("spurious" in kinds)
                    rows.append({"experts": experts, "room": room, "policy": policy, "wrong": wrong, "error": error,
                                 "ratio": stats.misses / opt, "bound": alpha + lies / opt})
    return pd.DataFrame(rows)
