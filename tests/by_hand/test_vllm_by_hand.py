"""vLLM's scheduler on paper: budget, chunks, preemption, priority. Blocks have one token."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from serving_machine import batches, scenario

import moesim
from moesim.serving.group import Group, Requests
from moesim.serving.pool import Pool
from moesim.serving.schedulers.vllm import Vllm


def queue(prompts: list[int], outputs: list[int], blocks: int, priority: list[int] | None = None) -> Group:
    """Return an empty group and the requests that may come to it, blocks of one token."""
    table = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": prompts, "output_tokens": outputs,
                          "priority": priority or [0] * len(prompts)})
    return Group(Requests(table), Pool(blocks, 1, len(table)))


def play(group: Group, scheduler: Vllm, come: dict[int, list[int]] | None = None) -> list[dict[int, int]]:
    """Return who runs how many tokens in every step; *come*: before which step requests arrive (left out: all at 0)."""
    come, steps = dict(come or {0: list(range(len(group.requests)))}), []
    while come or len(group.running) or group.n_waiting:
        for request in come.pop(len(steps), []):
            group.add(request)
        requests, tokens = scheduler.plan(group)
        assert len(requests), "somebody can always run"
        steps.append(dict(zip(requests.tolist(), tokens.tolist(), strict=True)))
        group.complete(group.advance(requests, tokens))
    assert group.pool.free == group.pool.capacity and group.promised == 0
    return steps


def test_decodes_first_then_prompts_in_chunks() -> None:
    """16 tokens a step: 5 + 11 of 30; a decode and 15; the last 4 and the third prompt; two more decodes."""
    steps = play(queue([5, 30, 3], [2, 3, 1], 99), Vllm(max_batch=8, max_tokens=16))
    assert steps == [{0: 5, 1: 11}, {0: 1, 1: 15}, {1: 4, 2: 3}, {1: 1}, {1: 1}]


def test_max_batch_counts_who_runs() -> None:
    assert play(queue([4, 4, 4], [2, 3, 1], 99), Vllm(max_batch=2)) == [{0: 4, 1: 4}, {0: 1, 1: 1}, {1: 1, 2: 4}]


def test_a_budget_that_decodes_use_up() -> None:
    """Two tokens a step: the third prompt waits until a decode is over, and nobody who decodes waits for it."""
    steps = play(queue([1, 1, 1], [3, 2, 1], 99), Vllm(max_tokens=2))
    assert steps == [{0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1, 2: 1}]


def test_a_budget_that_even_decodes_do_not_fit_into() -> None:
    """Three decode, but a step has two tokens: who was admitted last waits. It is 1, which came in after 2 and 0."""
    group = queue([1, 1, 1], [3, 3, 2], 99)
    group.add(2)
    wide, narrow = Vllm(max_tokens=3), Vllm(max_tokens=2)
    group.complete(group.advance(*wide.plan(group)))
    group.add(0)
    group.add(1)
    assert [a.tolist() for a in wide.plan(group)] == [[2, 0, 1], [1, 1, 1]]
    assert [a.tolist() for a in narrow.plan(group)] == [[2, 0], [1, 1]]


def test_whole_prompts_only() -> None:
    """30 does not fit beside 5, and holds 3 back; it is above any budget, so it runs alone when nobody else runs."""
    steps = play(queue([5, 30, 3], [2, 2, 1], 99), Vllm(max_tokens=16, chunked=False))
    assert steps == [{0: 5}, {0: 1}, {1: 30}, {1: 1, 2: 3}]


def test_who_came_last_is_preempted_and_computes_everything_again() -> None:
    """8 blocks for two requests that need 3 + 4 - 1 = 6 each. In step 2 the first needs a fifth block: there is none.

    The second gives its 4 back, and waits until 3 + 2 tokens fit (not beside the first); it computes these 5 at once.
    """
    group = queue([3, 3], [4, 4], 8)
    assert play(group, Vllm()) == [{0: 3, 1: 3}, {0: 1, 1: 1}, {0: 1}, {0: 1}, {1: 5}, {1: 1}]
    assert group.requests.preemptions.tolist() == [0, 1]
    assert group.requests.cached.tolist() == [0, 0]


def test_who_is_last_itself_gives_way() -> None:
    """7 blocks: the first takes the last one, the second finds none and is the last to have come."""
    group = queue([3, 3], [4, 4], 7)
    assert play(group, Vllm()) == [{0: 3, 1: 3}, {0: 1}, {0: 1}, {0: 1}, {1: 4}, {1: 1}, {1: 1}]
    assert group.requests.preemptions.tolist() == [0, 1]


def test_one_victim_makes_room_for_two() -> None:
    """6 blocks, three prompts of 2. The third's blocks go to the first and the second, which is then done."""
    group = queue([2, 2, 2], [5, 2, 2], 6)
    assert play(group, Vllm()) == [{0: 2, 1: 2, 2: 2}, {0: 1, 1: 1}, {0: 1}, {0: 1}, {0: 1}, {2: 3}]
    assert group.requests.preemptions.tolist() == [0, 0, 1]


