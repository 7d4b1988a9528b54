"""Expert caches on 54,000 decoded tokens of GPT-OSS-20B: what the literature finds on other traces holds here."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim.memory import CacheError, Events, compare, events_of, replay
from moesim.trace import read_trace

pytestmark = pytest.mark.external


@pytest.fixture(scope="module")
def one(shared_data: Path) -> Events:
    return events_of(read_trace(shared_data / "routing/gptoss20b_decode_167seq.npz"))


@pytest.fixture(scope="module")
def eight(one: Events) -> Events:
    assert one.trace is not None
    return events_of(one.trace, 8)


def test_sizes(one: Events, eight: Events) -> None:
    assert (len(one.time), len(one.keys)) == (54354 * 24, 54354 * 24 * 4)
    assert eight.uses.sum() == len(one.keys) and len(eight.keys) / len(one.keys) == pytest.approx(0.523, abs=0.001)


@pytest.mark.slow
def test_sequential_replay_punishes_lru_alone(eight: Events) -> None:
    """arXiv 2608.07911, Table 2: LRU and LFRU 27 to 29 % more misses, LFU, Belady and static at most 5 %."""
    more = {p: replay(eight, p, "40%", "sequential").misses / replay(eight, p, "40%", overflow="stream").misses - 1
            for p in ("lru", "lfu", "belady")}
    assert more["lru"] > 0.25 and more["lfu"] < 0.06 and more["belady"] < 0.09


def test_most_of_the_gap_is_the_future(one: Events) -> None:
    """Same paper, Table 14: at small batches 84 to 97 % of the gap to Belady is knowing future victims."""
    table = compare(one, ["lru", "lfru"], ["40%", "60%"])
    assert table["best_causal"].unique().tolist() == ["lfru"]
    assert table["victim_share"].between(0.84, 0.97).all() and table["gap"].between(0.4, 0.6).all()


def test_scope_matters_little_to_belady(one: Events) -> None:
    """arXiv 2608.12103: one cache for all layers or one for each differ by at most 2.7 points."""
    ratio = [replay(one, "belady", capacity, scope=scope).hit_ratio for capacity, scope in ((13, "layer"),
                                                                                           (13 * 24, "global"))]
    assert ratio[1] == pytest.approx(ratio[0], abs=0.027)


@pytest.mark.parametrize("name", ["gptoss20b_decode_167seq.npz", "esft_dsv2lite_summary.npz"])
def test_no_public_trace_says_what_came_next_in_rank(shared_data: Path, name: str) -> None:
    with pytest.raises(CacheError, match="ranks no candidates beyond the . that each token uses"):
        replay(read_trace(shared_data / "routing" / name), "lru", 8, reroute="cache_conditional")
