"""Prompts on some devices, answers on others, and their KV in between: every time worked on paper.

The machine is ``serving_machine``'s, with a model without experts: every device is an engine by itself. Memory moves
1 byte/s, links move 1 byte/s after 5 s, the KV of a token has 8 bytes. A prompt of one token takes 146 s, two together
240 s; a decode on two tokens takes 154 s, on three 162 s (test_islands_by_hand.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from serving_machine import dense, scenario

import moesim
from moesim.serving.apart import Prefilling
from moesim.serving.group import example

FIRST, TWO, SECOND, THIRD = 146, 240, 154, 162
MOVE = 5 + 8  # the KV of one token, alone on its links
APART = "disaggregation={devices: 1}"


def times(result: moesim.Result, *columns: str) -> list[list[float]]:
    return [result.requests[column].tolist() for column in columns]


def starts(result: moesim.Result, pool: str) -> list[float]:
    return result.steps.loc[result.steps["pool"] == pool, "start_s"].tolist()


@pytest.mark.parametrize("detail", ["steps", "events"])
def test_three_requests_on_two_devices(tmp_path: Path, detail: str) -> None:
    """Device 0 computes prompts 0 and 1 to 240; 1 is done with that. 0 moves to 253, and decodes to 407 and 569.

    2 comes at 200, so its prompt runs from 240 to 386. Device 1 sees it at the end of a step, 407; it moves to 420,
    which device 1 sees at the end of the next step, 569.
    """
    result = moesim.simulate(dense(tmp_path, [(0, 1, 3), (0, 1, 1), (200, 1, 2)], 2, APART, f"detail={detail}"))
    assert times(result, "first_token_s", "finish_s") == [[240, 240, 386], [569, 240, 723]]
    assert times(result, "group", "prefill_group", "preemptions") == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_equal(times(result, "transfer_start_s", "transfer_end_s"), [[240, np.nan, 407],
                                                                                  [253, np.nan, 420]])
    assert times(result, "queued_s", "scheduled_s", "ttft_s") == [[0, 0, 240], [0, 0, 240], [240, 240, 186]]
    np.testing.assert_equal(result.requests["tpot_s"].to_numpy(), [(569 - 240) / 2, np.nan, 723 - 386])
    assert starts(result, "prefill") == [0, 240] and starts(result, "decode") == [253, 407, 569]
    assert result.steps["island"].tolist() == [0, 0, 1, 1, 1]
    assert result.steps["kv_tokens"].tolist() == [0, 0, 1, 2, 1]  # of those that decode, as a step begins
    assert sorted(result.spans["device"].unique()) == [0, 1]
    links = result.links[result.links["island"] == -1].set_index("name")
    assert links["kv_transfer_bytes"].to_dict() == {"device0->switch0": 16, "device1->switch0": 0,
                                                    "switch0->device0": 0, "switch0->device1": 16}
    assert result.links["bytes"].sum() == 32
    assert result.memory["pool"].tolist() == ["prefill", "decode"] and result.memory["device"].tolist() == [0, 1]
    # two prompts; then 0 with room for its whole answer, three tokens, and 2 beside it with two
    assert result.memory["kv_peak_bytes"].tolist() == [16, 40]
    # idle power all the time; 2 W more while working: 240 + 146 s and 154 + 162 + 154 s
    assert result.summary()["energy_j"] == 2 * 723 + 2 * (TWO + FIRST + 2 * SECOND + THIRD)


def test_transfers_share_links(tmp_path: Path) -> None:
    """Prompts on devices 0 and 1 end at 146. Both KV go into device 2, at half its speed each: 5 + 16."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2)] * 2, 3, "disaggregation={devices: 2}",
                                   "request_router=round_robin"))
    assert times(result, "prefill_group", "group", "transfer_start_s", "transfer_end_s") == [
        [0, 1], [2, 2], [FIRST] * 2, [FIRST + 5 + 16] * 2]
    # to two devices: each link has one
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2)] * 2, 4, "disaggregation={devices: 2}",
                                   "request_router=round_robin"))
    assert times(result, "group", "transfer_end_s", "finish_s") == [
        [2, 3], [FIRST + MOVE] * 2, [FIRST + MOVE + SECOND] * 2]