def test_half_a_prompt_is_preempted_too() -> None:
    """7 blocks, 4 tokens a step. Only the next chunk must fit, so a long prompt comes in twice and is thrown out twice.

    Step 1: the decode has 3 blocks, the prompt 2 and wants 3 more of 2. Step 2: 3 blocks are free, 3 tokens come in.
    Step 3: the decode needs its fifth block.
    """
    group = queue([2, 6], [4, 1], 7)
    assert play(group, Vllm(max_tokens=4)) == [{0: 2, 1: 2}, {0: 1}, {0: 1, 1: 3}, {0: 1}, {1: 4}, {1: 2}]
    assert group.requests.preemptions.tolist() == [0, 2]


def test_nobody_new_in_a_step_that_preempts() -> None:
    """6 blocks, 2 tokens a step. In step 3 the first needs a fifth block and the second gives its 2 back.

    Now one block is free and one token of the budget: enough for a chunk of the second, but it waits for the next step.
    """
    group = queue([2, 3], [5, 1], 6)
    steps = play(group, Vllm(max_tokens=2))
    assert steps == [{0: 2}, {0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1}, {0: 1}, {1: 2}, {1: 1}]
    assert group.requests.preemptions.tolist() == [0, 1]


@pytest.mark.parametrize(("blocks", "preemptions"), [(6, 0), (9, 0), (10, 1), (11, 1), (12, 0)])
def test_more_memory_may_preempt_more(blocks: int, preemptions: int) -> None:
    """Two prompts of 5 with an answer of 2: 6 blocks each in the end. From 10 blocks on both come in, 12 hold both."""
    group = queue([5, 5], [2, 2], blocks)
    play(group, Vllm())
    assert group.requests.preemptions.sum() == preemptions


def test_the_smallest_priority_number_goes_first() -> None:
    assert play(queue([2, 3, 4], [1, 1, 1], 99, [1, 0, 2]), Vllm(max_batch=1)) == [{1: 3}, {0: 2}, {2: 4}]
    # who runs is not thrown out for somebody who comes later: there is memory
    steps = play(queue([2, 3, 4], [2, 1, 1], 99, [1, 0, 2]), Vllm(max_batch=1), {0: [0, 2], 1: [1]})
    assert steps == [{0: 2}, {0: 1}, {1: 3}, {2: 4}]


def test_the_largest_priority_number_is_preempted() -> None:
    """6 blocks. In step 2 the first needs a fifth; it has the larger number itself, and gives way to who came later."""
    group = queue([3, 2], [3, 3], 6, [1, 0])
    assert play(group, Vllm(), {0: [0], 1: [1]}) == [{0: 3}, {0: 1, 1: 2}, {1: 1}, {1: 1}, {0: 5}]
    assert group.requests.preemptions.tolist() == [1, 0]


def test_what_the_victim_was_given_goes_to_others() -> None:
    """8 blocks, three that decode, 2 tokens a step: 0 has one and the last block, so 1, whose turn is next, finds none.

    0 has the largest priority number and must go; the token it had goes to 2, which would have had none.
    """
    group = queue([2, 2, 2], [3, 3, 3], 8, [2, 0, 1])
    group.add(0)
    assert run(group, Vllm()) == {0: 2}
    group.add(1)
    group.add(2)
    assert run(group, Vllm()) == {0: 1, 1: 2, 2: 2}
    assert run(group, Vllm(max_tokens=2)) == {1: 1, 2: 1}
    assert (group.pool.free, group.waiting()) == (2, [0])
    assert [run(group, Vllm()) for _ in range(2)] == [{1: 1, 2: 1}, {0: 4}]


def test_who_gives_way_itself_holds_back_those_behind() -> None:
    """9 blocks, all taken in step 2 by 0, and then 1 needs one: it has the largest number, and its 3 become free.

    2, whose turn is next, would have room now; but vLLM ends a step's decodes with who gave way. Then 2, and 1 again.
    """
    group = queue([2, 2, 2], [3, 3, 3], 9, [0, 2, 1])
    steps = play(group, Vllm(), {0: [0, 1], 1: [2]})
    assert steps == [{0: 2, 1: 2}, {0: 1, 1: 1, 2: 2}, {0: 1}, {2: 1, 1: 4}, {2: 1}]


