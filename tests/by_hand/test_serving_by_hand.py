"""Serving worked on paper: who is admitted when, and what memory has to do with it (machine: ``serving_machine``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving_machine import batches, room_for, scenario

import moesim

THREE = [(0, 2, 3)] * 3  # each needs the KV of 2 + 3 - 1 = 4 tokens: the last token is never read again


def test_memory_for_two_lets_two_in(tmp_path: Path) -> None:
    result = moesim.simulate(scenario(tmp_path, THREE, None, room_for(8)))
    assert batches(result) == [(4, 0), (0, 2), (0, 2), (2, 0), (0, 1), (0, 1)]
    assert result.steps["running"].tolist() == [2, 2, 2, 1, 1, 1]
    assert result.steps["waiting"].tolist() == [1, 1, 1, 0, 0, 0]
    assert result.steps["kv_tokens"].tolist() == [0, 4, 6, 0, 2, 3]  # as the step begins
    assert result.requests["finish_s"].tolist() == [result.steps["end_s"][i] for i in (2, 2, 5)]
    assert result.memory["kv_peak_bytes"].tolist() == [64]  # not the 32 of the last request
    assert result.memory["kv_capacity_bytes"].tolist() == [64]


def test_a_byte_less_lets_one_in(tmp_path: Path) -> None:
    result = moesim.simulate(scenario(tmp_path, THREE, None, room_for(8 - 1 / 8)))
    assert batches(result) == [(2, 0), (0, 1), (0, 1)] * 3


ONE_AT_A_TIME = [(2, 0), (0, 1), (0, 1)] * 3


def test_the_fullest_device_of_a_tensor_parallel_group_decides(tmp_path: Path) -> None:
    """Device 0 has three of four experts: 36 bytes. Beside them half the tables, 4 values, half of qkv, 6 x 2, and of
    out, 2 x 2, the gate 4 x 2 and norms 6: 34 values, 68 bytes. A token's KV on it: one head of two, 8 bytes."""
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0, 1, 2], [3]]}
    heads = ("parallelism.tp=2", "model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}")
    requests = [(0, 1, 3)] * 3  # three tokens each: room for one on device 0, for two on device 1
    result = moesim.simulate(scenario(tmp_path, requests, chosen, *heads, room_for(3, weights=68 + 36)))
    assert result.memory["non_expert_bytes"].tolist() == [68, 68]
    assert result.memory["kv_capacity_bytes"].tolist() == [24, 24 + 24]
    assert batches(result) == [(1, 0), (0, 1), (0, 1)] * 3
    assert result.memory["kv_peak_bytes"].tolist() == [24, 24]


def test_memory_is_that_of_the_group_of_a_device(tmp_path: Path) -> None:
    """Two groups of two devices, one request of three tokens: devices 0 and 1 hold it, one head each."""
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0], [1], [2], [3]]}
    heads = ("parallelism.tp=2", "model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}")
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 3)], chosen, *heads))
    assert result.memory["kv_peak_bytes"].tolist() == [24, 24, 0, 0]


def test_with_the_context_everywhere_the_fullest_device_decides_for_all(tmp_path: Path) -> None:
    """36 values (the gate has 6) and two experts, 72 + 24 bytes, on device 0: room for one request, wherever it is."""
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0, 1], [2]]}
    coherent = "parallelism.mode=context_coherent"
    result = moesim.simulate(scenario(tmp_path, THREE, chosen, coherent, room_for(4, weights=72 + 24)))
    assert result.memory["kv_capacity_bytes"].tolist() == [32, 32 + 12]
    assert batches(result) == ONE_AT_A_TIME
    assert result.memory["kv_peak_bytes"].tolist() == [32, 32]


def test_experts_that_fit_only_if_spread_evenly(tmp_path: Path) -> None:
    """38 values and two of four experts would be 100 bytes, all four on device 0 are 124."""
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0, 1, 2, 3], []]}
    moesim.simulate(scenario(tmp_path, [(0, 1, 1)], chosen, room_for(1, weights=76 + 48)))
    with pytest.raises(moesim.ConfigError, match="placement: device 0 has .*B too little memory for the experts"):
        moesim.simulate(scenario(tmp_path, [(0, 1, 1)], chosen, room_for(0, weights=76 + 47)))


def test_a_request_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(moesim.ConfigError) as caught:
        moesim.simulate(scenario(tmp_path, THREE, None, room_for(3)))
    assert "request 0 needs the KV of 4 tokens, the memory left beside the weights holds 3 (1 too few)" in str(
        caught.value)


