"""Expert caches replayed a second time in plain Python, from the definitions: the same accesses hit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moesim.memory import replay
from moesim.memory.terms import mixed

Cache = dict[int, dict[str, float]]


def victims(policy: str, i: int, future: list[set[int]], counts: dict[int, int],
            last: dict[int, int]) -> Callable[[int], Any]:
    """Return the order in which keys leave at the end of event *i*: least first."""
    def next_use(k: int) -> float:
        return next((n for n, one in enumerate(future) if k in one), float("inf"))

    return {"lru": lambda k: last[k], "least_stale": lambda k: last[k], "lfu": lambda k: (counts[k], last[k]),
            "lfru": lambda k: counts[k] / (i - last[k] + 1), "belady": lambda k: -next_use(k),
            "forced": lambda k: -next_use(k), "fld": lambda k: last[k], "plec": lambda k: last[k],
            "hobbit": lambda k: counts[k] + last[k] + 1}[policy]


def plain(events: list[set[int]], policy: str, capacity: int, seed: int) -> list[int]:
    """Return the hits of each event."""
    cache: set[int] = set()
    counts: dict[int, int] = {}
    last: dict[int, int] = {}
    hits = []
    numbers = {k: n for n, k in enumerate(sorted(set().union(*events)))}
    for i, event in enumerate(events):
        hits.append(len(event & cache))
        missed = event - cache
        for k in event:
            counts[k], last[k] = counts.get(k, 0) + 1, i
        draw = mixed(seed, i) >> 12
        order = victims(policy, i, events[i + 1:], counts, last)
        held = cache | missed
        over = len(held) - capacity if missed else 0
        for pool in ([held] if policy == "belady" else [cache, missed]):
            leaving = sorted(pool, key=lambda k: (order(k), mixed(draw, numbers[k])))[:max(over, 0)]
            held -= set(leaving)
            over -= len(leaving)
        cache = held
    return hits


@pytest.mark.parametrize("policy", ["lru", "least_stale", "lfu", "lfru", "fld", "plec", "belady", "forced", "hobbit"])
def test_the_same_hits(policy: str) -> None:
    asked: Any = {"forced": {"name": "belady", "bypass": False},
                  "hobbit": {"name": "hobbit", "weights": [0.5, 0.5, 0.0, 0.0]}}.get(policy, policy)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n_keys, capacity = int(rng.integers(4, 12)), int(rng.integers(2, 5))
        popular = rng.dirichlet(np.ones(n_keys))
        events = [set(rng.choice(n_keys, rng.integers(1, 4), replace=False, p=popular).tolist()) for _ in range(60)]
        stats = replay(events, asked, capacity, seed=seed, overflow="stream")
        assert stats.hits == sum(plain(events, policy, capacity, seed)), (policy, seed)