def test_a_later_transfer_slows_the_one_under_way(tmp_path: Path) -> None:
    """Prompt 0 on device 0 to 146, prompt 1 on device 1 from 6 to 152: 0 sends from 151, 1 from 157, into device 2.

    0 has 6 of 8 bytes there at 157, the others take 4 s. Then 1 has 2 of 8 and the link to itself: 161 + 6.
    """
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2), (6, 1, 2)], 3, "disaggregation={devices: 2}",
                                   "request_router=round_robin"))
    assert times(result, "transfer_start_s") == [[146, 152]]
    np.testing.assert_allclose(times(result, "transfer_end_s"), [[161, 167]], rtol=1e-12)
    # 0 decodes from 161 to 315, then 1 with its KV of one token: 154 more
    np.testing.assert_allclose(times(result, "finish_s"), [[161 + SECOND, 161 + 2 * SECOND]], rtol=1e-12)


def test_no_room_where_answers_run_holds_prompts_back(tmp_path: Path) -> None:
    """Room for two tokens on each device. Prompts 0 and 1 fill device 0 to 240; 2 finds no room there and waits.

    Device 1 has room for the whole answer of one. 0 moves to 253: there is room for prompt 2, 253 to 399. 0 decodes to
    407; then 1 moves, to 420, and decodes to 574; then 2, to 587 and 741.
    """
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2)] * 3, 2, APART, "kv={block: 1, blocks: 2}"))
    assert times(result, "scheduled_s", "first_token_s") == [[0, 0, 253], [240, 240, 399]]
    assert times(result, "transfer_start_s", "transfer_end_s") == [[240, 407, 574], [253, 420, 587]]
    assert times(result, "finish_s") == [[407, 574, 741]]
    assert result.memory["kv_peak_bytes"].tolist() == [16, 16]


def test_a_request_that_comes_while_prompts_are_held_back(tmp_path: Path) -> None:
    """As above, and 3 comes at 245, with a smaller priority number than 2, which still waits, and one output token."""
    made = dense(tmp_path, [(0, 1, 2)] * 3, 2, APART, "kv={block: 1, blocks: 2}")
    table = pd.DataFrame([(0, 1, 2)] * 3 + [(245, 1, 1)], columns=["arrival_s", "prompt_tokens", "output_tokens"])
    table.assign(priority=[1, 1, 1, 0]).to_csv(tmp_path / "requests.csv", index=False)
    result = moesim.simulate(made)
    # device 0 has room for one again at 253: 3 goes first, and 2 after it, for 3 moves nowhere
    assert times(result, "queued_s", "scheduled_s") == [[0, 0, 0, 245], [0, 0, 399, 253]]
    assert result.requests["finish_s"][3] == 253 + FIRST


def test_a_full_batch_keeps_what_has_arrived_waiting(tmp_path: Path) -> None:
    """max_batch 1 where answers run, 2 where prompts do: both have arrived at 240 + 5 + 16, and decode in turn."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2)] * 2, 2, "scheduler.max_batch=1",
                                   "disaggregation={devices: 1, scheduler: {name: prefill_first, max_batch: 2}}"))
    arrived = TWO + 5 + 16
    assert times(result, "transfer_end_s", "finish_s") == [[arrived] * 2, [arrived + SECOND, arrived + 2 * SECOND]]


def test_who_is_preempted_computes_its_prompt_again_where_it_decodes(tmp_path: Path) -> None:
    """Room for four tokens, taken block by block (vllm): each has two, for prompt and first step. Then 0 takes those of

    1. When 0 is done, 1 computes prompt and two tokens of its answer again, and with them its last one."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 3)] * 2, 2, APART, "kv={block: 1, blocks: 4}", "scheduler=vllm"))
    steps = result.steps[result.steps["pool"] == "decode"]
    assert list(zip(steps["prefill_tokens"], steps["decode_tokens"], strict=True)) == [(0, 2), (0, 1), (3, 0)]
    assert times(result, "preemptions", "transfer_end_s") == [[0, 1], [TWO + 5 + 16] * 2]
    assert result.links["kv_transfer_bytes"].sum() == 2 * 2 * 8  # out and in; it moves once


