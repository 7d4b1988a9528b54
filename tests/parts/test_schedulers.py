"""What every scheduler and request router promises, whatever its rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import registry
from moesim.serving.group import Group, Requests
from moesim.serving.pool import Pool, PrefixPool, block_hashes

OPTIONS = {
    "vllm": [{}, {"chunked": False}], "static": [{}], "decode_first": [{}, {"reserve": False, "refill": 0.0}],
    "prefill_first": [{}, {"prefill": "mixed"}, {"reserve": False}, {"prefill": "mixed", "reserve": False}]}
KINDS = [(name, options) for name in registry.names("scheduler") for options in OPTIONS.get(name, [{}])]
ROUTERS = registry.names("request_router")


@st.composite
def requests(draw: st.DrawFn) -> pd.DataFrame:
    """Draw a few short requests: lengths, priorities, before which step they come, tokens of two kinds."""
    n = draw(st.integers(1, 7))
    prompt, output = (np.array(draw(st.lists(st.integers(1, most), min_size=n, max_size=n))) for most in (12, 6))
    ids = [draw(st.lists(st.integers(0, 1), min_size=k, max_size=k)) for k in (prompt + output).tolist()]
    return pd.DataFrame({
        "arrival_s": 0.0, "prompt_tokens": prompt, "output_tokens": output, "ids": ids,
        "priority": draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)) if draw(st.booleans()) else 0,
        "step": sorted(draw(st.lists(st.integers(0, 12), min_size=n, max_size=n)))})


def pools(table: pd.DataFrame, spare: int, block: int, shared: bool, n_groups: int) -> list[Pool]:
    """Return the memory of each group: the longest request fits, and *spare* blocks more."""
    blocks = int(-(-(table["prompt_tokens"] + table["output_tokens"] - 1).max() // block)) + spare
    hashes = [block_hashes(np.array(ids), block) for ids in table["ids"]]
    return [PrefixPool(blocks, block, len(table), hashes.__getitem__) if shared else Pool(blocks, block, len(table))
            for _ in range(n_groups)]


class Watched:
    """A group that counts: *computed* tokens of each request in steps, and those *lost* to preemption again."""

    def __init__(self, live: Requests, pool: Pool, scheduler: Any):
        self.group, self.live, self.scheduler = Group(live, pool), live, scheduler
        self.computed, self.lost = np.zeros((2, len(live)), int)

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        before, had = self.live.preemptions.copy(), self.live.computed.copy()
        who, tokens = self.scheduler.plan(self.group)
        hit = self.live.preemptions - before
        assert (hit <= 1).all()
        self.lost += hit * had
        assert len(set(who.tolist())) == len(who) and set(who.tolist()) <= set(self.group.running.tolist())
        assert (tokens > 0).all() and (tokens <= self.live.left(who)).all()
        assert len(self.group.running) <= self.scheduler.max_batch
        _within(self.scheduler, self.live, who, tokens)
        return who, tokens

    def check(self) -> None:
        """Assert that memory is as large as it is, and holds what is computed."""
        pool, running = self.group.pool, self.group.running
        assert 0 <= pool.free <= pool.capacity
        assert (pool.held[running] * pool.block >= self.live.computed[running]).all()
        if not isinstance(pool, PrefixPool):
            assert pool.free == pool.capacity - pool.held[running].sum()


@pytest.mark.parametrize(("name", "options"), KINDS)
@given(table=requests(), spare=st.integers(0, 8), block=st.integers(1, 4), shared=st.booleans(), ahead=st.booleans(),
       limits=st.tuples(st.integers(1, 5), st.integers(1, 16)), n_groups=st.integers(1, 3),
       router=st.sampled_from(ROUTERS))
@settings(max_examples=15)
def test_everybody_is_served_once(name: str, options: dict, router: str, table: pd.DataFrame, spare: int, block: int,
                                  shared: bool, ahead: bool, limits: tuple[int, int], n_groups: int) -> None:
    """Nobody is lost or runs twice, limits hold, and a token is computed once, but for what preemption repeats.

    *ahead*: a step is planned while the one before it runs.
    """
    live = Requests(table)
    scheduler = registry.make("scheduler", {"name": name, "max_batch": limits[0], "max_tokens": limits[1]} | options)
    chooser = registry.make("request_router", router)
    all_watched = [Watched(live, pool, scheduler) for pool in pools(table, spare, block, shared, n_groups)]
    groups, planned = [w.group for w in all_watched], [None] * n_groups
    arrived = step = 0
    while arrived < len(table) or any(len(g.running) or g.n_waiting for g in groups):
        while arrived < len(table) and table["step"][arrived] <= step:
            groups[chooser.choose(arrived, groups, arrived)].add(arrived)
            arrived += 1
        for g, watched in enumerate(all_watched):
            who, tokens = planned[g] or watched.plan()
            assert len(who) or not groups[g].n_waiting and not len(groups[g].running), "whoever can run, runs"
            watched.computed[who] += tokens
            stepped = groups[g].advance(who, tokens)
            planned[g] = watched.plan() if ahead else None
            planned[g] = planned[g] if ahead and len(planned[g][0]) else None
            groups[g].complete(stepped)
            watched.check()
        step += 1
        assert step < 2000, "somebody waits for ever"
    _served(live, all_watched, shared, ahead)
    if options.get("reserve", name != "vllm"):
        assert not live.preemptions.any(), "with room for all of it nobody is thrown out"


def _served(live: Requests, all_watched: list[Watched], shared: bool, ahead: bool) -> None:
    """Assert that all have their answers and no more, and that every token was computed as often as need be."""
    assert live.produced.tolist() == live.output.tolist()
    for watched in all_watched:
        pool = watched.group.pool
        assert pool.free == pool.capacity and not pool.held.any() and watched.group.promised == 0
    computed, lost = (sum(getattr(w, what) for w in all_watched) for what in ("computed", "lost"))
    gone = live.computed == 0  # preempted while the last token was on its way: nothing is computed again
    assert ahead or not gone.any()
    assert (live.computed[~gone] == live.stored[~gone]).all()
    if shared:
        assert (computed <= live.computed + lost).all() and (live.cached < live.prompt).all()
    else:
        assert computed.tolist() == (live.computed + lost).tolist() and not live.cached.any()


def _within(scheduler: Any, live: Requests, who: np.ndarray, tokens: np.ndarray) -> None:
    """Assert that a step keeps to max_tokens, as far as its scheduler promises: chunks all, whole prompts but one."""
    prompts = (live.left(who) > 1) | (live.produced[who] == 0)
    if getattr(scheduler, "chunked", False):
        assert tokens.sum() <= scheduler.max_tokens
    else:
        assert (tokens == live.left(who)).all()
        assert tokens[prompts].sum() <= scheduler.max_tokens or prompts.sum() == 1


@pytest.mark.parametrize("router", ROUTERS)
def test_routers_with_one_group_have_no_choice(router: str) -> None:
    table = pd.DataFrame({"arrival_s": [0.0], "prompt_tokens": [4], "output_tokens": [2]})
    live = Requests(table)
    assert registry.make("request_router", router).choose(0, [Group(live, Pool(4, 4, 1))], turn=7) == 0
