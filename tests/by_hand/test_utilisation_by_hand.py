"""What steps need, and how much of the machine that is: MFU and MBU worked on paper (machine: ``serving_machine``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_machine import dense, room_for, scenario

import moesim
from moesim.metrics import utilisation

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
NEEDS = ["model_flop_bf16", "read_bytes"]


def needed(made: moesim.Scenario) -> list[tuple[float, float]]:
    """Return the FLOP and bytes of every step."""
    return [tuple(row) for row in moesim.simulate(made).steps[NEEDS].to_numpy().tolist()]


def test_a_prompt_and_a_decode(tmp_path: Path) -> None:
    """Per token: qkv 24, out 8, gate 4, expert 2 x 6: 48 FLOP. A pair 2 x (2 + 2), the head 2 x 4: 8 each.

    Weights: 64 bytes without experts, of which two tables of 8 (the embedding is not read); the expert 12; KV 8.
    """
    prompt = 2 * 48 + 3 * 8 + 8, 48 + 8 + 12 + 2 * 8
    decode = 48 + 3 * 8 + 8, 48 + 8 + 12 + 3 * 8
    assert needed(scenario(tmp_path, [(0, 2, 2)])) == [prompt, decode]


def test_chunks_and_what_gives_no_token(tmp_path: Path) -> None:
    """A prompt of 3 as 2 and 1 tokens: the first chunk leaves the head alone, the second reads the KV of all 3."""
    found = needed(scenario(tmp_path, [(0, 3, 1)], None, "scheduler={name: vllm, max_tokens: 2}"))
    assert found == [(2 * 48 + 3 * 8, 48 + 12 + 2 * 8), (48 + 3 * 8 + 8, 48 + 8 + 12 + 3 * 8)]


def test_experts_are_read_where_they_are_chosen(tmp_path: Path) -> None:
    """Two devices, two experts each; the prompt's tokens choose 0, 1 and 1, 2. Its decode 2, 3: both on device 1."""
    chosen = {"prompt": [[[0, 1]], [[1, 2]]], "decode": [[[2, 3]]], "devices": [[0, 1], [2, 3]]}
    (_, prompt), (_, decode) = needed(scenario(tmp_path, [(0, 2, 2)], chosen))
    weights = 48 + 6 * 2  # of gates, three more columns of two values
    assert prompt == weights + 8 + 3 * 12 + 2 * 8 and decode == weights + 8 + 2 * 12 + 3 * 8  # one device is without


def test_every_device_with_tokens_reads_the_weights(tmp_path: Path) -> None:
    """Two requests on two devices, of 1 and 2 output tokens: in the second step one of them is idle."""
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0], [1]]}
    made = scenario(tmp_path, [(0, 1, 1), (0, 1, 2)], chosen, "request_router=round_robin")
    weights = 48 + 4 + 8
    assert [read for _, read in needed(made)] == [2 * weights + 12 + 2 * 8, weights + 12 + 2 * 8]
    every = needed(moesim.override(made, ("parallelism.mode=context_coherent",)))
    assert [read for _, read in every] == [2 * weights + 12 + 2 * 2 * 8, weights + 12 + 2 * 8]  # both run both prompts


def test_a_window_bounds_pairs_and_bytes(tmp_path: Path) -> None:
    """Tokens see themselves and one before: of three, 1 + 2 + 2 pairs; a decode reads two tokens' KV.

    No gate: 44 FLOP per token and 64 - 4 + 12 bytes of weights, of which 8 are the embedding.
    """
    made = dense(tmp_path, [(0, 3, 2)], 1, "model.attention={kind: gqa, heads: 1, kv_heads: 1, head_dim: 2, window: 2}")
    assert needed(made) == [(3 * 44 + 5 * 8 + 8, 64 + 3 * 8), (44 + 2 * 8 + 8, 64 + 2 * 8)]


@given(scheduler=st.sampled_from(["vllm", "{name: vllm, max_tokens: 5}", "static", "decode_first",
                                  "{name: prefill_first, prefill: mixed}", "{name: prefill_first, reserve: false}"]),
       blocks=st.integers(5, 30), graphs=st.sampled_from([0, 16]), ahead=st.booleans(), output=st.integers(1, 40),
       how=st.sampled_from([(), ("parallelism.tp=2",), ("parallelism.ep=1",), ("trace={balanced: true}",),
                            ("parallelism.mode=context_coherent",), ("detail=events", "overlap=two_batch")]))