def test_memory_that_waits_for_kv_can_stop_a_device(tmp_path: Path) -> None:
    """Links of 0.05 bytes/s: 165 s for a KV. Room for five tokens; 0 decodes from 311 to 465 with two of them.

    1 gets two, and 0 its third, from 465 to 627. Then 0 has no room for a fourth: it loses what it has, and all four
    would need more than the three that are free. Until 630 nothing can run; 1 decodes to 784, and 0 begins anew.
    """
    result = moesim.simulate(dense(tmp_path, [(0, 1, 4), (200, 1, 2)], 2, APART, "kv={block: 1, blocks: 5}",
                                   "scheduler=vllm", "hardware.scale_up.bandwidth=0.05 B/s"))
    steps = result.steps[result.steps["pool"] == "decode"]
    assert steps["start_s"].tolist() == [311, 465, 630, 784]
    assert list(zip(steps["prefill_tokens"], steps["decode_tokens"], strict=True)) == [(0, 1), (0, 1), (0, 1), (4, 0)]
    assert times(result, "transfer_start_s", "transfer_end_s") == [[146, 465], [311, 630]]
    assert result.requests["finish_s"][1] == 784 and result.requests["preemptions"].tolist() == [1, 0]


def test_a_prompt_that_loses_its_memory_as_it_is_done_is_computed_again() -> None:
    """A step planned as the last one of 0 began took its memory: it has no KV to send."""
    one = example(prompts=[2, 2], outputs=[1, 1], blocks=4, block=1)
    group = Prefilling(one.requests, one.pool, np.array([True, True]))
    for request in (0, 1):
        group.add(request)
        assert group.admit(request, 0, 2)
    stepped = group.advance(np.array([0, 1]), np.array([2, 2]))
    group.preempt(0)
    assert group.complete(stepped).tolist() == [1] and group.n_kept == 1 and group.pool.free == 2
    assert group.waiting() == [0] and group.requests.left(np.array([0])).tolist() == [2]
    assert group.admit(0, 0, 2)
    assert group.complete(group.advance(np.array([0]), np.array([2]))).tolist() == [0] and group.n_kept == 2


HEADS = ("model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}", "model.dense_ffn=2")


@pytest.mark.parametrize(("prompts", "answers", "out", "into"), [
    (2, 1, [8, 8, 0], [0, 0, 16]), (1, 2, [16, 0, 0], [0, 8, 8]), (2, 2, [8, 8, 0, 0], [0, 0, 8, 8])])
def test_groups_of_unequal_size_send_slices(tmp_path: Path, prompts: int, answers: int, out: list[int],
                                            into: list[int]) -> None:
    """Two heads, 16 bytes per token: both on a device, or one on each of two."""
    made = dense(tmp_path, [(0, 1, 2)], prompts + answers, *HEADS, f"parallelism.tp={answers}",
                 f"disaggregation={{devices: {prompts}, parallelism: {{tp: {prompts}}}}}")
    result = moesim.simulate(made)
    links = result.links[result.links["island"] == -1].groupby("class", sort=False)["kv_transfer_bytes"].apply(list)
    assert links["scale_up_out"] == out and links["scale_up_in"] == into
    moved = result.requests["transfer_end_s"] - result.requests["transfer_start_s"]
    assert moved.tolist() == [5 + max(out + into)]


def test_a_copied_head_moves_to_each_device_that_keeps_it(tmp_path: Path) -> None:
    """One KV head, of which each of two devices keeps a copy: 8 bytes to each, half from each of two or all from one.
    """
    heads = ("model.attention={kind: gqa, heads: 2, kv_heads: 1, head_dim: 2}", "model.dense_ffn=2")
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2)], 3, *heads, "parallelism.tp=2",
                                   "disaggregation={devices: 1, parallelism: {tp: 1}}"))
    assert result.links.groupby("class")["kv_transfer_bytes"].sum()["scale_up_in"] == 16
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2)], 3, *heads,
                                   "disaggregation={devices: 2, parallelism: {tp: 2}}"))
    assert result.links.groupby("class")["kv_transfer_bytes"].sum()["scale_up_in"] == 8


