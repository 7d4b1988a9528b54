"""Serving worked on paper: who is admitted when, which trace rows each request uses, what a step exchanges.

The machine is that of ``test_two_devices``: memory moves 1 byte/s and compute is free, links move 1 byte/s after 5 s,
values have 2 bytes, the hidden state 2 values. Keys and values of a token are 2 x 2 values: 8 bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simpy
from moesim.serving.view import QueueView

import moesim
from moesim.network import LeafSpine, Network
from moesim.network.collective import Constants
from moesim.placement.placement import CapacityError, Placement
from moesim.registry import make
from moesim.sim.inputs import prepare
from moesim.sim.operators import Operators
from moesim.sim.server import Server

SCENARIO = """
name: by hand
model:
  {{name: hand, source: worked on paper, hidden: 2, layers: {layers}, vocabulary: 2, context: 16,
   attention: {{kind: gqa, heads: 1, kv_heads: 1, head_dim: 2}}, moe: {{experts: {experts}, top_k: {top_k}, ffn: 1}},
   dtype: {{weights: bf16, experts: bf16, kv: bf16, activations: bf16}}}}
hardware:
  name: devices
  source: worked on paper
  device:
    name: device
    source: worked on paper
    processor: {{peak: {{bf16: 1000 TFLOP/s}}, bandwidth: 1 B/s, multiprocessors: 1}}
    memory: [{{name: hbm, capacity: 1 kB, bandwidth: 1 B/s}}]
    idle_power: 1 W
    busy_power: 3 W
  devices_per_node: {devices}
  nodes: 1
  scale_up: {{bandwidth: 1 B/s, efficiency: 1.0, startup: 5 s, ramp: 0 s}}