def test_a_request_as_long_as_the_context_runs_and_a_longer_one_does_not(tmp_path: Path) -> None:
    assert batches(moesim.simulate(scenario(tmp_path, [(0, 15, 1)]))) == [(15, 0)]  # 15 + 1 = 16
    with pytest.raises(moesim.ConfigError, match="request 0 has 17 tokens, above the model's context of 16"):
        moesim.simulate(scenario(tmp_path, [(0, 15, 2)]))


def test_the_head_of_the_line_holds_back_the_others(tmp_path: Path) -> None:
    """Room for 8: the second needs all of it, so the third waits although it would fit beside the first."""
    requests = [(0, 2, 3), (0, 6, 3), (0, 1, 1)]  # 4, 8 and 1 tokens
    result = moesim.simulate(scenario(tmp_path, requests, None, room_for(8)))
    assert batches(result) == [(2, 0), (0, 1), (0, 1), (6, 0), (0, 1), (0, 1), (1, 0)]


def test_prompts_fill_max_tokens_and_a_longer_one_runs_alone(tmp_path: Path) -> None:
    """At most 8: 5 + 3 are 8, 4 and 9 are not, 9 is more than 8 and runs all the same."""
    requests = [(0, n, 1) for n in (5, 3, 4, 9, 1)]
    result = moesim.simulate(scenario(tmp_path, requests, None, "scheduler.max_tokens=8"))
    assert batches(result) == [(8, 0), (4, 0), (9, 0), (1, 0)]
    assert result.requests["first_token_s"].is_monotonic_increasing
    assert result.steps["running"].tolist() == [2, 1, 1, 1]  # who waits for its turn has no memory yet
    assert result.steps["waiting"].tolist() == [3, 2, 1, 0]


def test_who_was_admitted_earlier_goes_first(tmp_path: Path) -> None:
    """The prompt of 6 did not fit into the first step; that of 4 comes while it waits and would have fitted as well."""
    requests = [(0, 5, 1), (0, 6, 1), (0.5, 4, 1)]
    result = moesim.simulate(scenario(tmp_path, requests, None, "scheduler.max_tokens=8"))
    assert batches(result) == [(5, 0), (6, 0), (4, 0)]


def test_max_batch_counts_all_that_have_memory(tmp_path: Path) -> None:
    result = moesim.simulate(scenario(tmp_path, THREE, None, "scheduler.max_batch=2"))
    assert batches(result) == [(4, 0), (0, 2), (0, 2), (2, 0), (0, 1), (0, 1)]


@pytest.mark.parametrize(("prefill", "expected"), [
    ("own", [(2, 0), (3, 0), (0, 2), (0, 1)]), ("mixed", [(2, 0), (3, 1), (0, 2)])])
def test_a_prompt_that_arrives_later(tmp_path: Path, prefill: str, expected: list[tuple[int, int]]) -> None:
    """The second comes while the first step runs: in a step of its own, or beside the first one's decode."""
    requests = [(0, 2, 3), (0.5, 3, 2)]
    result = moesim.simulate(scenario(tmp_path, requests, None, f"scheduler.prefill={prefill}"))
    assert batches(result) == expected
    assert result.requests["arrival_s"].tolist() == [0, 0.5]  # nobody moves them


def test_time_passes_until_the_next_request_comes(tmp_path: Path) -> None:
    for detail in ("steps", "events"):
        result = moesim.simulate(scenario(tmp_path, [(3, 1, 1), (1e6, 1, 1)], None, f"detail={detail}"))
        assert result.steps["start_s"].tolist() == [3, 1e6]
        assert result.requests["ttft_s"].tolist() == pytest.approx(
            (result.steps["end_s"] - result.steps["start_s"]).tolist())
        assert result.requests["tpot_s"].isna().all()  # one output token: nothing is decoded
        assert np.isnan(result.summary()["tpot_p50_s"])


def test_closed_loop_users_send_the_next_request_when_one_is_done(tmp_path: Path) -> None:
    loop = "requests={kind: closed_loop, concurrency: 2, count: 5, prompt_tokens: 1, output_tokens: 2}"
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1)], None, loop))
    # both are done after two steps: two more come at once, then the last
    assert batches(result) == [(2, 0), (0, 2)] * 2 + [(1, 0), (0, 1)]
    ends = result.steps["end_s"]
    assert result.requests["arrival_s"].tolist() == [0, 0, ends[1], ends[1], ends[3]]
