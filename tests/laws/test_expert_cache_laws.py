"""What holds for expert caches whatever the events: Belady is the best, counts add up, bits do what was proved."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import registry
from moesim.memory import events_of, replay
from moesim.memory.noise import expected_with_errors
from moesim.memory.setup import Options, job_of
from moesim.trace import RoutingTrace

FORCED = {"name": "belady", "bypass": False}
CAUSAL = ["random", "lru", "lfu", "lfru", "least_stale", "fld", "plec", {"name": "hobbit", "weights": [1., 1., 0., 1.]}]
EVENTS = st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=9)


def fewest(events: list[set[int]], capacity: int, forced: bool) -> int:
    """Return the misses of the best way to keep and admit, by trying all."""
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for event in events:
        after: dict[frozenset[int], int] = {}
        for cache, misses in best.items():
            cost, free = misses + len(event - cache), cache | event
            if not event - cache:
                choices = [cache]
            else:
                choices = [frozenset(c) for n in range(capacity + 1) for c in combinations(sorted(free), n)]
            for kept in choices:
                missed = event - cache
                if forced and missed and not (missed <= kept or (len(kept) == capacity and kept <= missed)):
                    continue
                after[kept] = min(cost, after.get(kept, 10**9))
        best = after
    return min(best.values())


@settings(max_examples=50)
@given(EVENTS, st.integers(1, 4))
def test_belady_is_the_best_there_is(events: list[set[int]], capacity: int) -> None:
    assert replay(events, "belady", capacity, overflow="stream").misses == fewest(events, capacity, forced=False)
    assert replay(events, FORCED, capacity, overflow="stream").misses >= fewest(events, capacity, forced=True)
    single = [{k} for event in events for k in sorted(event)]
    assert replay(single, FORCED, capacity).misses == fewest(single, capacity, forced=True)


@settings(max_examples=60)
@given(st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=40), st.integers(1, 6),
       st.sampled_from(["event", "sequential"]), st.integers(0, 9))
def test_no_policy_beats_belady(events: list[set[int]], capacity: int, contract: str, seed: int) -> None:
    def misses(policy: object) -> int:
        stats = replay(events, policy, capacity, contract, seed, overflow="stream", fit=events)
        assert stats.hits + stats.misses == stats.union == sum(map(len, events))
        assert 0 <= stats.miss_fraction <= 1 and stats.loads == stats.misses
        return stats.misses

    best, forced, exact = misses("belady"), misses(FORCED), misses("mark0")
    causal = [misses(policy) for policy in (*CAUSAL, "mark_predict")]
    assert best <= min(exact, *causal) and exact <= forced
    assert best <= misses("static") + min(capacity, 10)  # its first experts are loaded before
    if contract == "sequential":  # one request at a time: paging, where forced is the best that must admit
        assert exact == forced <= min(causal)
        assert misses("mark_predict") <= 2 * forced + capacity


@settings(max_examples=25)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 9))
def test_single_accesses_are_alike_in_both_contracts(keys: list[int], capacity: int, seed: int) -> None:
    events = [{k} for k in keys]
    for policy in [*CAUSAL, "belady", FORCED, "mark0", "mark_predict"]:
        atomic, sequential = (replay(events, policy, capacity, c, seed) for c in ("event", "sequential"))
        assert (atomic.hits, atomic.misses) == (sequential.hits, sequential.misses)
    room = len(set(keys))
    assert {replay(events, policy, room).misses for policy in CAUSAL} == {room}
    assert replay(events, "belady", capacity + 1).misses <= replay(events, "belady", capacity).misses


@settings(max_examples=25)
@given(st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=40), st.integers(4, 8),
       st.sampled_from(CAUSAL), st.integers(0, 9))
def test_a_perfect_prefetcher_leaves_no_miss(events: list[set[int]], capacity: int, policy: object, seed: int) -> None:
    stats = replay(events, policy, capacity, seed=seed, prefetcher="oracle")
    assert stats.misses == 0 and stats.used_ahead == stats.loaded_ahead  # loaded for the coming event alone
    assert stats.loaded_ahead >= replay(events, "belady", capacity).misses


@pytest.mark.parametrize("capacity", [2, 3, 4, 5])
def test_without_memory_nothing_beats_chance(capacity: int) -> None:
    """Uniform, independent requests: whatever is kept, the next one is there k / N of the time."""
    events = events_of([{e} for e in np.random.default_rng(0).integers(0, 6, 8_000).tolist()])
    for policy in CAUSAL:
        assert replay(events, policy, capacity).hit_ratio == pytest.approx(capacity / 6, abs=0.02)


def marked(seed: int, kept: int, n_keys: int) -> list[set[int]]:
    """Return 5,000 requests, some repeating one of the last few, popularity falling as rank**-0.6."""
    rng = np.random.default_rng(seed)
    popular = np.arange(1, n_keys + 1) ** -0.6
    keys = rng.choice(n_keys, 5000, p=popular / popular.sum()).tolist()
    for i in range(kept, len(keys)):
        if rng.random() < 0.3:
            keys[i] = keys[i - int(rng.integers(1, kept))]
    return [{k} for k in keys]


@pytest.mark.parametrize(("n_keys", "capacity"), [(8, 4), (64, 16), (64, 32)])
def test_wrong_bits_cost_by_their_number(n_keys: int, capacity: int) -> None:
    events = marked(1, capacity, n_keys)

    def misses(name: str, **options: float) -> int:
        return replay(events, {"name": name} | options, capacity).misses

    best = replay(events, FORCED, capacity).misses
    curve = [misses("mark0", missed=e, spurious=e) for e in (0.0, 0.05, 0.2, 0.5)]
    assert curve[0] == best and curve == sorted(curve)
    robust = [misses("mark_predict", missed=e, spurious=e) for e in (0.0, 0.2, 0.5)]
    harmonic = sum(1 / k for k in range(1, capacity + 1))
    assert best <= robust[0] <= 2 * best + capacity and robust == sorted(robust)
    assert misses("mark_predict", missed=1.0, spurious=1.0) <= 2 * harmonic * best + capacity
    assert robust[2] < curve[3]  # half of the bits wrong: only one of the two is robust


@settings(max_examples=15)
@given(st.sampled_from([0.5, 0.8, 0.95]), st.sampled_from([0.4, 0.8, 1.0]), st.integers(0, 99))
def test_errors_are_as_many_as_asked_for(recall: float, precision: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.random((1500, 2, 40)) + np.linspace(0, 0.3, 40), axis=2)[:, :, :2]
    events = events_of(RoutingTrace.from_arrays(chosen, 40, 2, phase=1))
    starts, keys = expected_with_errors(job_of(events, "event", 2, Options(), seed), recall, precision)
    right = total = 0
    for i in range(len(events.time)):
        expected = set(keys[starts[i]:starts[i + 1]].tolist())
        right += len(expected & set(events.keys[events.starts[i]:events.starts[i + 1]].tolist()))
        total += len(expected)
        assert all(events.layer_of[k] == events.layer[i] for k in expected)
    assert right / len(events.keys) == pytest.approx(recall, abs=0.03)
    assert right / total == pytest.approx(precision, abs=0.04)


def test_every_policy_and_prefetcher_is_the_same_twice() -> None:
    rng = np.random.default_rng(2)
    chosen = np.argsort(rng.random((200, 3, 8)), axis=2)[:, :, :2]
    probs = np.sort(rng.dirichlet(np.ones(3), (200, 3))[:, :, :2])[:, :, ::-1]
    trace = RoutingTrace.from_arrays(chosen, 8, 2, request=np.arange(20).repeat(10), phase=1, probs=probs,
                                     token_id=np.arange(200) % 7)
    fit, asked = trace.profile(), trace.evaluation()
    for policy in registry.names("cache_policy"):
        for prefetcher in registry.names("prefetcher"):
            for scope, contract in (("layer", "event"), ("global", "event"), ("layer", "sequential")):
                capacity = 6 if scope == "layer" else 12
                one, two = (replay(asked, policy, capacity, contract, 3, batch=2, scope=scope, prefetcher=prefetcher,
                                   fit=fit).to_dict() for _ in range(2))
                assert one == two and one["hits"] + one["misses"] == one["union"]
                assert one["used_ahead"] + one["unused_ahead"] <= one["loaded_ahead"]
                assert (one["loaded_ahead"] > 0) == (prefetcher != "none")
                assert one["misses"] < one["union"]
