"""Read-ME's published numbers, and requests like its own replayed: one function for each table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moesim.memory import events_of, replay
from moesim.trace import RoutingTrace

# Read-ME (arXiv 2410.19123), Table 4: hit ratio in % at capacities 2 to 5
READ_ME = {"random": (34.19, 50.14, 67.52, 82.91), "lru": (33.90, 52.42, 66.95, 83.48),
           "belady": (44.16, 61.82, 77.21, 88.03)}
# The same paper: distinct experts per batch when decode goes first, and with expert-aware batching
DISTINCT = {False: 5.08, True: 3.51}
REPEATS = 2921 / 4096  # the same: tokens that use the last token's expert
# Waiting tokens and batch size are not published: chosen so that both numbers of DISTINCT are near
BATCHING = {"name": "expert_aware", "size": 12, "waiting": 18}
FORCED: dict[str, Any] = {"name": "belady", "bypass": False}


def uniform() -> list[set[int]]:
    """Return requests for one of six experts, uniform and independent: what its rows random and lru look like."""
    return [{e} for e in np.random.default_rng(1).integers(0, 6, 40_000).tolist()]


def pre_gated() -> RoutingTrace:
    """Return 80 requests of 40 tokens for one of six experts: the last token's in REPEATS of cases, else any."""
    rng = np.random.default_rng(0)
    used = rng.integers(0, 6, (80, 40))
    keeps = REPEATS - (1 - REPEATS) / 5  # one in six of those that draw again draw the same
    for t in range(1, 40):
        used[:, t] = np.where(rng.random(80) < keeps, used[:, t - 1], used[:, t])
    return RoutingTrace.from_arrays(used.reshape(-1, 1, 1), 6, 1, request=np.arange(80).repeat(40), phase=1)


def hits() -> pd.DataFrame:
    """Return hit ratios in % of uniform requests for six experts: policies, and Belady by what it sees."""
    events = events_of(uniform())
    policies = {"random": "random", "lru": "lru", "belady, free": "belady", "belady, forced": FORCED}
    policies |= {f"belady, window {w}": FORCED | {"window": w} for w in (2, 3, 4, 8)}
    return pd.DataFrame([{"policy": name, "capacity": c, "hit_percent": 100 * replay(events, policy, c).hit_ratio}
                         for name, policy in policies.items() for c in (2, 3, 4, 5)])


def batches() -> pd.DataFrame:
    """Return the distinct experts of a batch: tokens in the order in which they came, and by expert."""
    trace = pre_gated()
    return pd.DataFrame([{"by_expert": by, "distinct": float(np.diff(events_of(
        trace, BATCHING | {"by_expert": by}).starts).mean())} for by in (False, True)])
