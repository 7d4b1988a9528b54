"""Devices that step together and devices that do not, on paper: routing on arrival, lock step, users, who is refused.

The machine is ``serving_machine``'s. ``dense``: a model without experts, so every device is an engine by itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from serving_machine import batches, dense, room_for, scenario

import moesim

# One prompt token: qkv 2 (6 + 2) + 24 = 40, out 16, norm 16, itself 16; feed-forward norm 16, up 2 (2 + 2) + 8 = 16,
# down 2 (1 + 2) + 4 = 10; head 16: 146 s. A decode on two tokens reads one key and value more: 154 s; on three: 162 s.
FIRST, SECOND, THIRD = 146, 154, 162


def test_a_model_without_experts_is_an_engine_per_device(tmp_path: Path) -> None:
    """Two devices, three requests in turn: 0 and 2 on device 0, 1 on device 1, as if each had come to one device."""
    requests = [(0, 1, 3), (0, 1, 2), (10, 1, 1)]
    both = moesim.simulate(dense(tmp_path, requests, 2, "request_router=round_robin"))
    assert both.requests["group"].tolist() == [0, 1, 0]
    # device 0: prompt 0; then prompt 2, which came meanwhile; then two decodes
    first = [0, FIRST, 2 * FIRST, 2 * FIRST + SECOND]
    assert both.steps.loc[both.steps["island"] == 0, "start_s"].tolist() == first
    assert both.steps.loc[both.steps["island"] == 1, "start_s"].tolist() == [0, FIRST]
    assert both.requests["first_token_s"].tolist() == [FIRST, FIRST, 2 * FIRST]
    assert both.requests["finish_s"].tolist() == [first[-1] + THIRD, FIRST + SECOND, 2 * FIRST]
    assert both.steps["start_s"].is_monotonic_increasing
    for island, mine in ((0, [0, 2]), (1, [1])):
        one = moesim.simulate(dense(tmp_path, [requests[i] for i in mine], 1))
        times = ["scheduled_s", "first_token_s", "finish_s"]
        assert one.requests[times].to_numpy().tolist() == both.requests.loc[mine, times].to_numpy().tolist()
        spans = both.spans[both.spans["device"] == island].drop(columns="device").reset_index(drop=True)
        pd.testing.assert_frame_equal(spans, one.spans.drop(columns="device"))
        columns = one.steps.columns
        alone = both.steps[both.steps["island"] == island].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone[columns], one.steps, check_dtype=False)
    assert both.links["bytes"].sum() == 0 and both.memory["expert_bytes"].tolist() == [0, 0]


def test_an_island_that_waits_draws_idle_power(tmp_path: Path) -> None:
    """1 W idle, 3 W busy: device 0 works for 146 s, device 1 for nothing."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 1)], 2))
    assert result.summary()["energy_j"] == pytest.approx(2 * 1 * FIRST + (3 - 1) * FIRST)


def test_tensor_parallel_devices_are_one_engine(tmp_path: Path) -> None:
    heads = ("parallelism.tp=2", "model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}", "model.dense_ffn=2")
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2)] * 2, 4, *heads, "request_router=round_robin"))
    assert result.requests["group"].tolist() == [0, 1]
    assert sorted(result.spans.loc[result.spans["phase"] == "head", "device"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (result.steps["attention_reduce_s"] == 5 + 4).all()  # as on one pair: links of others are not in the way


def test_experts_hold_devices_in_lock_step(tmp_path: Path) -> None:
    """Two requests on two devices, prompts of 1 and 5, experts at home. With one island both have their first token

    when the longer prompt is done; with ep=1 each device has all experts, and the shorter one is earlier."""
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0], [1]]}
    together = moesim.simulate(scenario(tmp_path, [(0, 1, 1), (0, 5, 1)], chosen, "request_router=round_robin"))
    assert batches(together) == [(6, 0)] and together.requests["first_token_s"].nunique() == 1
    alone = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0, 1]]}
    apart = moesim.simulate(scenario(
        tmp_path, [(0, 1, 1), (0, 5, 1)], alone, "hardware.devices_per_node=2", "parallelism.ep=1",
        "request_router=round_robin"))
    assert sorted(batches(apart)) == [(1, 0), (5, 0)]
    short, long = apart.requests["first_token_s"]
    assert short < long < together.requests["first_token_s"][0]
    assert apart.links["bytes"].sum() == 0 < together.links["bytes"].sum()
    assert apart.memory["expert_bytes"].tolist() == [24, 24] and together.memory["expert_bytes"].tolist() == [12, 12]


