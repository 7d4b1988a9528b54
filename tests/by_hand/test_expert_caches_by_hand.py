"""Expert caches worked on paper: the two contracts, what is admitted, prefetching, batches, bytes, gap to Belady."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.memory import compare, events_of, replay
from moesim.trace import RoutingTrace

# Capacity 2, LRU. Event by event:  use    there     hits  misses  afterwards
#                                  {1,2}   -          0      2     {1,2}
#                                  {0,1}  {1,2}       1      1     {0,1}
#                                  {1,2}  {0,1}       1      1     {1,2}   ... 4 hits, 6 misses
# One by one, ascending: 1 2 0 1 1 2 0 1 1 2; 1 leaves for 0, 2 for 1, then 1 hits, 0 leaves for 2, ...
TURNS = [{1, 2}, {0, 1}, {1, 2}, {0, 1}, {1, 2}]


def test_the_contracts_differ() -> None:
    atomic, sequential = (replay(TURNS, "lru", 2, contract=c) for c in ("event", "sequential"))
    assert (atomic.hits, atomic.misses) == (4, 6) and atomic.contract == "event"
    assert (sequential.hits, sequential.misses) == (2, 8) and sequential.contract == "sequential"
    assert sequential.events == atomic.events == 5 and sequential.union == atomic.union == 10


@pytest.mark.parametrize("contract", ["event", "sequential"])
def test_the_published_toy(contract: str) -> None:
    """arXiv 2608.07911: three layers of four experts, two of each fit; every layer asks the same."""
    step = np.array([[0, 1], [0, 2], [0, 1], [0, 3], [0, 1]])
    trace = RoutingTrace.from_arrays(np.repeat(step[:, None], 3, axis=1), n_experts=4, top_k=2)
    stats = replay(trace, "lru", 2, contract=contract)
    assert (stats.hits, stats.misses, stats.scope) == (12, 18, "layer")
    assert stats.layer_hits.tolist() == [4] * 3 and stats.layer_misses.tolist() == [6] * 3
    pairs = [{(layer, e) for e in row} for row in step.tolist() for layer in range(3)]
    again = replay(pairs, "lru", 2, contract=contract, scope="layer")
    assert (again.hits, again.misses) == (12, 18)


def test_one_cache_for_all_layers() -> None:
    # Two layers take turns, each with one expert: one cache of two holds both, a cache of one is enough for each layer.
    pairs = [{(layer, 0)} for layer in (0, 1)] * 3
    assert replay(pairs, "lru", 1, scope="layer").misses == 2
    assert replay(pairs, "lru", 2, scope="global").misses == 2
    assert replay(pairs, "lru", 1, scope="global").misses == 6


# 1 and 2 come, 3 once, then 1 and 2 again. Free to refuse, Belady never lets 3 in; forced, it loses 2 (needed later).
ONCE = [{1}, {2}, {3}, {1}, {2}]


@pytest.mark.parametrize(("policy", "misses"), [
    ("belady", 3), ({"name": "belady", "bypass": False}, 4), ("lru", 5), ("lfu", 5), ("mark0", 4),
    ({"name": "belady", "bypass": False, "window": 2}, 4)])  # sees 1 come when 3 is admitted: 2 leaves
def test_who_leaves(policy: object, misses: int) -> None:
    assert replay(ONCE, policy, 2).misses == misses


def test_an_event_larger_than_the_cache() -> None:
    # Three experts, room for two: all are served, two stay. Of the next event's two, at least one is there.
    stats = replay([{1, 2, 3}, {1, 2}, {1, 2}], "lru", 2, overflow="stream")
    assert stats.misses in (3, 4) and stats.beyond_room == 1
    assert stats.mean_fill == pytest.approx((3 / 2 + 1 + 1) / 3)
    assert replay([{1, 2, 3}, {1, 2}, {1, 2}], "belady", 2, overflow="stream").misses == 3


def test_what_is_loaded_ahead() -> None:
    # An oracle one event ahead: every use hits; 1 2 1 2 with room for one moves four experts as without it.
    stats = replay([{1}, {2}, {1}, {2}], "lru", 1, prefetcher="oracle")
    assert (stats.hits, stats.misses, stats.loaded_ahead, stats.used_ahead, stats.loads) == (4, 0, 4, 4, 4)
    # Room for two and two events ahead: 1 and 2 before the first event, nothing more.
    stats = replay([{1}, {2}, {1}, {2}], "lru", 2, prefetcher={"name": "oracle", "window": 2})
    assert (stats.loaded_ahead, stats.used_ahead, stats.unused_ahead, stats.oracle) == (2, 2, 0, True)


def test_what_is_loaded_for_nothing() -> None:
    # Token 7 used expert 0 before and uses expert 1 now: 0 is loaded, 1 is missed and drives it out unused.
    before = RoutingTrace.from_arrays(np.array([[[0]]]), 2, 1, token_id=7)
    now = RoutingTrace.from_arrays(np.array([[[1]]]), 2, 1, token_id=7)
    stats = replay(now, "lru", 1, prefetcher="token_id", fit=before)
    assert (stats.misses, stats.loaded_ahead, stats.used_ahead, stats.unused_ahead) == (1, 1, 0, 1)
    assert not stats.oracle


def requests() -> RoutingTrace:
    """Three requests of 1, 3 and 2 tokens; two layers; token t uses expert t in layer 0, 5 - t in layer 1."""
    chosen = np.stack([np.arange(6), 5 - np.arange(6)], axis=1)[:, :, None]
    return RoutingTrace.from_arrays(chosen, 6, 1, request=[0, 1, 1, 1, 2, 2], phase=[1, 0, 0, 1, 0, 1],
                                    step=[0, 0, 0, 1, 2, 3])


@pytest.mark.parametrize(("batching", "expected"), [
    (1, [[0], [1], [2], [3], [4], [5]]),
    (2, [[0, 1], [2, 4], [3, 5]]),  # request 2 takes the place of request 0
    ({"name": "static", "size": 2}, [[0, 1], [2], [3], [4], [5]]),
    ({"name": "continuous", "size": 3, "prompts": "whole"}, [[0, 1, 2, 4], [3, 5]]),
    ("recorded", [[0, 1, 2], [3], [4], [5]])])
def test_which_tokens_run_together(batching: object, expected: list[list[int]]) -> None:
    events = events_of(requests(), batching)
    asked = np.split(events.keys, events.starts[1:-1])
    assert [a.tolist() for a in asked[::2]] == expected
    assert [a.tolist() for a in asked[1::2]] == [sorted(6 + 5 - t for t in tokens) for tokens in expected]
    assert events.uses.sum() == 12 and events.step.tolist() == np.repeat(range(len(expected)), 2).tolist()


def test_like_tokens_run_together() -> None:
    # Six requests of one token for experts 0 1 1 1 0 2, three per pass, all waiting: 1 1 1, then 0 0 and 2.
    trace = RoutingTrace.from_arrays(np.array([0, 1, 1, 1, 0, 2])[:, None, None], 3, 1, request=range(6), phase=1)
    aware = events_of(trace, {"name": "expert_aware", "size": 3, "waiting": 6})
    plain = events_of(trace, {"name": "expert_aware", "size": 3, "waiting": 6, "by_expert": False})
    assert [e.keys.tolist() for e in (aware, plain)] == [[1, 0, 2], [0, 1, 0, 1, 2]]
    # Routes of two layers: 00 11 01 00 10 11. The least alike, 00 and 11, gather 00 (01 or 10) | 11 (10 or 01).
    routes = np.array([[0, 0], [1, 1], [0, 1], [0, 0], [1, 0], [1, 1]])[:, :, None]
    trace = RoutingTrace.from_arrays(routes, 2, 1, request=range(6), phase=1)
    dealt = events_of(trace, {"name": "regroup", "size": 3})
    assert dealt.passes is not None
    first, second = np.split(dealt.passes.rows, dealt.passes.starts[1:-1])
    assert {0, 3} < set(first.tolist()) and {1, 5} < set(second.tolist())
    # each half uses both experts in one layer and one in the other
    assert len(dealt.keys) == 6 < len(events_of(trace, {"name": "regroup", "size": 3, "iterations": 0}).keys) == 8


def test_requests_dealt_once_stay_together() -> None:
    # Four requests of 2 2 1 1 tokens, experts 00 11 0 1, two per batch: as they come 0 1 | 2 3; dealt 0 2 | 1 3.
    trace = RoutingTrace.from_arrays(np.array([0, 0, 1, 1, 0, 1])[:, None, None], 2, 1, request=[0, 0, 1, 1, 2, 3],
                                     phase=1)
    plain, dealt = (events_of(trace, {"name": "regroup", "size": 2, "iterations": i, "deal": "request"})
                    for i in (0, 10))
    for events, passes in ((plain, [[0, 2], [1, 3], [4, 5]]), (dealt, [[0, 4], [1], [2, 5], [3]])):
        assert events.passes is not None
        assert [rows.tolist() for rows in np.split(events.passes.rows, events.passes.starts[1:-1])] == passes
    assert (len(plain.keys), len(dealt.keys)) == (6, 4)
    assert plain.keys.tolist() == events_of(trace, {"name": "static", "size": 2}).keys.tolist()


def test_tokens_share_experts() -> None:
    trace = RoutingTrace.from_arrays(np.array([[[0, 1]], [[0, 2]]]), 3, 2, request=[0, 1], phase=1)
    stats = replay(trace, "lru", 3, batch=2)  # one event {0, 1, 2} of four uses
    assert (stats.logical, stats.union, stats.misses, stats.tokens) == (4, 3, 3, 2)
    assert stats.miss_fraction == 3 / 4 and stats.sharing == 3 / 4
    assert stats.to_dict()["batch"] == 2 and stats.to_dict()["batching"] == "continuous"


def test_room_in_bytes_and_in_shares() -> None:
    trace = requests()
    sizes = replay(trace, "lru", "40 B", expert_bytes=10)  # two caches of 20 B, two experts each
    assert sizes.misses == replay(trace, "lru", 2).misses and sizes.capacity_experts == 4
    assert sizes.bytes_per_token == sizes.misses * 10 / 6
    assert replay(trace, "lru", "50%").capacity_experts == 6  # three of each layer's six
    # One cache of 25 B for experts of 10 B and 20 B: after (0,0), (1,0) only the larger one is left.
    pairs = [{(0, 0)}, {(1, 0)}, {(1, 0)}, {(0, 0)}]
    assert replay(pairs, "lru", "25 B", scope="global", expert_bytes=[10, 20]).hits == 1
    assert replay(pairs, "lru", "30 B", scope="global", expert_bytes=[10, 20]).hits == 2


def test_the_gap_to_belady() -> None:
    """ONCE: LRU misses 5, Belady 3, forced to admit 4: half of the gap of 2 is not admitting 3."""
    table = compare(ONCE, ["lru"], [2], jobs=1).set_index("policy")
    assert table["misses"].to_dict() == {"lru": 5, "belady": 3, "belady(bypass=False)": 4}
    row = table.loc["lru"]
    assert (row["best_causal"], row["gap"], row["admission_share"], row["victim_share"]) == ("lru", 2 / 5, 0.5, 0.5)
    assert table["misses_over_best"].tolist() == pytest.approx([5 / 3, 1, 4 / 3])


def test_counts_of_a_sequence() -> None:
    # Request 0 uses expert 0 three times, request 1 uses 1, 2, 1, 2: only what counts all uses holds on to 0.
    trace = RoutingTrace.from_arrays(np.array([0, 0, 0, 1, 2, 1, 2])[:, None, None], 3, 1,
                                     request=[0, 0, 0, 1, 1, 1, 1], phase=1)
    assert replay(trace, "lfu", 2).hits == 2
    assert replay(trace, {"name": "lfu", "counts": "sequence"}, 2).hits == 4
