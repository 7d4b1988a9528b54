"""Laws of copies, places and compositions of experts: nothing is lost, nothing beats its slowest link."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.memory import replay
from moesim.memory.allocation import Symbol, allocate, offsets_of, peak_bytes
from moesim.memory.composition import Node, one_link, serve
from moesim.memory.dma import Copy, Engine, Traffic, fair_rates, run
from moesim.memory.mapping import choose

sizes = st.floats(0.5, 50)
engines = st.builds(Engine, st.floats(1, 20), st.sampled_from([(), ("t",)]), st.integers(1, 3),
                    st.sampled_from([0.0, 2.0]), st.sampled_from([0.0, 0.1]))
copies = st.lists(st.builds(Copy, sizes, st.sampled_from([("a",), ("b",), ("b", "a")]), st.floats(0, 5),
                            st.integers(0, 2), st.sampled_from([math.inf, 20.0, 7.0])), min_size=1, max_size=8)


@settings(max_examples=40)
@given(copies, engines, engines, st.lists(st.builds(Traffic, sizes, st.just("t"), st.floats(1, 20), st.floats(0, 5)),
                                          max_size=2))
def test_bytes_are_kept_and_no_chain_beats_its_slowest_link(asked: list[Copy], a: Engine, b: Engine,
                                                            traffic: list[Traffic]) -> None:
    made, room = {"a": a, "b": b}, {"t": 15.0}
    found = run(asked, made, room, traffic)
    for i, copy in enumerate(asked):
        for engine in copy.route:
            own = (found.chunks["copy"] == i) & (found.chunks["engine"] == engine)
            assert found.chunks.loc[own, "bytes"].sum() == pytest.approx(copy.bytes)
        limit = min(made[e].bandwidth if not made[e].tiers else min(made[e].bandwidth, 15) for e in copy.route)
        took = found.copies["finish_s"][i] - copy.ready_s
        assert took >= copy.bytes / limit * (1 - 1e-9) and found.copies["start_s"][i] >= copy.ready_s
    for name, some in found.chunks.groupby("engine"):
        busy = [(s, 1) for s in some["start_s"]] + [(f, -1) for f in some["finish_s"]]
        assert max(itertools.accumulate(change for _, change in sorted(busy))) <= made[name].lanes
    passed = [c.bytes for c in asked for e in c.route if made[e].tiers] + [t.bytes for t in traffic]
    ends = [*found.copies["finish_s"], *found.traffic["finish_s"]]
    assert sum(passed) <= 15 * max(ends) * (1 + 1e-9)


@settings(max_examples=30)
@given(copies)
def test_one_engine_is_never_idle_while_something_waits(asked: list[Copy]) -> None:
    """One lane, no setup: the end is that of a queue that serves the same bytes in any order."""
    plain = [Copy(c.bytes, ("a",), c.ready_s, c.priority, c.chunk_bytes) for c in asked]
    end = 0.0
    for copy in sorted(plain, key=lambda c: c.ready_s):
        end = max(end, copy.ready_s) + copy.bytes / 10
    assert run(plain, {"a": Engine(10)}).copies["finish_s"].max() == pytest.approx(end)


@given(st.lists(st.sampled_from([("a",), ("b",), ("a", "b"), ("b", "c"), ("a", "b", "c")]), min_size=1, max_size=8),
       st.tuples(st.floats(1, 9), st.floats(1, 9), st.floats(1, 9)))
def test_rates_are_max_min_fair(uses: list[tuple[str, ...]], limits: tuple[float, ...]) -> None:
    """No room is overrun, and each flow passes a full one in which nobody has more (the definition)."""
    room = dict(zip("abc", limits, strict=True))
    rates = fair_rates(uses, room)
    inside = {name: [r for r, flow in zip(rates, uses, strict=True) if name in flow] for name in room}
    assert all(sum(inside[n]) <= room[n] * (1 + 1e-9) for n in room)
    for rate, flow in zip(rates, uses, strict=True):
        assert any(sum(inside[n]) >= room[n] * (1 - 1e-9) and rate >= max(inside[n]) * (1 - 1e-9) for n in flow)


symbols = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 100), st.integers(0, 5), st.integers(0, 3)), min_size=1,
                   max_size=8).map(lambda rows: [Symbol(str(i), b, m, (at, at + n))
                                                 for i, (b, m, at, n) in enumerate(rows)])


@given(symbols)
def test_nothing_that_lives_at_one_time_lies_at_one_place(given_symbols: list[Symbol]) -> None:
    offsets = offsets_of(given_symbols)
    placed = list(zip(given_symbols, offsets, strict=True))
    for (a, x), (b, y) in itertools.combinations(placed, 2):
        if a.lives[0] <= b.lives[1] and b.lives[0] <= a.lives[1]:
            assert x + a.bytes <= y or y + b.bytes <= x
    assert peak_bytes(given_symbols) <= max(x + a.bytes for a, x in placed) <= sum(s.bytes for s in given_symbols)


@settings(max_examples=40)
@given(symbols, st.integers(0, 120), st.integers(0, 120))
def test_a_larger_tier_keeps_at_least_the_traffic(given_symbols: list[Symbol], room: int, more: int) -> None:
    """And what went down moves no more than anything that stayed."""
    moved = []
    for size in (room, room + more):
        table = allocate(given_symbols, {"hbm": size, "ddr": 10_000})
        near = table["tier"] == "hbm"
        moved.append(table.loc[near, "moved_bytes"].sum())
        if near.any() and not near.all():
            assert table.loc[~near, "moved_bytes"].max() <= table.loc[near, "moved_bytes"].min()
    assert moved[0] <= moved[1]


orders = st.lists(st.integers(0, 5), min_size=1, max_size=40)


@settings(max_examples=40)
@given(orders, st.lists(st.integers(1, 9), min_size=6, max_size=6), st.integers(9, 30), st.integers(0, 30))
def test_more_hbm_never_switches_more_often(order: list[int], size: list[int], room: int, more: int) -> None:
    """What is near in less room is near in more (Mattson et al., 1970), experts of all sizes included."""
    few, many = (serve([order], size, Node(one_link(1.0), r, 1000), 1.0)["hit"].to_numpy() for r in (room, room + more))
    assert (few <= many).all()


@settings(max_examples=30)
@given(orders, st.integers(1, 6))
def test_equal_experts_are_an_lru_cache(order: list[int], slots: int) -> None:
    """The twin is the replay of expert caches, another program."""
    hits = serve([order], np.full(6, 2.0), Node(one_link(1.0), 2.0 * slots, 1000), 1.0)["hit"].sum()
    assert hits == replay([{e} for e in order], "lru", slots).hits


@settings(max_examples=30)
@given(orders, st.integers(2, 6))
def test_overlapping_is_never_slower_and_never_beats_link_or_node(order: list[int], slots: int) -> None:
    tables = [serve([order], np.full(6, 2.0), Node(one_link(1.0), 2.0 * slots, 1000, switch=s), 1.5)  # type: ignore[arg-type]
              for s in ("all_links", "overlapped")]
    ends = [t["run_finish_s"].max() for t in tables]
    assert ends[1] <= ends[0] * (1 + 1e-9) and (tables[0]["hit"] == tables[1]["hit"]).all()
    assert ends[1] >= max(1.5 * len(order), tables[1]["copied_bytes"].sum() + 1.5) * (1 - 1e-9)
    assert ends[0] == pytest.approx(1.5 * len(order) + tables[0]["copied_bytes"].sum())


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=3), st.tuples(*[st.integers(1, 9)] * 3),
       st.integers(9, 27))
def test_the_choice_of_experts_is_the_best_of_all(quality: list[tuple[int, ...]], size: tuple[int, ...],
                                                  room: int) -> None:
    """Against all choices, one after the other."""
    demand = np.arange(1, len(quality) + 1.0)

    def worth(picks: tuple[int, ...]) -> float:
        fits = sum(size[e] for e in set(picks)) <= room
        return sum(d * q[e] for d, q, e in zip(demand, quality, picks, strict=True)) if fits else -math.inf

    best = max(worth(picks) for picks in itertools.product(range(3), repeat=len(quality)))
    assert worth(tuple(map(int, choose(quality, demand, size, room)))) == pytest.approx(best)


@given(symbols)
def test_the_peak_is_the_most_that_lives_in_any_step(given_symbols: list[Symbol]) -> None:
    steps = (sum(s.bytes for s in given_symbols if s.lives[0] <= step <= s.lives[1]) for step in range(9))
    assert peak_bytes(given_symbols) == max(steps)