def test_a_device_without_requests_steps_too(tmp_path: Path) -> None:
    """Device 1 has no request but the expert: it works in each of three steps, and holds no keys and values."""
    chosen = {"prompt": [[[1]]], "decode": [[[1]]], "devices": [[0], [1]]}
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 3)], chosen))
    work = result.spans[result.spans["device"] == 1].groupby("phase")["step"].unique()
    assert work["experts"].tolist() == work["dispatch"].tolist() == [0, 1, 2] and "attention" not in work
    assert result.memory["kv_peak_bytes"].tolist() == [24, 0]


ROUTED = {
    # 0 (prompt 1, answer 3) runs to 462. 1 comes at 0 too, and is done at 146. 2 comes at 200: 1's device is idle.
    "fewest_requests": [0, 1, 1],
    "round_robin": [0, 1, 0],
    "least_loaded": [0, 1, 1],
    "{name: prefix_aware}": [0, 1, 1],  # no tokens are known: the fewest requests
}


@pytest.mark.parametrize("router", ROUTED)
def test_requests_are_routed_as_they_come(tmp_path: Path, router: str) -> None:
    result = moesim.simulate(dense(tmp_path, [(0, 1, 3), (0, 1, 1), (200, 1, 1)], 2, f"request_router={router}"))
    assert result.requests["group"].tolist() == ROUTED[router]
    # on device 0 the third waits for the step that runs, to 146 + 154 = 300; device 1 begins at once
    assert result.requests["scheduled_s"][2] == (200 if ROUTED[router][2] else FIRST + SECOND)