def test_layers_move_while_the_next_are_computed(tmp_path: Path) -> None:
    """Two layers, 8 bytes of KV each. The first is ready halfway through the step, and there 13 s later."""
    two = (tmp_path, [(0, 1, 3)], 2, "model.layers=2")
    whole = moesim.simulate(dense(*two, APART)).requests
    layers = moesim.simulate(dense(*two, "disaggregation={devices: 1, overlap: layers}")).requests
    end = whole["first_token_s"][0]
    assert end > 2 * MOVE and layers["first_token_s"][0] == end
    assert whole[["transfer_start_s", "transfer_end_s"]].to_numpy().tolist() == [[end, end + 5 + 16]]
    assert layers[["transfer_start_s", "transfer_end_s"]].to_numpy().tolist() == [[end / 2, end + MOVE]]
    assert whole["finish_s"][0] - layers["finish_s"][0] == 8
    # links of 0.05 bytes/s: the first layer's bytes are still under way when the second one's come
    slow = moesim.simulate(dense(*two, "disaggregation={devices: 1, overlap: layers}",
                                 "hardware.scale_up.bandwidth=0.05 B/s")).requests
    assert slow["transfer_end_s"].tolist() == pytest.approx([end / 2 + 5 + 16 / 0.05])
    # nobody looks before prompt and first layer of another are there: both layers go at once
    busy = moesim.simulate(dense(tmp_path, [(0, 1, 3), (1, 1, 3)], 2, "model.layers=2",
                                 "disaggregation={devices: 1, overlap: layers}")).requests
    assert busy["transfer_start_s"][1] > busy["first_token_s"][1]
    assert busy["transfer_end_s"][1] - busy["transfer_start_s"][1] == 5 + 16


def test_transfers_have_constants_of_their_own(tmp_path: Path) -> None:
    """Half of 1 byte/s after 1 s, where collectives have all of it after 5 s."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2)], 2, APART, (
        "hardware.scale_up.of={kv_transfer: {efficiency: 0.5, startup: 1 s, ramp: 0 s}}")))
    assert times(result, "transfer_end_s") == [[FIRST + 1 + 16]]


@pytest.mark.parametrize(("prompts", "answers", "out", "into"), [
    (2, 1, [8, 8, 0], [0, 0, 16]), (1, 2, [16, 0, 0], [0, 8, 8]), (2, 2, [8, 8, 0, 0], [0, 0, 8, 8])])
def test_stages_send_the_layers_they_have(tmp_path: Path, prompts: int, answers: int, out: list[int], into: list[int]
                                          ) -> None:
    """Two layers, 8 bytes of KV each, in pipelines of one device or two."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 3)], prompts + answers, "model.layers=2",
                                   f"parallelism.pp={answers}",
                                   f"disaggregation={{devices: {prompts}, parallelism: {{pp: {prompts}}}}}"))
    links = result.links[result.links["island"] == -1].groupby("class", sort=False)["kv_transfer_bytes"].apply(list)
    assert links["scale_up_out"] == out and links["scale_up_in"] == into
    moved = result.requests["transfer_end_s"] - result.requests["transfer_start_s"]
    assert moved.tolist() == [5 + max(out + into)]
    assert result.requests["finish_s"].notna().all() and len(result.steps) == 3
    assert (moesim.metrics.stages(result.steps, result.summary()["makespan_s"])["busy_s"] > 0).tolist() == [True] * (
        prompts + answers)


def test_experts_are_placed_in_each_pool(tmp_path: Path) -> None:
    """Two devices, each with both experts: the answer's steps are those of one device alone; nothing is dispatched."""
    chosen = {"prompt": [[[0]]], "decode": [[[1]]], "devices": [[0, 1]]}
    more = ("hardware.devices_per_node=2", APART)
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 3)], chosen, *more))
    alone = moesim.simulate(scenario(tmp_path, [(0, 1, 3)], chosen))
    assert result.memory["expert_bytes"].tolist() == [24, 24]
    length = [(r.steps["end_s"] - r.steps["start_s"]).tolist() for r in (result, alone)]
    assert length[0] == length[1]
    assert times(result, "finish_s")[0][0] == times(alone, "finish_s")[0][0] + MOVE


def test_users_send_the_next_request_when_the_answer_is_there(tmp_path: Path) -> None:
    loop = "requests={kind: closed_loop, concurrency: 1, count: 3, prompt_tokens: 1, output_tokens: 2}"
    result = moesim.simulate(dense(tmp_path, [(0, 1, 1)], 2, loop, APART))
    each = FIRST + MOVE + SECOND
    assert times(result, "arrival_s", "finish_s") == [[0, each, 2 * each], [each, 2 * each, 3 * each]]
