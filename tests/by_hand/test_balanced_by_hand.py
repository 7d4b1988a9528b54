"""Balanced routing: every step spread evenly over the experts, whoever its tokens are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moesim
from moesim.balanced import deal
from moesim.placement.evaluation import evaluate
from moesim.placement.solving import solve
from moesim.sim.dealing import Decks
from moesim.sim.engine import Engine
from moesim.sim.inputs import prepare
from moesim.trace import TraceError

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
BALANCED = "trace={balanced: true}"


def test_six_experts_two_per_token() -> None:
    """Three tokens meet all six; the fourth begins again, with the other of its two experts first."""
    trace = deal(np.array([6]), 2, seed=0, model="m")
    deck = trace.chosen[:6, 0].tolist()
    (a, b), (c, d), (e, f) = deck[:3]
    assert sorted([a, b, c, d, e, f]) == list(range(6))
    assert deck[3:] == [[b, a], [d, c], [f, e]]
    assert trace.n_tokens == 6 * 2731 and len(trace.requests) == 2731  # 16384 rows or a few more
    assert trace.meta["model"] == "m" and trace.meta["synthetic"] and trace.meta["balanced"]


@given(sizes=st.lists(st.sampled_from([4, 6, 8, 9, 10, 15]), min_size=1, max_size=3), top_k=st.integers(1, 4),
       start=st.integers(0, 400), n=st.integers(1, 300), step=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_any_tokens_in_a_row_are_spread_evenly(sizes: list[int], top_k: int, start: int, n: int, step: int) -> None:
    trace = deal(np.array(sizes), top_k, seed=1, model="m")
    dealer = Decks.of(trace).source()
    for _ in range(step):
        dealer.next_step()
        dealer.decode(np.arange(start), np.arange(start))
    dealer.next_step()
    some, none = np.array([n // 2, n - n // 2]), np.zeros(2, int)
    rows = [dealer.span(none, none, none, some), dealer.decode(np.arange(3), none), dealer.padding(2, n_rows=9)]
    rows = np.concatenate(rows)
    assert len(rows) == n + 5
    for layer, size in enumerate(sizes):
        loads = np.bincount(trace.chosen[rows, layer].ravel(), minlength=size)
        assert len(loads) == size and loads.max() - loads.min() <= 1
    length = np.lcm.reduce(sizes)
    first = trace.chosen[:length]
    for layer, size in enumerate(sizes):  # over a deck every expert is as often first, second, ...
        for rank in range(top_k):
            assert set(np.bincount(first[:, layer, rank], minlength=size)) == {length // size}


def loads_of_steps(scenario: moesim.Scenario) -> list[np.ndarray]:
    """Run *scenario*; return the tokens of each expert [L, E] in every step."""
    engine, seen = Engine(prepare(scenario)), []
    for island in engine._islands:
        costs = island.costs
        step, chosen = costs.step, costs.chosen

        def watched(batch: Any, half: int = 0, step: Any = step, chosen: Any = chosen) -> Any:
            used = chosen(batch.rows)
            seen.append(np.stack([np.bincount(used[:, layer].ravel(), minlength=4) for layer in range(2)]))
            return step(batch, half)

        costs.step = watched
    engine.run()
    return seen


@pytest.mark.parametrize("overrides", [
    (), ("scheduler=vllm", "scheduler.max_tokens=13"), ("parallelism.ep=1",), ("engine.graphs=64", "model.moe.top_k=3"),
    ("parallelism.mode=context_coherent", "detail=events")], ids=lambda o: " ".join(o) or "plain")
def test_every_step_of_a_run_is_even(overrides: tuple[str, ...]) -> None:
    seen = loads_of_steps(moesim.load(TINY, (BALANCED, *overrides)))
    assert len(seen) > 5
    assert all((loads.max(axis=1) - loads.min(axis=1) <= 1).all() for loads in seen)
    assert len({loads.tobytes() for loads in seen}) > 1


def test_solvers_find_nothing_to_gain() -> None:
    """16 experts on 4 devices: what affinity saves on the decks it saw is chance, on others nothing."""
    trace = deal(np.full(4, 16), 2, seed=0, model="m")
    profile, others = trace.profile(0.5, 0), trace.evaluation(0.5, 0)
    assert len(set(profile.counts().ravel())) == 1
    found = evaluate(solve(profile, 4, solver="affinity_sweep"), others)
    assert found["cross_top1"] == pytest.approx(0.75, abs=0.01)  # three devices of four are others
    assert found["load_max_over_mean"] == pytest.approx(1.0, abs=1e-9)
    assert found["fanout"] == pytest.approx(1 + 12 / 15, abs=0.02)  # the second of two experts, with 15 left to be


def test_a_result_says_that_its_routing_is_balanced_and_repeats() -> None:
    scenario = moesim.load(TINY, (BALANCED,))
    result, again = moesim.simulate(scenario), moesim.simulate(moesim.override(scenario, ()))
    assert result.meta["trace"]["join"] == "balanced" and result.meta["trace"]["synthetic"] is True
    assert result.meta["warnings"][0].startswith("the routing is balanced (trace.balanced)")
    assert not any("synthetic" in w or "trace is short" in w for w in result.meta["warnings"])
    assert result.steps.equals(again.steps) and (result.steps["load_max_over_mean"] == 1).all()


@pytest.mark.parametrize(("text", "said"), [
    ("{balanced: true, join: paired}", "trace.join: is about a trace, and balanced has none; remove it"),
    ("{balanced: true, scaled: true}", "trace.scaled: is about a trace"),
    ("{balanced: true, any_phase: true}", "trace.any_phase: is about a trace"),
    ("{balanced: true, synthetic: {preset: dsv2_lite}}", "give exactly one of path"),
    ("{balanced: false}", "balanced: true")])
def test_what_does_not_go_with_it_is_refused(text: str, said: str) -> None:
    with pytest.raises(moesim.ConfigError, match=said):
        moesim.load(TINY, (f"trace={text}",))


def test_layers_without_a_deck_in_common_are_refused() -> None:
    with pytest.raises(TraceError, match=r"\[61, 62, 63, 64\] experts are dealt evenly together only after 7624512"):
        deal(np.array([61, 62, 63, 64]), 2, seed=0, model="m")
    with pytest.raises(moesim.ConfigError, match="trace: layers of"):
        prepare(moesim.load(TINY, (BALANCED, "model.layers=4", "model.moe.experts=[61, 62, 63, 64]")))