def test_a_request_stays_where_it_was_sent(tmp_path: Path) -> None:
    """One at a time. Three come at once: 0 and 2 to device 0, which is at 0 to 462; device 1 is idle from 146 on."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 3), (0, 1, 1), (0, 1, 1)], 2, "scheduler.max_batch=1",
                                   "request_router=fewest_requests"))
    assert result.requests["group"].tolist() == [0, 1, 0]
    assert result.requests["scheduled_s"].tolist() == [0, 0, FIRST + SECOND + THIRD]


def test_nobody_runs_before_it_comes(tmp_path: Path) -> None:
    """Device 0 is busy to 462 in steps to 146, 300 and 462. 1 comes at 290 to device 1, 2 at 295: to device 1 as well,

    where it is too late for the step that began at 290."""
    requests = [(0, 1, 3), (290, 1, 1), (295, 1, 1)]
    result = moesim.simulate(dense(tmp_path, requests, 2, "request_router={name: least_loaded}"))
    assert result.requests["group"].tolist() == [0, 1, 1]
    assert result.requests["scheduled_s"].tolist() == [0, 290, 290 + FIRST]


def test_only_groups_that_can_hold_a_request_get_it(tmp_path: Path) -> None:
    """Device 0 has three of four experts and room for 3 tokens, device 1 one expert, 24 bytes less: room for 6.

    Requests of 4 tokens go to device 1 whatever the turn, those of 2 as the turn has it: to 1, to 1 and to 0.
    """
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0, 1, 2], [3]]}
    requests = [(0, 2, 3), (0, 2, 1), (0, 2, 3), (0, 2, 1), (0, 2, 1)]
    result = moesim.simulate(scenario(tmp_path, requests, chosen, room_for(3, weights=76 + 36),
                                      "request_router=round_robin"))
    assert result.memory["kv_capacity_bytes"].tolist() == [24, 48]
    assert result.requests["group"].tolist() == [1, 1, 1, 1, 0]
    assert result.requests["finish_s"].notna().all()
    assert result.memory["kv_peak_bytes"].tolist() == [16, 48]


def test_users_of_several_engines_send_in_order_of_time(tmp_path: Path) -> None:
    """Three users, two engines, requests in turn: 0 and 2 on device 0, 1 on device 1; each is done after one step.

    Device 0 steps first, and two tokens take it longer than one takes device 1: yet the user of device 1 sends first.
    Two: qkv 2 x 16 + 24 = 56, out 24, norms 64, themselves 32; up 2 x 8 + 8 = 24, down 16; head 24: 240 s.
    """
    loop = "requests={kind: closed_loop, concurrency: 3, count: 6, prompt_tokens: 1, output_tokens: 1}"
    result = moesim.simulate(dense(tmp_path, [(0, 1, 1)], 2, loop, "request_router=round_robin"))
    assert result.requests["arrival_s"].tolist() == [0, 0, 0, FIRST, 240, 240]
    assert result.requests["group"].tolist() == [0, 1, 0, 1, 0, 1]
    # device 0 takes 4 at 240; 5 comes to device 1 while it works on 3, from 146 to 292
    assert result.requests["scheduled_s"].tolist() == [0, 0, 0, FIRST, 240, 2 * FIRST]
    assert result.requests["finish_s"].tolist() == [240, FIRST, 240, 2 * FIRST, 240 + FIRST, 3 * FIRST]


def test_who_is_too_long_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    """Room for 6 tokens, a context of 16. The second needs 7 blocks, the third has 17 tokens in all."""
    requests = [(0, 2, 3), (5, 4, 4), (6, 15, 2), (7, 6, 1)]
    with pytest.raises(moesim.ConfigError, match="set too_long: refuse to serve the others"):
        moesim.simulate(scenario(tmp_path, requests, None, "kv={block: 1, blocks: 6}"))
    result = moesim.simulate(scenario(tmp_path, requests, None, "kv={block: 1, blocks: 6}", "too_long=refuse"))
    table = result.requests
    assert table["refused"].tolist() == [False, True, True, False] and table["group"].tolist() == [0, -1, -1, 0]
    for column in ("scheduled_s", "first_token_s", "finish_s", "ttft_s", "tpot_s", "e2e_s"):
        assert table.loc[[1, 2], column].isna().all() and table.loc[0, column] >= 0
    assert batches(result) == [(2, 0), (0, 1), (0, 1), (6, 0)]
    summary = result.summary()
    assert summary["throughput_tok_per_s"] == pytest.approx(4 / summary["makespan_s"])  # 3 + 1, not 10
    assert all(np.isfinite(value) for value in summary.values())
    with pytest.raises(moesim.ConfigError, match="request 1 has 18 tokens, above the model's context of 16.*none fits"):
        moesim.simulate(scenario(tmp_path, [(0, 9, 8), (0, 15, 3)], None, "too_long=refuse"))


def test_a_user_who_is_refused_sends_the_next_one(tmp_path: Path) -> None:
    loop = "requests={kind: closed_loop, concurrency: 1, count: 4, prompt_tokens: {low: 1, high: 30}, output_tokens: 1}"
    result = moesim.simulate(dense(tmp_path, [(0, 1, 1)], 1, loop, "too_long=refuse", "seed=3"))
    requests = result.requests
    assert requests["refused"].tolist() == (requests["prompt_tokens"] + 1 > 16).tolist()
    assert 0 < requests["refused"].sum() < 4
    done = requests["finish_s"].fillna(requests["arrival_s"])
    assert requests["arrival_s"].tolist() == [0, *done[:-1]]


def test_dispatch_by_all_gather_sends_every_token_to_every_device(tmp_path: Path) -> None:
    """Prompts of 3 and 1 tokens on two devices; 4 bytes a token, a weight, the number of an expert; 1 byte/s after 5 s.

    Gathers: 5 + 12 three times. Reduce-scatter: device 1 sends what it made of the 3 tokens home, 5 + 12; the one
    token that goes the other way takes less. Whatever the experts: here every token stays where it is.
    """
    chosen = {"prompt": [[[0]], [[1]]], "decode": [[[0]]], "devices": [[0], [1]]}
    made = scenario(tmp_path, [(0, 3, 1), (0, 1, 1)], chosen, "parallelism.dispatch=all_gather",
                    "request_router=round_robin")
    result = moesim.simulate(made)
    spans = result.spans[result.spans["device"] == 0].set_index("phase")
    assert spans.loc["dispatch", "end_s"] - spans.loc["dispatch", "start_s"] == 3 * (5 + 12)
    assert spans.loc["combine", "end_s"] - spans.loc["combine", "start_s"] == 5 + 12
    # out of device 0: 3 tokens three times; out of device 1: 1; then the other way round, and as much comes in
    assert result.links.set_index("class")["dispatch_bytes"].groupby(level=0).sum()["scale_up_out"] == 3 * (12 + 4)
    assert result.links.set_index("class")["combine_bytes"].groupby(level=0).sum()["scale_up_out"] == 16
    with pytest.raises(moesim.ConfigError, match="overlap: does not go with parallelism.dispatch all_gather"):
        moesim.override(made, ("detail=events", "overlap=two_batch"))
    with pytest.raises(moesim.ConfigError, match="does not go with engine.graphs"):
        moesim.override(made, ("detail=events", "overlap=two_batch", "parallelism.dispatch=all_to_all",
                               "engine.graphs=8"))