def run(group: Group, scheduler: Vllm) -> dict[int, int]:
    """Run one step; return who runs how many tokens."""
    requests, tokens = scheduler.plan(group)
    group.complete(group.advance(requests, tokens))
    return dict(zip(requests.tolist(), tokens.tolist(), strict=True))


def test_steps_and_columns_of_a_run(tmp_path: Path) -> None:
    """7 blocks, 3 tokens a step; 0 (priority 2) comes first, 1 (priority 0) while its prompt of 2 runs.

    0's third token and 1's first two; then 1 wants 2 blocks of 1, and 0 goes. Next 1's last 2 and, in the block and the
    token that are left, one of the 4 that 0 computes again: a chunk, not a decode. Then 3, and a decode.
    """
    made = scenario(tmp_path, [(0, 2, 4), (0.5, 6, 1)], None, "scheduler={name: vllm, max_tokens: 3}",
                    "kv={block: 1, blocks: 7}")
    table = pd.read_csv(tmp_path / "requests.csv").assign(priority=[2, 0])
    table.to_csv(tmp_path / "requests.csv", index=False)
    result = moesim.simulate(made)
    assert batches(result) == [(2, 0), (2, 1), (2, 0), (3, 0), (3, 0), (0, 1)]
    steps, requests = result.steps, result.requests
    assert requests["scheduled_s"].tolist() == steps["start_s"][[0, 1]].tolist()  # preempted: the first time counts
    assert requests["first_token_s"].tolist() == steps["end_s"][[0, 3]].tolist()
    assert requests["finish_s"].tolist() == steps["end_s"][[5, 3]].tolist()
    assert requests["preemptions"].tolist() == [1, 0]
    assert requests["cached_tokens"].tolist() == [0, 0] and not requests["refused"].any()
    assert steps["running"].tolist() == [1, 2, 1, 2, 1, 1] and steps["waiting"].tolist() == [0, 0, 1, 0, 0, 0]
    assert steps["kv_tokens"].tolist() == [0, 2, 2, 4, 1, 4]
    assert result.memory["kv_peak_bytes"].tolist() == [7 * 8]


ONE_BY_ONE = ("scheduler={name: vllm, max_batch: 2}", "kv={block: 1, blocks: 99}")


def test_a_step_that_is_planned_ahead_misses_who_comes_meanwhile(tmp_path: Path) -> None:
    """The second comes during step 0. Step 1 was planned as step 0 began: it comes in at step 2, a step later.

    The first has three tokens of answer: steps 0, 1, 2. That it is done after step 2 is not known as step 3 is planned,
    but how many tokens it has is: nothing is run for it in vain.
    """
    requests = [(0, 2, 3), (0.5, 3, 2)]
    plain, ahead = (moesim.simulate(scenario(tmp_path, requests, None, *ONE_BY_ONE, f"engine={{asynchronous: {on}}}"))
                    for on in ("false", "true"))
    assert batches(plain) == [(2, 0), (3, 1), (0, 2)]
    assert batches(ahead) == [(2, 0), (0, 1), (3, 1), (0, 1)]
    # it is scheduled as step 1 begins, for step 2
    assert plain.requests["scheduled_s"].tolist() == plain.steps["start_s"][[0, 1]].tolist()
    assert ahead.requests["scheduled_s"].tolist() == ahead.steps["start_s"][[0, 1]].tolist()
    assert ahead.requests["first_token_s"].tolist() == ahead.steps["end_s"][[0, 2]].tolist()
    assert ahead.requests["finish_s"].tolist() == ahead.steps["end_s"][[2, 3]].tolist()


def test_a_place_becomes_free_a_step_later_if_planned_ahead(tmp_path: Path) -> None:
    """Two places for three. The first is done after step 0, so the third runs in step 1, beside the second's decode.

    Planned ahead, step 1 was planned while the first still had its place: the third runs in step 2.
    """
    requests = [(0, 2, 1), (0, 2, 2), (0, 2, 1)]
    plain, ahead = (moesim.simulate(scenario(tmp_path, requests, None, *ONE_BY_ONE, f"engine={{asynchronous: {on}}}"))
                    for on in ("false", "true"))
    assert batches(plain) == [(4, 0), (2, 1)]
    assert batches(ahead) == [(4, 0), (0, 1), (2, 0)]
