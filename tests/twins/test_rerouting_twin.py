"""Choices changed by what is resident, replayed a second time in plain Python: the same hits and swaps."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.memory import events_of, replay
from moesim.memory.terms import mixed
from moesim.trace import RoutingTrace

Passes = list[list[list[list[int]]]]  # of each pass, by layer, every token's experts, best first
N_EXPERTS, TOP_K, LAYERS = 12, 3, 2


def plain(passes: Passes, keep: int, window: int, capacity: int, policy: str, seed: int) -> tuple[int, int, int]:
    """Return hits, misses and swapped choices."""
    caches: list[set[int]] = [set() for _ in range(LAYERS)]
    last: dict[int, int] = {}
    uses: dict[int, int] = {}
    hits = misses = swapped = 0
    for event, (layer, tokens) in enumerate((layer, one[layer]) for one in passes for layer in range(LAYERS)):
        cache, used = caches[layer], set[int]()
        for ranked in tokens:
            keys = [layer * N_EXPERTS + e for e in ranked]
            always, others = keys[:keep], keys[keep:window]
            chosen = [*always, *[k for k in others if k in cache], *[k for k in others if k not in cache]][:TOP_K]
            swapped += len(set(chosen) - set(keys[:TOP_K]))
            used |= set(chosen)
        missed = used - cache
        hits, misses = hits + len(used & cache), misses + len(missed)
        for k in used:
            last[k], uses[k] = event, uses.get(k, 0) + 1
        if missed:
            order = [(uses[k] if policy == "lfu" else 0, last[k], mixed(mixed(seed, event) >> 12, k), k) for k in cache]
            leave = max(len(cache | used) - capacity, 0)
            cache -= {k for *_, k in sorted(order)[:leave]}
            cache |= missed
    return hits, misses, swapped


@pytest.mark.parametrize(("policy", "batch"), [("lru", 1), ("lru", 2), ("lfu", 1)])
def test_the_same_hits_and_swaps(policy: str, batch: int) -> None:
    """Caches hold what one event uses at least, so that none of it passes through."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        score = rng.gumbel(size=(60, LAYERS, N_EXPERTS)) + rng.normal(size=(LAYERS, N_EXPERTS))
        ranked = np.argsort(-score, axis=2)[:, :, :7]
        trace = RoutingTrace.from_arrays(ranked, N_EXPERTS, TOP_K, phase=1, request=np.repeat(np.arange(6), 10),
                                         probs=-np.sort(-rng.random(ranked.shape)) / 7)
        passes = events_of(trace, batch).passes
        assert passes is not None
        asked = [[[ranked[r, layer].tolist() for r in rows] for layer in range(LAYERS)]
                 for rows in np.split(passes.rows, passes.starts[1:-1])]
        capacity = int(rng.integers(TOP_K * batch, N_EXPERTS))
        for keep, window in ((0, 7), (1, 7), (2, 4), (1, 3)):
            found = replay(trace, policy, capacity, batch=batch, seed=seed,
                           reroute={"name": "cache_conditional", "keep": keep, "window": window})
            assert (found.hits, found.misses, found.swapped) == plain(asked, keep, window, capacity, policy, seed)