trace: {{path: trace.parquet}}
requests: {{kind: replay, path: requests.csv}}
placement: {{path: placement.json}}
scheduler: {{name: prefill_first}}
kernels: roofline
memory_fraction: 0.5
span_steps: -1
"""
REPEATS = 2  # a trace has as many requests to profile as to evaluate


def scenario(folder: Path, requests: list[tuple[float, int, int]], chosen: dict[str, list] | None = None,
             *overrides: str) -> moesim.Scenario:
    """Write and load a scenario: *requests* (arrival, prompt, output), experts *chosen* by every traced request.

    *chosen* has a list of tokens for ``prompt`` and for ``decode``, each token a list of layers, each a list of
    experts, and the experts of each device of the placement (``devices``).
    """
    chosen = chosen or {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0]]}
    tokens = [*chosen["prompt"], *chosen["decode"]]
    experts = np.array(tokens * REPEATS)
    n_layers, top_k = experts.shape[1:]
    device_of = np.empty(sum(map(len, chosen["devices"])), int)
    for device, held in enumerate(chosen["devices"]):
        device_of[held] = device
    n, phase = len(tokens), [0] * len(chosen["prompt"]) + [1] * len(chosen["decode"])
    moesim.RoutingTrace.from_arrays(
        experts, n_experts=len(device_of), top_k=top_k, request=np.repeat(np.arange(REPEATS), n),
        position=list(range(n)) * REPEATS, phase=phase * REPEATS, model="hand").write(folder / "trace.parquet")
    Placement.from_device_of([device_of] * n_layers, len(chosen["devices"])).save(folder / "placement.json")
    table = pd.DataFrame(requests, columns=["arrival_s", "prompt_tokens", "output_tokens"])
    table.to_csv(folder / "requests.csv", index=False)
    (folder / "hand.yaml").write_text(SCENARIO.format(
        layers=n_layers, experts=len(device_of), top_k=top_k, devices=len(chosen["devices"])))
    return moesim.load(folder / "hand.yaml", overrides)


def batches(result: moesim.Result) -> list[tuple[int, int]]:
    """Return the prompt and decode tokens of every step."""
    return list(zip(result.steps["prefill_tokens"], result.steps["decode_tokens"], strict=True))


# One device, one expert. Tables 8 values, qkv 12, out 4, gate 2, norms 3 x 2: 32 values; the expert 6: 76 bytes.
WEIGHTS = 76


def room_for(kv_tokens: float, weights: int = WEIGHTS) -> str:
    """Return the override that leaves memory for the KV of so many tokens (half of the memory may be used)."""
    return f"hardware.device.memory=[{{name: hbm, capacity: {2 * (weights + 8 * kv_tokens)} B, bandwidth: 1 B/s}}]"


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
    assert result.steps["running"].tolist() == [5, 3, 2, 1]  # admitted at once, prompts take turns


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


def test_groups_share_what_comes_in_one_step() -> None:
    """Group 0 serves one request already: the first goes to 1, then both serve one, then 1 is behind again."""
    view = QueueView(waiting=np.arange(1, 9), admitted=np.empty(0, int), running=np.array([0]),
                     prompt_tokens=np.full(9, 2), kv_tokens=np.full(9, 4), requests=np.array([1, 0]),
                     pool=np.arange(2), free_tokens=np.array([96, 100]))
    scheduler = make("scheduler", {"name": "prefill_first", "max_batch": 4})
    assert scheduler.plan(view, make("request_router", "fewest_requests")).admit == {1: 1, 2: 0, 3: 1}
    assert scheduler.plan(view, make("request_router", "least_loaded")).admit == {1: 1, 2: 0, 3: 1}


def test_closed_loop_users_send_the_next_request_when_one_is_done(tmp_path: Path) -> None:
    loop = "requests={kind: closed_loop, concurrency: 2, count: 5, prompt_tokens: 1, output_tokens: 2}"
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1)], None, loop))
    # both are done after two steps: two more come at once, then the last
    assert batches(result) == [(2, 0), (0, 2)] * 2 + [(1, 0), (0, 1)]
    ends = result.steps["end_s"]
    assert result.requests["arrival_s"].tolist() == [0, 0, ends[1], ends[1], ends[3]]


# --- which trace rows a request uses -------------------------------------------------------------------------------

def captured(folder: Path, lengths: dict[int, tuple[int, int]], domains: dict[int, str] | None = None,
             **overrides: str) -> moesim.Scenario:
    """Write a trace as captures do, step by step, of requests with so many prompt and decode rows; load a scenario."""
    made = scenario(folder, [(0, 1, 1)])
    rows = [(request, position, position >= prompt) for request, (prompt, decode) in lengths.items()
            for position in range(prompt + decode)]
    rows.sort(key=lambda row: (row[1] if row[2] else 0, row[1], row[0]))  # all prompts first, interleaved
    request, position, decode = np.array(rows).T
    moesim.RoutingTrace.from_arrays(
        np.zeros((len(rows), 1, 1), int), 1, 1, request=request, position=position, phase=decode, model="hand",
        domain=[(domains or {}).get(r, "text") for r in request]).write(folder / "trace.parquet")
    return moesim.override(made, [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()])


LENGTHS = {3: (2, 3), 4: (3, 1), 5: (1, 2), 8: (4, 2), 9: (2, 1), 11: (5, 4), 12: (2, 2), 20: (3, 3)}
PAIRED = {"trace__join": "paired", "requests": "{kind: closed_loop, concurrency: 1, count: 4}"}


def test_paired_requests_are_the_traces_own(tmp_path: Path) -> None:
    inputs = prepare(captured(tmp_path, LENGTHS, **PAIRED))
    traced = sorted(inputs.trace.requests.tolist())
    assert len(traced) == 4 and set(traced) < set(LENGTHS)  # the half that solvers do not see
    assert inputs.requests["prompt_tokens"].tolist() == [LENGTHS[r][0] for r in traced]
    assert inputs.requests["output_tokens"].tolist() == [LENGTHS[r][1] + 1 for r in traced]  # the prompt gives one
    tokens = inputs.trace.tokens
    every = np.arange(4)
    prompt = tokens.iloc[inputs.rows.prompt(every, inputs.requests["prompt_tokens"].to_numpy())]
    assert list(zip(prompt["request"], prompt["position"], prompt["phase"], strict=True)) == [
        (r, i, 0) for r in traced for i in range(LENGTHS[r][0])]
    for i in range(min(LENGTHS[r][1] for r in traced)):
        decode = tokens.iloc[inputs.rows.decode(every, np.full(4, i))]
        assert list(zip(decode["request"], decode["position"], decode["phase"], strict=True)) == [
            (r, LENGTHS[r][0] + i, 1) for r in traced]


def test_more_paired_requests_than_traced_ones_are_refused(tmp_path: Path) -> None:
    one_more = PAIRED | {"requests": "{kind: closed_loop, concurrency: 1, count: 5}"}
    with pytest.raises(moesim.ConfigError, match="requests.count: 5 is more than the 4 requests of the evaluation"):
        prepare(captured(tmp_path, LENGTHS, **one_more))


def test_resampled_requests_wrap_around(tmp_path: Path) -> None:
    """All traced requests have two prompt rows and three decode rows: 0 1 0 1 0 and 0 1 2 0 1."""
    inputs = prepare(captured(tmp_path, dict.fromkeys(range(6), (2, 3)), requests=(
        "{kind: closed_loop, concurrency: 1, count: 2, prompt_tokens: 5, output_tokens: 6}")))
    tokens, requests = inputs.trace.tokens, np.array([1, 0])
    prompt = tokens.iloc[inputs.rows.prompt(requests, np.array([5, 4]))]
    assert prompt["position"].tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 1]
    assert (prompt["phase"] == 0).all()
    assert prompt["request"].iloc[:5].nunique() == prompt["request"].iloc[5:].nunique() == 1
    decode = [tokens.iloc[inputs.rows.decode(requests, np.full(2, i))] for i in range(5)]
    assert [d["position"].tolist() for d in decode] == [[2, 2], [3, 3], [4, 4], [2, 2], [3, 3]]
    assert all(d["request"].tolist() == [prompt["request"].iloc[0], prompt["request"].iloc[5]] for d in decode)


def test_traced_requests_are_dealt_in_turn_and_begin_elsewhere_the_second_time(tmp_path: Path) -> None:
    """Forty requests, three to draw from: 14, 13 and 13. The first draw of each begins with its first row."""
    inputs = prepare(captured(tmp_path, dict.fromkeys(range(6), (2, 3)), requests=(
        "{kind: closed_loop, concurrency: 1, count: 40, prompt_tokens: 5, output_tokens: 6}")))
    tokens, every = inputs.trace.tokens, np.arange(40)
    drawn = tokens["request"].to_numpy()[inputs.rows.prompt_start]
    assert sorted(np.unique(drawn, return_counts=True)[1]) == [13, 13, 14] and set(drawn) == set(inputs.trace.requests)
    begin = tokens["position"].to_numpy()[inputs.rows.decode(every, np.zeros(40, int))]
    assert begin[:3].tolist() == [2, 2, 2] and set(begin[3:]) == {2, 3, 4}
    after = tokens["position"].to_numpy()[inputs.rows.decode(every, np.ones(40, int))]
    assert ((after - begin) % 3 == 1).all()


def test_requests_without_decode_rows_are_not_drawn(tmp_path: Path) -> None:
    lengths = dict.fromkeys(range(20), (2, 0)) | {r: (2, 1) for r in range(20, 28)}
    inputs = prepare(captured(tmp_path, lengths, requests=(
        "{kind: closed_loop, concurrency: 1, count: 30, prompt_tokens: 1, output_tokens: 2}")))
    assert (inputs.trace.tokens["request"].to_numpy()[inputs.rows.prompt_start] >= 20).all()
    assert (inputs.rows.decode_count == 1).all()


def test_a_domain_draws_from_its_own_requests(tmp_path: Path) -> None:
    domains = {r: "code" if r % 3 else "prose" for r in range(30)}
    made = captured(tmp_path, dict.fromkeys(range(30), (1, 1)), domains)
    wanted = ["code", "prose", "prose", "code"] * 5
    table = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": 1, "output_tokens": 1, "domain": wanted})
    table.to_csv(tmp_path / "requests.csv", index=False)
    inputs = prepare(made)
    drawn = inputs.trace.tokens.iloc[inputs.rows.prompt_start]
    assert drawn["domain"].tolist() == wanted and drawn["request"].nunique() > 4
    table.assign(domain="verse").to_csv(tmp_path / "requests.csv", index=False)
    with pytest.raises(moesim.ConfigError, match="domain 'verse' is not in the evaluation part of the trace, which "
                                                 "has code, prose; correct it"):
        prepare(made)


@pytest.mark.parametrize(("name", "lengths", "there"), [("decode", (2, 0), 0), ("prefill", (0, 2), 1)])
def test_a_phase_that_was_not_traced(tmp_path: Path, name: str, lengths: tuple[int, int], there: int) -> None:
    made = captured(tmp_path, dict.fromkeys(range(4), lengths))
    with pytest.raises(moesim.ConfigError, match=f"the trace has no {name} rows; set trace.any_phase: true"):
        prepare(made)
    result = moesim.simulate(moesim.override(made, ["trace.any_phase=true"]))
    assert "trace rows of one phase may stand for those of the other (trace.any_phase)" in result.meta["warnings"]
    inputs = prepare(moesim.override(made, ["trace.any_phase=true"]))
    assert (inputs.trace.tokens["phase"] == there).all()
    assert inputs.rows.decode(np.array([0, 0]), np.array([0, 2])).tolist() == [inputs.rows.prompt_start[0]] * 2


@pytest.mark.parametrize(("override", "message"), [
    ("model.name=other", "the trace was taken from 'hand', the model is 'other'; set trace.scaled: true"),
    ("model.moe.experts=2", "the trace has 1 experts, model hand has 2; choose the model that was traced"),
    ("model.layers=2", "the trace has 1 MoE layers, model hand has 2"),
])
def test_a_trace_of_another_model_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(moesim.ConfigError) as caught:
        prepare(scenario(tmp_path, THREE, None, override))
    assert message in str(caught.value) and "hand.yaml" in str(caught.value)


# --- what a step exchanges -----------------------------------------------------------------------------------------

def test_a_decode_uses_its_own_row(tmp_path: Path) -> None:
    """The prompt and the first decoded token stay on device 0, the second goes to device 1 and back, the third not."""
    chosen = {"prompt": [[[0]]], "decode": [[[0]], [[1]], [[0]]], "devices": [[0], [1]]}
    steps = moesim.simulate(scenario(tmp_path, [(0, 1, 4)], chosen)).steps
    assert steps["dispatch_s"].tolist() == steps["combine_s"].tolist() == [0, 0, 9, 0]  # 5 + 4 bytes


def test_utilisation_is_of_the_whole_run(tmp_path: Path) -> None:
    """Two requests, the second at 1000 s: each sends 4 bytes there and gets 4 back."""
    chosen = {"prompt": [[[1]]], "decode": [[[1]]], "devices": [[0], [1]]}
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1), (1000, 1, 1)], chosen))
    makespan, links = result.summary()["makespan_s"], result.links.set_index("name")
    assert makespan > 1000 and links.loc["device0->switch0", "utilisation"] == pytest.approx(8 / makespan)


@pytest.mark.parametrize(("deduplicate", "bytes_"), [("true", 4), ("false", 8)])
def test_a_token_goes_once_to_a_device_or_once_per_expert(tmp_path: Path, deduplicate: str, bytes_: int) -> None:
    """Both experts of the token are on the other device."""
    chosen = {"prompt": [[[2, 3]]], "decode": [[[2, 3]]], "devices": [[0, 1], [2, 3]]}
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1)], chosen, f"parallelism.deduplicate={deduplicate}"))
    assert result.steps["dispatch_s"].tolist() == result.steps["combine_s"].tolist() == [5 + bytes_]
    links = result.links.set_index("name")
    out, home = links.loc["device0->switch0"], links.loc["switch0->device0"]
    assert (out["dispatch_bytes"], out["combine_bytes"]) == (bytes_, 0)  # there by one link, home by the other
    assert (home["dispatch_bytes"], home["combine_bytes"]) == (0, bytes_)
    assert out["bytes"] == bytes_
    assert out["utilisation"] == pytest.approx(bytes_ / result.summary()["makespan_s"])  # 1 byte/s


# --- what operators take -------------------------------------------------------------------------------------------

def hand_operators(folder: Path, *overrides: str) -> Operators:
    return Operators(scenario(folder, [(0, 1, 1)], None, *overrides))


def test_seconds_of_operators_are_their_bytes(tmp_path: Path) -> None:
    """Memory moves 1 byte/s. [m, k] x [k, n] moves 2 (m (n + k) + n k) bytes, a norm 16 per token."""
    operators, m = hand_operators(tmp_path), np.array([0, 1, 3])
    # qkv n = 6: 16 m + 24; out n = 2: 8 m + 8; norm 16 m
    assert operators.projections(m).tolist() == [0, 40 + 32, 3 * 40 + 32]
    assert operators.head(m).tolist() == [0, 8 + 8, 24 + 8]
    assert operators.projections(np.array([[3], [1]])).tolist() == [[152], [72]]  # asked again, in another shape
    # per token of context key and value, 4 values; per request query and output, 4 values
    assert operators.decode_attention(np.array([0, 1, 2]), np.array([0, 3, 7])).tolist() == [0, 2 * 16, 2 * 36]
    # two experts have tokens: 3 matrices of 2 values each, 12 bytes; 3 tokens in and out, 8 bytes each
    assert operators.experts(np.array([[2, 0, 1], [0, 0, 0]])).tolist() == [2 * 12 + 3 * 8, 0]


def test_narrow_keys_and_values_are_read_faster(tmp_path: Path) -> None:
    """In fp8 a token of context is 4 bytes, not 8; query and output stay 4 values of 2 bytes."""
    operators = hand_operators(tmp_path, "model.dtype.kv=fp8")
    assert operators.decode_attention(np.array([1, 2]), np.array([3, 7])).tolist() == [3 * 4 + 8, 7 * 4 + 16]


def test_layers_without_experts_and_shared_experts(tmp_path: Path) -> None:
    other = ("model.layers=2", "model.moe.layers=[1]", "model.dense_ffn=4", "model.moe.shared_ffn=2")
    heads = "model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}"
    m = np.array([0, 1, 3])
    for tp, dense in ((1, lambda m: 48 * m + 48), (2, lambda m: 36 * m + 24)):
        made = hand_operators(tmp_path, *other, heads, "hardware.devices_per_node=2", f"parallelism.tp={tp}")
        # whole: up n = 8: 20 m + 32, down k = 4: 12 m + 16; half: up n = 4: 12 m + 16, down k = 2: 8 m + 8; norm 16 m
        assert made.dense(m).tolist() == [0, *dense(m[1:])]
        # whole on every device, without a norm of their own: up n = 4: 12 m + 16, down k = 2: 8 m + 8
        assert made.shared(m).tolist() == [0, 20 + 24, 60 + 24]
        # the output head is shared: n = 2: 8 m + 8, n = 1: 6 m + 4
        assert made.head(m).tolist() == ([0, 16, 32] if tp == 1 else [0, 10, 22])


def test_experts_without_a_gate_have_two_matrices(tmp_path: Path) -> None:
    operators = hand_operators(tmp_path, "model.gated_ffn=false")
    assert operators.experts(np.array([[2, 0, 1]])).tolist() == [2 * 8 + 3 * 8]


def test_a_window_shortens_what_a_prompt_attends_to(tmp_path: Path) -> None:
    """1 FLOP/s and free memory: 2 x (2 + 2) FLOP for each of 1 + 2 + 3 + 4 pairs, or 1 + 2 + 2 + 2 in a window of 2."""
    free = "hardware.device.processor={peak: {bf16: 1 FLOP/s}, bandwidth: 1 PB/s, multiprocessors: 1}"
    operators, prompt = hand_operators(tmp_path, free), np.array([1, 4])
    assert operators.prefill_attention(prompt, 0).tolist() == [8, 80]
    assert operators.prefill_attention(prompt, 2).tolist() == [8, 56]
    assert operators.prefill_attention(prompt, 4).tolist() == operators.prefill_attention(prompt, 9).tolist() == [8, 80]


def test_a_server_does_one_thing_after_the_other() -> None:
    """A job of 3 s, at once another of 2 s; a third at 10 s, when nothing is left to do."""
    env = simpy.Environment()
    server = Server(env)
    assert [server.serve(seconds) for seconds in (3.0, 2.0)] == [0, 3]
    env.run(until=10)
    assert server.serve(1.0) == 10
    env.run(until=server.done())
    assert (env.now, server.free_at) == (11, 11)


@pytest.mark.parametrize(("kept", "steps"), [(0, []), (2, [0, 1]), (-1, [0, 1, 2])])
def test_spans_of_as_many_steps_as_asked_for(tmp_path: Path, kept: int, steps: list[int]) -> None:
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 3)], None, f"span_steps={kept}"))
    assert result.spans["step"].unique().tolist() == steps and len(result.steps) == 3


def test_columns_of_a_step_are_means_over_devices(tmp_path: Path) -> None:
    """Both requests run on device 0, whose group has the expert; device 1 waits. Its links are as busy as the other's.

    Expert 1 is never used: device 0 works 88 s + 38 s + 20 s + 16 s (test_two_devices), device 1 nothing at all.
    """
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0], [1]]}
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1)], chosen))
    row = result.steps.iloc[0]
    assert [row[f"{phase}_s"] for phase in ("attention", "gate", "experts", "head")] == [44, 19, 10, 8]
    assert (row["wait_s"], row["end_s"], row["load_max_over_mean"]) == (81, 162, 2)


def test_spans_of_tensor_parallel_reduces_are_on_the_links(tmp_path: Path) -> None:
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0], [1]]}
    heads = ("parallelism.tp=2", "model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}")
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1)], chosen, *heads))
    servers = result.spans.groupby("phase")["server"].unique()
    assert servers["attention"].tolist() == ["processor"] and servers["attention_reduce"].tolist() == ["links"]
    # One token's hidden state, 4 bytes, in a ring of two: 2 x 1/2 x 4 bytes on every link.
    assert result.links["attention_reduce_bytes"].tolist() == [4] * 4
    assert result.steps["attention_reduce_s"].tolist() == [5 + 4]


# --- what the other pages of by_hand leave out ---------------------------------------------------------------------

IDEAL = Constants(bandwidth=10e9, efficiency=1.0, startup=0.0, ramp=0.0)


def test_norms_stay_in_16_bit(tmp_path: Path) -> None:
    """Tables 8 values, qkv 12, out 4, gate 2 in fp8; norms 6 values of 2 bytes."""
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1)], None, "model.dtype.weights=fp8"))
    assert result.memory["non_expert_bytes"].tolist() == [26 + 12]


@pytest.mark.parametrize("nodes", [1, 3])
def test_all_gather_of_three(nodes: int) -> None:
    """Of 1, 2 and 4 kB everybody passes on 7 less what the next has brought: 5, 3 and 6; and gets what is passed."""
    fabric = LeafSpine(leaves=1, spines=1, hosts_per_leaf=3, link="10 GB/s", latency="0 s")
    net = Network(3, 3 // nodes, IDEAL, fabric, IDEAL) if nodes > 1 else Network(3, 3, IDEAL)
    cost = net.all_gather(1e3 * np.array([1, 2, 4]))
    first = 6 if nodes > 1 else 0  # ports of the fabric come after those of the scale-up switches
    assert (cost.loads[first:first + 6] / 1e3).tolist() == [5, 3, 6, 6, 5, 3]
    assert cost.time_s == pytest.approx(6e3 / 10e9)


def test_groups_that_share_a_link_wait_for_each_other() -> None:
    """Six nodes of one device, two to a leaf, groups of three: 0 1 | 2 3 | 4 5. Both 2 and 3 send out of leaf 1.

    A ring of three puts 2 x 2/3 of 12 kB on a link: 16 kB, and the uplink of leaf 1 has both groups'.
    """
    fabric = LeafSpine(leaves=3, spines=1, hosts_per_leaf=2, link="10 GB/s", latency="0 s")
    cost = Network(6, 1, IDEAL, fabric, IDEAL).all_reduce(np.array([12e3, 12e3]), 3)
    assert cost.time_s == pytest.approx([32e3 / 10e9] * 2)
    alone = Network(6, 1, IDEAL, fabric, IDEAL).all_reduce(np.array([12e3, 0]), 3)
    assert alone.time_s == pytest.approx([16e3 / 10e9, 0])


def test_of_links_in_a_row_the_slowest_counts() -> None:
    fabric = LeafSpine(leaves=2, spines=1, hosts_per_leaf=1, link="10 GB/s", uplink="100 GB/s", latency="0 s")
    cost = Network(2, 1, IDEAL, fabric, IDEAL).all_to_all(np.array([[0, 10e3], [0, 0]]))
    assert cost.time_s == pytest.approx(10e3 / 10e9)


def test_devices_needed_are_rounded_up() -> None:
    with pytest.raises(CapacityError, match="use 5 devices of this kind or more"):
        Placement.from_device_of([[0, 1, 0, 1]] * 2, 2).check_capacity(10e9, 17e9)  # 80 / 17 = 4.7
