"""KV memory on paper: blocks counted, and blocks shared by requests that begin with the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from serving_machine import batches, scenario

import moesim
from moesim.serving.group import Group, Requests
from moesim.serving.pool import Pool, PrefixPool, block_hashes
from moesim.serving.schedulers.vllm import Vllm


def test_tokens_lie_in_whole_blocks() -> None:
    pool = Pool(capacity=5, block=4, n_requests=3)
    assert [pool.blocks(n) for n in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]
    assert pool.grow(0, 5) and pool.free == 3
    assert pool.grow(0, 8) and pool.free == 3      # still in its second block
    assert pool.grow(0, 3) and pool.free == 3      # nobody shrinks
    assert not pool.grow(1, 13) and pool.free == 3
    both = np.array([0, 1])
    assert not pool.grow_all(both, np.array([13, 9])) and pool.held.tolist() == [2, 0, 0]  # 2 + 3 of 3: nothing
    assert pool.grow_all(both, np.array([9, 5])) and pool.held.tolist() == [3, 2, 0] and pool.free == 0
    pool.release(0)
    assert pool.free == 3 and pool.held.tolist() == [0, 2, 0]


def prefix_pool(capacity: int, *tokens: list[int]) -> PrefixPool:
    """Return a pool of blocks of two tokens, for requests that have these tokens in the end."""
    hashes = [block_hashes(np.array(t), 2) for t in tokens]
    return PrefixPool(capacity, 2, len(tokens), hashes.__getitem__)


def hold(pool: PrefixPool, request: int, tokens: int) -> int:
    """Let *request* have so many tokens in memory; return how many of them it found there."""
    found = pool.found(request, tokens)
    assert pool.take(request, found, tokens)
    pool.filled(np.array([request]), np.array([tokens]))
    return found


def test_a_hash_says_what_a_block_and_all_before_it_hold() -> None:
    one, two, three = (block_hashes(np.array(t), 2) for t in ([1, 2, 3, 4, 5], [1, 2, 3, 5, 6, 7], [9, 2, 3, 4]))
    assert [len(h) for h in (one, two, three)] == [2, 3, 2]  # only full blocks
    assert one[0] == two[0] and one[1] != two[1]
    assert not set(three) & set(one)  # 3, 4 after 9, 2 is not 3, 4 after 1, 2


def test_hits_are_whole_blocks_and_leave_a_token_to_compute() -> None:
    pool = prefix_pool(9, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6], [1, 2, 9, 9, 9])
    assert hold(pool, 0, 5) == 0 and pool.free == 6
    assert [pool.found(1, n) for n in (2, 3, 4, 5, 6)] == [0, 2, 2, 4, 4]  # of 4 tokens all are there: 2 are used
    assert pool.found(2, 5) == 2


def test_what_was_computed_twice_is_found_until_the_last_of_it_is_forgotten() -> None:
    pool = prefix_pool(4, [1, 2, 9], [1, 2, 8], [3, 4, 5, 6, 7], [1, 2, 7])
    for request in (0, 1):  # both begin before either has filled its first block: nothing is found
        assert pool.take(request, 0, 3)
    for request in (0, 1):
        pool.filled(np.array([request]), np.array([3]))
    pool.release(0)  # its blocks, the last first, are forgotten before those of 1
    assert pool.free == 2 and pool.found(3, 3) == 2
    assert pool.take(2, 0, 3) and pool.free == 0  # over both blocks of 0
    assert pool.found(3, 3) == 2  # in the block of 1
    pool.release(1)
    assert pool.grow(2, 8) and pool.free == 0 and pool.found(3, 3) == 0


def test_shared_blocks_count_once_and_stay_while_somebody_uses_them() -> None:
    """Blocks of 0: 1 2 | 3 4 | 5. Request 1 shares two of them and takes one for 9; request 2 needs three others."""
    pool = prefix_pool(4, [1, 2, 3, 4, 5], [1, 2, 3, 4, 9], [7] * 6)
    hold(pool, 0, 5)
    assert hold(pool, 1, 5) == 4 and pool.free == 0 and pool.held.tolist() == [3, 3, 0]
    pool.release(0)
    assert pool.free == 1  # its last block; the others are request 1's too
    assert not pool.take(2, 0, 3) and pool.free == 1 and pool.held[2] == 0
    assert pool.take(2, 0, 2)  # takes the block that 5 was in
    assert pool.found(0, 5) == 4  # in use: never forgotten, whoever needs room
    pool.release(1)
    assert pool.free == 3 and pool.found(0, 5) == 4


def test_what_was_let_go_first_is_forgotten_first_and_ends_before_beginnings() -> None:
    """Four blocks. 0 (1 2 | 3 4) is let go, then 1 (5 6 | 7 8). Others take one block after the other."""
    pool = prefix_pool(4, [1, 2, 3, 4, 0], [5, 6, 7, 8, 0], [9] * 8)
    hold(pool, 0, 4)
    hold(pool, 1, 4)
    pool.release(0)
    pool.release(1)
    there = []
    for tokens in (0, 2, 4, 6, 8):
        assert pool.grow(2, tokens)
        there.append((pool.found(0, 5), pool.found(1, 5)))
    assert there == [(4, 4), (2, 4), (0, 4), (0, 2), (0, 0)]


def test_a_hit_makes_young_again() -> None:
    """0 is let go before 1, but comes back and is let go again: now 1 is older."""
    pool = prefix_pool(4, [1, 2, 3, 4, 0], [5, 6, 7, 8, 0], [9] * 4)
    for request in (0, 1):
        hold(pool, request, 4)
    for request in (0, 1):
        pool.release(request)
    assert pool.take(0, 4, 4) and pool.free == 2
    pool.release(0)
    assert pool.grow(2, 4) and (pool.found(0, 5), pool.found(1, 5)) == (4, 0)


def test_memory_that_nobody_has_used_is_taken_before_anything_is_forgotten() -> None:
    pool = prefix_pool(4, [1, 2, 3, 4, 0], [9] * 4)
    hold(pool, 0, 4)
    pool.release(0)
    assert pool.grow(1, 4) and pool.found(0, 5) == 4


def test_a_second_copy_answers_when_the_first_is_forgotten() -> None:
    """Prompts of exactly one block: nobody finds it whole, each computes it. The first copy goes."""
    pool = prefix_pool(2, [1, 2], [1, 2], [9, 9], [1, 2, 3])
    assert hold(pool, 0, 2) == hold(pool, 1, 2) == 0 and pool.free == 0
    pool.release(0)
    assert pool.grow(2, 2) and pool.found(3, 3) == 2
    pool.release(1)
    assert pool.grow(2, 4) and pool.found(3, 3) == 0


def test_sleeping_blocks_that_are_hit_are_not_room_for_others() -> None:
    """Three blocks: 1 2 | 3 4 sleep, one is empty. Seven tokens need the two and two more: one too few."""
    pool = prefix_pool(3, [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7])
    hold(pool, 0, 4)
    pool.release(0)
    assert pool.found(1, 7) == 4
    assert not pool.take(1, 4, 7) and pool.free == 3 and pool.found(1, 7) == 4
    assert pool.take(1, 4, 6) and pool.free == 0


def test_who_begins_alike_shares_within_a_step() -> None:
    """Two prompts of 8 in blocks of 4, admitted together: vLLM notes blocks when it schedules them, so the second finds

    one (two would be all of it). A third, of 9 tokens, comes later and finds both."""
    table = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": [8, 8, 9], "output_tokens": [3, 2, 1]})
    hashes = [block_hashes(np.arange(n), 4) for n in (10, 9, 9)]
    group = Group(Requests(table), PrefixPool(9, 4, 3, hashes.__getitem__))
    group.add(0)
    group.add(1)
    requests, tokens = Vllm().plan(group)
    assert (requests.tolist(), tokens.tolist()) == ([0, 1], [8, 4])
    assert group.pool.free == 9 - 3
    group.complete(group.advance(requests, tokens))
    group.add(2)
    requests, tokens = Vllm().plan(group)
    assert (requests.tolist(), tokens.tolist()) == ([0, 1, 2], [1, 1, 1])
    assert group.requests.cached.tolist() == [0, 4, 8]


def run(folder: Path, ids: list[list[int]], prompts: list[int], *overrides: str) -> moesim.Result:
    """Simulate requests of these *ids*, the first *prompts* of each its prompt, that come a million seconds apart."""
    made = scenario(folder, [(0, 1, 1)])
    pd.DataFrame({
        "arrival_s": [1e6 * i for i in range(len(ids))], "prompt_tokens": prompts,
        "output_tokens": [len(t) - n for t, n in zip(ids, prompts, strict=True)],
        "prompt_ids": [t[:n] for t, n in zip(ids, prompts, strict=True)],
        "output_ids": [t[n:] for t, n in zip(ids, prompts, strict=True)]}).to_parquet(folder / "requests.parquet")
    return moesim.simulate(moesim.override(made, (
        f"requests.path={folder / 'requests.parquet'}", "scheduler={name: vllm}", *overrides)))


TALK = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 9]]  # a talk goes on, and again otherwise


def test_answers_are_found_again_too(tmp_path: Path) -> None:
    """Blocks of 2. The first asks 1 2 3 and is told 4 5: 1 2 | 3 4 are kept (5 is never read). The second asks

    1 ... 6 and finds four; the third asks 1 ... 7 and finds six."""
    result = run(tmp_path, TALK, [3, 6, 7], "kv={block: 2, blocks: 9, prefix_cache: true}")
    assert result.requests["cached_tokens"].tolist() == [0, 4, 6]
    assert batches(result) == [(3, 0), (0, 1), (2, 0), (0, 1), (1, 0)]
    assert result.memory["kv_peak_bytes"].tolist() == [4 * 2 * 8]


def test_without_a_prefix_cache_everything_is_computed(tmp_path: Path) -> None:
    result = run(tmp_path, TALK, [3, 6, 7], "kv={block: 2, blocks: 9}")
    assert result.requests["cached_tokens"].tolist() == [0, 0, 0]
    assert batches(result) == [(3, 0), (0, 1), (6, 0), (0, 1), (7, 0)]


def test_what_a_cached_prompt_attends_to(tmp_path: Path) -> None:
    """1 FLOP/s. Attention of the third: one token on seven, 8 FLOP each; without the cache 1 + ... + 7 = 28 times 8."""
    free = "hardware.device.processor={peak: {bf16: 1 FLOP/s}, bandwidth: 1 PB/s, multiprocessors: 1}"
    with_, without = (run(tmp_path, TALK, [3, 6, 7], free, f"kv={{block: 2, blocks: 9, prefix_cache: {on}}}").steps
                      .iloc[-1] for on in ("true", "false"))
    matrices = 2 * (2 * 6 + 2 * 2)  # qkv and output, of one token
    assert with_["attention_s"] == pytest.approx(matrices + 7 * 8)
    assert without["attention_s"] == pytest.approx(7 * matrices + 28 * 8)


def test_a_prefix_cache_needs_the_tokens(tmp_path: Path) -> None:
    with pytest.raises(moesim.ConfigError, match="kv.prefix_cache: needs the tokens of requests; replay a file with"):
        moesim.simulate(scenario(tmp_path, [(0, 2, 3)], None, "kv={block: 2, prefix_cache: true}"))
