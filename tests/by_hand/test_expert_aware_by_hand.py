"""Batches of tokens that choose the same experts, worked on paper; what every order of them promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_machine import dense

import moesim
from moesim.serving.group import Group, example
from moesim.serving.schedulers.expert_aware import ExpertAware
from moesim.serving.schedulers.vllm import Vllm
from moesim.sim.engine import Engine
from moesim.sim.inputs import prepare

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"


def steps(group: Group, scheduler: ExpertAware | Vllm, n: int = 50) -> list[dict[int, int]]:
    """Return the requests and tokens of the next *n* steps, or of all until everybody is served."""
    found = []
    while len(found) < n and (len(group.running) or group.n_waiting):
        requests, tokens = scheduler.plan(group)
        group.complete(group.advance(requests, tokens))
        found.append(dict(zip(requests.tolist(), tokens.tolist(), strict=True)))
    return found


def choosing(sets: list[list[int]], outputs: int = 1, blocks: int = 99) -> Group:
    """Return a group of requests with one prompt token, all of whose tokens choose these experts."""
    group = example([1] * len(sets), [outputs] * len(sets), blocks)
    of = np.array([np.bincount(chosen, minlength=9) for chosen in sets])
    group.demand = lambda requests, past, tokens: of[requests] * tokens[:, None]
    return group


def test_the_longest_queue_then_whoever_needs_no_other_expert() -> None:
    """Expert 1 has three tokens, of requests 1, 2 and 4, which read experts 1, 2 and 3: request 3 needs no other.

    What is left, 0 and 5, has queues of one: who came first.
    """
    group = choosing([[0, 3], [1, 2], [1, 3], [2], [1], [4, 2]])
    assert steps(group, ExpertAware(max_tokens=4), 1) == [{1: 1, 2: 1, 4: 1, 3: 1}]
    assert steps(group, ExpertAware(max_tokens=1), 2) == [{0: 1}, {5: 1}]


def test_a_prompt_is_cut_where_the_step_is_full_and_brings_all_its_experts() -> None:
    group = example([6, 1, 1, 1], [1, 1, 1, 1], blocks=9, experts=[0, 1, 1, 0])
    assert steps(group, ExpertAware(max_tokens=4)) == [{0: 4}, {0: 2, 3: 1, 1: 1}, {2: 1}]


def test_who_is_passed_over_too_often_comes_first() -> None:
    """Expert 1 has two tokens in every step, expert 0 one: after three steps without it, it is its turn."""
    group = choosing([[0], [1], [1]], outputs=8)
    found = steps(group, ExpertAware(max_tokens=2, patience=3), 8)
    assert [sorted(step) for step in found] == [[1, 2]] * 3 + [[0, 1]] + [[1, 2]] * 3 + [[0, 1]]


def test_who_is_overdue_and_finds_no_memory_lets_nobody_else_in() -> None:
    """Four blocks of 16 tokens. Request 1 needs three; 0 holds two until its end, 2 would fit beside it."""
    group = example([1, 1, 1], [20, 40, 2], blocks=4, experts=[0, 1, 0])
    held = example([1, 1, 1], [20, 40, 2], blocks=4, experts=[0, 1, 0])
    assert [sorted(s) for s in steps(group, ExpertAware(max_tokens=8, patience=99), 2)] == [[0, 2], [0, 2]]
    found = steps(held, ExpertAware(max_tokens=1, patience=1), 30)  # 1 is overdue from the second step on
    assert [sorted(s) for s in found[:20]] == [[0]] * 20 and sorted(found[20]) == [1]
    assert {2} in [set(s) for s in found[21:]]


def test_who_knows_nothing_of_experts_serves_in_order() -> None:
    lengths = [5, 30, 1, 12, 7], [4, 4, 9, 1, 3]
    limits = {"max_batch": 3, "max_tokens": 8}
    blind, plain = (steps(example(*lengths, blocks=99), part) for part in (ExpertAware(**limits), Vllm(**limits)))
    assert blind == plain and len(plain) > 8


@given(sets=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=9),
       outputs=st.integers(1, 12), limits=st.tuples(st.integers(1, 9), st.integers(1, 6)), patience=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_nobody_starves(sets: list[list[int]], outputs: int, limits: tuple[int, int], patience: int) -> None:
    """Whoever runs is chosen again within *patience* steps and one for each of the others, and all are served."""
    group, (max_batch, max_tokens) = choosing(sets, outputs), limits
    scheduler = ExpertAware(max_batch=max_batch, max_tokens=max_tokens, patience=patience)
    while len(group.running) or group.n_waiting:
        requests, tokens = scheduler.plan(group)
        assert 0 < tokens.sum() <= max_tokens and (group.passed[requests] == 0).all()
        assert (group.passed[group.running] < patience + len(sets)).all()
        group.complete(group.advance(requests, tokens))
    assert (group.requests.produced == outputs).all()


@pytest.mark.parametrize("overrides", [(), ("parallelism.ep=1", "kv.blocks=12"), ("parallelism.tp=2",)])
def test_what_it_knows_is_what_tokens_choose(overrides: tuple[str, ...]) -> None:
    """The experts that a group's plan counts on are those that the step runs."""
    engine = Engine(prepare(moesim.load(TINY, ("scheduler={name: expert_aware, max_tokens: 9}", *overrides))))
    demand, chosen, seen = engine._inputs.demand, engine._inputs.trace.chosen, []
    for island in engine._islands:
        batch_of = island._batch

        def watched(planned: list, batch_of=batch_of, live=engine._live) -> object:
            told = sum(demand(r, live.computed[r], t).sum(axis=0) for r, t in planned)
            batch = batch_of(planned)
            runs = [np.bincount(chosen[batch.rows, layer].ravel(), minlength=4) for layer in range(2)]
            seen.append(np.array_equal(told, np.concatenate(runs)))
            return batch

        island._batch = watched
    result = engine.run()
    assert len(seen) > 10 and all(seen)
    assert result.requests["finish_s"].notna().all()
    assert any("knows the experts of every token before its step runs" in w for w in result.meta["warnings"])


def test_it_is_refused_where_nobody_can_know(tmp_path: Path) -> None:
    with pytest.raises(moesim.ConfigError, match="scheduler: expert_aware looks at experts, and model hand has none"):
        dense(tmp_path, [(0, 1, 1)], 1, "scheduler=expert_aware")
    with pytest.raises(moesim.ConfigError, match="with trace.balanced that depends on the step they run in"):
        moesim.load(TINY, ("trace={balanced: true}", "scheduler=expert_aware"))
    with pytest.raises(moesim.ConfigError, match="engine.asynchronous: must be false with scheduler expert_aware"):
        moesim.load(TINY, ("engine.asynchronous=true", "scheduler=expert_aware"))