@settings(max_examples=12, deadline=None)
def test_model_flop_are_those_of_the_tokens_however_they_are_served(scheduler: str, blocks: int, graphs: int,
                                                                    ahead: bool, output: int, how: tuple) -> None:
    """Chunks, preemption, padding, halves and copies of the model change nothing."""
    graphs = 0 if {"parallelism.mode=context_coherent", "overlap=two_batch"} & set(how) else graphs
    run = moesim.simulate(moesim.load(TINY, (
        f"scheduler={scheduler}", f"kv.blocks={blocks}", f"engine.graphs={graphs}", f"engine.asynchronous={ahead}",
        f"requests.output_tokens={output}", "kernels=roofline", *how)))
    stored = run.requests["prompt_tokens"] + run.requests["output_tokens"] - 1
    # Two layers of 64: qkv 128, out 64, gate 4 and two experts of 3 x 32 columns; 4 heads of 16; vocabulary 100.
    token, pair, head = 2 * 2 * 64 * (128 + 64 + 4 + 2 * 96), 2 * 2 * 4 * 32, 2 * 64 * 100
    expected = (stored * token + stored * (stored + 1) / 2 * pair + run.requests["output_tokens"] * head).sum()
    assert run.steps["model_flop_bf16"].sum() == pytest.approx(expected)
    table = utilisation(run.steps, run.meta)
    assert (table[["mfu", "mbu"]] > 0).all(axis=None) and (table[["mfu", "mbu"]] <= 1).all(axis=None)


def test_preempted_tokens_count_once(tmp_path: Path) -> None:
    """KV for 4 tokens, two requests of 1 + 3: the second is thrown out and computes again what it had."""
    made = dense(tmp_path, [(0, 1, 3), (0, 1, 3)], 1, "scheduler=vllm", room_for(4, 76))
    scarce, ample = (moesim.simulate(moesim.override(made, more)) for more in ((), (room_for(8, 76),)))
    assert scarce.requests["preemptions"].sum() == 1 and not ample.requests["preemptions"].any()
    again = scarce.steps["prefill_tokens"].sum() - ample.steps["prefill_tokens"].sum()
    assert again > 0
    assert scarce.steps["model_flop_bf16"].sum() == ample.steps["model_flop_bf16"].sum()
    assert scarce.steps["read_bytes"].sum() > ample.steps["read_bytes"].sum()  # weights are read in more steps


def test_llama_alone_reads_its_weights() -> None:
    """Llama-3.1-8B has 8,030,261,248 weights of 2 bytes; the embedding of 128,256 x 4,096 is not read."""
    run = moesim.simulate(moesim.load(TINY, (
        "model=llama-3.1-8b", "hardware=rtx-pro-6000-1x1", "trace=null", "placement=null", "scheduler=vllm",
        "requests={kind: closed_loop, concurrency: 1, count: 1, prompt_tokens: 100, output_tokens: 11}")))
    decode = utilisation(run.steps, run.meta).loc["decode"]
    kv = 2 * 8 * 128 * 32 * 2 * sum(range(101, 111))  # keys and values of 8 heads, 32 layers, bf16
    bytes_ = 10 * 2 * (8_030_261_248 - 128_256 * 4096) + kv
    assert decode["read_bytes"] == bytes_ and decode["steps"] == 10
    assert decode["mbu"] == pytest.approx(bytes_ / (run.meta["devices"]["bandwidth_bytes_per_s"] * decode["time_s"]))
    assert 0.5 < decode["mbu"] < 1
    flop = run.steps["model_flop_bf16"].iloc[1:].sum()
    matrices = 8_030_261_248 - 128_256 * 4096 - 65 * 4096  # without 2 x 32 + 1 norms
    assert flop == 10 * 2 * matrices + 32 * 32 * 2 * 256 * sum(range(101, 111))


def test_kinds_of_steps_and_time_that_two_share() -> None:
    """Island 0: a prompt 0-4 s, a decode that begins at 2 s and ends at 6 s, a mixed step 7-8 s. Island 1: 0-8 s."""
    steps = pd.DataFrame({
        "island": [0, 1, 0, 0], "start_s": [0.0, 0.0, 2.0, 7.0], "end_s": [4.0, 8.0, 6.0, 8.0],
        "prefill_tokens": [5, 0, 0, 3], "decode_tokens": [0, 2, 1, 1],
        "model_flop_bf16": [8.0, 4.0, 1.0, 3.0], "read_bytes": [2.0, 10.0, 5.0, 1.0]})
    devices = {"step_together": 2, "peak_flop_per_s": {"bf16": 4.0}, "bandwidth_bytes_per_s": 1.0}
    table = utilisation(steps, {"devices": devices})
    assert list(table.index) == ["prefill", "decode", "mixed", "all"]
    assert table["steps"].tolist() == [1, 2, 1, 4] and table["time_s"].tolist() == [4, 10, 1, 15]
    assert table["mfu"].tolist() == [8 / 4 / 8, 5 / 4 / 20, 3 / 4 / 2, 16 / 4 / 30]
    assert table["mbu"].tolist() == [2 / 8, 15 / 20, 1 / 2, 18 / 30]
    assert np.array_equal(table["model_flop"], [8, 5, 3, 16])
