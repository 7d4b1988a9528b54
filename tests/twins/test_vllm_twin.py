"""``vllm`` and the KV pools against a plain, slow engine core written after vLLM's own, step by step.

After v1/core/sched/scheduler.py (``schedule``, ``_preempt_request``, ``update_from_output``), v1/core/block_pool.py and
v1/core/kv_cache_manager.py of vLLM, without what moesim has not (speculation, encoders, LoRA, connectors): queues are
lists of requests, blocks are objects that know who uses them and the very tokens up to their end. With pipeline
parallelism, batches wait in a queue for their turn to come back (v1/engine/core.py, ``step_with_batch_queue``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.serving.group import Group, Requests
from moesim.serving.pool import Pool, PrefixPool, block_hashes
from moesim.serving.schedulers.vllm import Vllm


@dataclass(eq=False)
class Block:
    """A block of KV memory; *content*: all tokens to its end, if it is known by them."""

    users: int = 0
    content: tuple[int, ...] | None = None


@dataclass(eq=False)
class Asked:
    """A request; *ids*: prompt and answer, of which *n_known* are there."""

    number: int
    priority: int
    ids: tuple[int, ...]
    n_known: int
    computed: int = 0
    preemptions: int = 0
    cached: int = -1
    blocks: list[Block] = field(default_factory=list)
    n_named: int = 0


class Core:
    """Scheduler, queue and memory of one engine."""

    def __init__(self, max_batch: int, max_tokens: int, by_priority: bool, n_blocks: int, size: int, caching: bool):
        self.max_batch, self.max_tokens, self.by_priority = max_batch, max_tokens, by_priority
        self.size, self.caching = size, caching
        self.free = [Block() for _ in range(n_blocks)]   # the first is taken next
        self.named: dict[tuple[int, ...], list[Block]] = {}
        self.waiting: list[Asked] = []
        self.running: list[Asked] = []

    def put_back(self, request: Asked) -> None:
        self.waiting.insert(0, request)

    def front(self) -> Asked:
        if self.by_priority:
            return min(self.waiting, key=lambda r: (r.priority, r.number))
        return self.waiting[0]

    def hits(self, request: Asked) -> list[Block]:
        found: list[Block] = []
        for end in range(self.size, request.n_known, self.size):  # one token at least is left to compute
            if not self.caching or request.ids[:end] not in self.named:
                break
            found.append(self.named[request.ids[:end]][0])
        return found

    def allocate(self, request: Asked, count: int, found: list[Block]) -> bool:
        end = request.computed + len(found) * self.size + count
        new = max(0, -(-end // self.size) - len(request.blocks) - len(found))
        if new + sum(block.users == 0 for block in found) > len(self.free):
            return False
        for block in found:
            if block.users == 0:
                self.free.remove(block)
            block.users += 1
        request.blocks += found
        request.n_named = max(request.n_named, len(found))
        for _ in range(new):
            block = self.free.pop(0)
            if block.content is not None:
                self.named[block.content].remove(block)
                if not self.named[block.content]:
                    del self.named[block.content]
                block.content = None
            block.users = 1
            request.blocks.append(block)
        while self.caching and (request.n_named + 1) * self.size <= min(end, request.n_known):
            block = request.blocks[request.n_named]
            request.n_named += 1
            block.content = request.ids[: request.n_named * self.size]
            self.named.setdefault(block.content, []).append(block)
        return True

    def release(self, request: Asked) -> None:
        for block in reversed(request.blocks):
            block.users -= 1
            if block.users == 0:
                self.free.append(block)
        request.blocks, request.n_named = [], 0

    def schedule(self) -> dict[int, int]:
        budget, given, served = self.max_tokens, dict[int, int](), list[Asked]()
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            count = min(request.n_known - request.computed, budget)
            if count == 0:  # all its tokens are on their way
                index += 1
                continue
            while not (room := self.allocate(request, count, [])):
                if self.by_priority:
                    victim = max(self.running, key=lambda r: (r.priority, r.number))
                    self.running.remove(victim)
                    if victim in served:
                        served.remove(victim)
                        budget += given.pop(victim.number)
                        index -= 1
                else:
                    victim = self.running.pop()
                self.release(victim)
                victim.computed = 0
                victim.preemptions += 1
                self.put_back(victim)
                preempted = True
                if victim is request:
                    break
            if not room:
                break
            served.append(request)
            given[request.number] = count
            budget -= count
            index += 1
        while not preempted and self.waiting and budget > 0 and len(self.running) < self.max_batch:
            request = self.front()
            found = self.hits(request)
            count = min(request.n_known - len(found) * self.size, budget)
            if not self.allocate(request, count, found):
                break
            self.waiting.remove(request)
            self.running.append(request)
            request.computed = len(found) * self.size
            if request.cached < 0:
                request.cached = request.computed
            given[request.number] = count
            budget -= count
        for request in self.running:
            request.computed += given.get(request.number, 0)
        return given

    def sampling(self, given: dict[int, int]) -> list[int]:
        """Return who of a step that has just been scheduled gets a token."""
        return [r.number for r in self.running if r.number in given and r.computed == r.n_known]

    def update(self, sampled: list[int]) -> list[int]:
        """Take the tokens that a step has given; return who is done."""
        done = []
        for number in sampled:
            (request,) = [r for r in self.running + self.waiting if r.number == number]
            request.n_known += 1
            if request.n_known == len(request.ids):
                (self.running if request in self.running else self.waiting).remove(request)
                self.release(request)
                done.append(number)
        return done


@st.composite
def workloads(draw: st.DrawFn) -> pd.DataFrame:
    """Draw requests that begin alike: a few of the same tokens, then some of two kinds."""
    n = draw(st.integers(1, 8))
    begin = draw(st.lists(st.integers(0, 1), min_size=10, max_size=10))
    rows = []
    for _ in range(n):
        prompt, output, alike = draw(st.integers(1, 14)), draw(st.integers(1, 8)), draw(st.integers(0, 10))
        own = draw(st.lists(st.integers(0, 1), min_size=prompt + output, max_size=prompt + output))
        rows.append({"arrival_s": 0.0, "prompt_tokens": prompt, "output_tokens": output,
                     "ids": (begin[:alike] + own)[: prompt + output], "priority": draw(st.integers(0, 2))})
    return pd.DataFrame(rows).assign(step=sorted(draw(st.lists(st.integers(0, 15), min_size=n, max_size=n))))


@pytest.mark.parametrize("kind", ["first come, first served", "priority", "prefix cache"])
@given(table=workloads(), spare=st.integers(0, 10), size=st.integers(1, 4), max_batch=st.integers(1, 6),
       max_tokens=st.integers(1, 24))
@settings(max_examples=60)
def test_every_step_is_vllms(kind: str, table: pd.DataFrame, spare: int, size: int, max_batch: int, max_tokens: int
                             ) -> None:
    """Who runs, in which order, how many tokens; who waits, how much memory is free, and what is found there."""
    table = table if kind == "priority" else table.drop(columns="priority")
    blocks = int(-(-(table["prompt_tokens"] + table["output_tokens"] - 1).max() // size)) + spare
    hashes = [block_hashes(np.array(ids), size) for ids in table["ids"]]
    live, caching = Requests(table), kind == "prefix cache"
    group = Group(live, PrefixPool(blocks, size, len(table), hashes.__getitem__) if caching
                  else Pool(blocks, size, len(table)))
    scheduler = Vllm(max_batch, max_tokens)
    core = Core(max_batch, max_tokens, kind == "priority", blocks, size, caching)
    asked = [Asked(i, int(live.priority[i]), tuple(ids), int(live.prompt[i])) for i, ids in enumerate(table["ids"])]
    arrived = step = 0
    while arrived < len(table) or core.running or core.waiting:
        while arrived < len(table) and table["step"][arrived] <= step:
            core.waiting.append(asked[arrived])
            group.add(arrived)
            arrived += 1
        step += 1
        if not core.running and not core.waiting:
            continue
        while not (expected := core.schedule()):  # whoever was in turn gave way: vLLM's step is empty
            pass
        requests, tokens = scheduler.plan(group)
        assert list(zip(requests.tolist(), tokens.tolist(), strict=True)) == list(expected.items())
        assert group.running.tolist() == [r.number for r in core.running]
        queue = core.waiting if kind != "priority" else sorted(core.waiting, key=lambda r: (r.priority, r.number))
        assert group.waiting() == [r.number for r in queue]
        assert group.pool.free == len(core.free)
        assert sorted(group.complete(group.advance(requests, tokens)).tolist()) == sorted(
            core.update(core.sampling(expected)))
        assert group.pool.free == len(core.free)
    assert live.preemptions.tolist() == [r.preemptions for r in asked]
    assert live.cached.tolist() == [r.cached for r in asked]


@pytest.mark.parametrize("caching", [False, True])
@given(table=workloads(), spare=st.integers(0, 10), size=st.integers(1, 4), max_batch=st.integers(1, 6),
       max_tokens=st.integers(1, 24), stages=st.integers(2, 4))
@settings(max_examples=25)
def test_every_batch_of_a_pipeline_is_vllms(caching: bool, table: pd.DataFrame, spare: int, size: int, max_batch: int,
                                            max_tokens: int, stages: int) -> None:
    """As above, with up to *stages* batches under way. With more than two there is memory for all.

    Else vLLM may admit who was preempted while its token is on its way, and produce that token twice; a group waits.
    """
    table, n = table.drop(columns="priority"), len(table)
    needed = -(-(table["prompt_tokens"] + table["output_tokens"] - 1) // size)
    blocks = int(needed.max()) + spare if stages == 2 else int(needed.sum())
    hashes = [block_hashes(np.array(ids), size) for ids in table["ids"]]
    live = Requests(table)
    group = Group(live, PrefixPool(blocks, size, n, hashes.__getitem__) if caching else Pool(blocks, size, n))
    scheduler, core = Vllm(max_batch, max_tokens), Core(max_batch, max_tokens, False, blocks, size, caching)
    asked = [Asked(i, 0, tuple(ids), int(live.prompt[i])) for i, ids in enumerate(table["ids"])]
    arrived = step = 0
    flights: list[tuple[np.ndarray, list[int]]] = []
    while arrived < n or core.running or core.waiting or flights:
        while arrived < n and table["step"][arrived] <= step:
            core.waiting.append(asked[arrived])
            group.add(arrived)
            arrived += 1
        step += 1
        if len(flights) < stages:
            had = len(core.running)
            expected = core.schedule()
            if not expected and len(core.running) < had and not flights:  # whoever was in turn gave way
                expected = core.schedule()
            requests, tokens = scheduler.plan(group)
            assert list(zip(requests.tolist(), tokens.tolist(), strict=True)) == list(expected.items())
            if expected:
                flights.append((group.depart(requests, tokens), core.sampling(expected)))
                assert sorted(flights[-1][0].tolist()) == sorted(flights[-1][1])
                continue
        if flights:
            stepped, sampled = flights.pop(0)
            group.arrive(stepped)
            assert sorted(group.complete(stepped).tolist()) == sorted(core.update(sampled))
        assert group.running.tolist() == [r.number for r in core.running]
        assert group.pool.free == len(core.free)
    assert live.preemptions.tolist() == [r.preemptions for r in asked]
    assert live.cached.tolist() == [r.cached for r in asked]
