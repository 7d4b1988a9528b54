"""Two devices, one layer, two tokens: every span of a run, worked on paper.

The machine is chosen so that arithmetic is easy: compute is free, memory moves 1 byte/s, so the seconds of an operator
(roofline) are the bytes that it must move; links move 1 byte/s after a startup of 5 s. Values are bf16 (2 bytes), the
hidden state has 2 values (4 bytes). Two requests, one per device, each with a prompt of one token and two output
tokens.
Expert 0 is on device 0, expert 1 on device 1. Both prompt tokens choose expert 1; the decoded tokens choose 0 and 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import moesim

SCENARIO = """
name: by hand
model:
  {name: hand, source: worked on paper, hidden: 2, layers: 1, vocabulary: 2, context: 8,
   attention: {kind: gqa, heads: 1, kv_heads: 1, head_dim: 2}, moe: {experts: 2, top_k: 1, ffn: 1},
   dtype: {weights: bf16, experts: bf16, kv: bf16, activations: bf16}}
hardware:
  name: two devices
  source: worked on paper
  device:
    name: device
    source: worked on paper
    processor: {peak: {bf16: 1000 TFLOP/s}, bandwidth: 1 B/s, multiprocessors: 1}
    memory: [{name: hbm, capacity: 1 kB, bandwidth: 1 B/s}]
    idle_power: 1 W
    busy_power: 3 W
  devices_per_node: 2
  nodes: 1
  scale_up: {bandwidth: 1 B/s, efficiency: 1.0, startup: 5 s, ramp: 0 s}
trace: {path: trace.parquet, join: paired, profile_fraction: 0.5}
requests: {kind: closed_loop, concurrency: 2, count: 2}
placement: {solver: linear}
scheduler: {name: prefill_first}
kernels: roofline
kv: {block: 1}
span_steps: -1
"""

# layer, device, server, phase, start, end
DISPATCH_COMBINE = [
    # Step 0, prompts. Attention: qkv [1,2]x[2,6] 2*(6+2)+2*12 = 40, out [1,2]x[2,2] 2*4+2*4 = 16, norm 4 values of
    # 4 B = 16, attention of 1 on 1 token: query 2, key 2, value 2, output 2 values = 16.  Sum 88.
    (0, 0, 0, "processor", "attention", 0, 88),
    (0, 0, 1, "processor", "attention", 0, 88),
    # Gate: norm 16, weights 2x2 and token 2 + logits twice 2*2 + chosen 1 = 11 values = 22.  Sum 38.
    (0, 0, 0, "processor", "gate", 88, 126),
    (0, 0, 1, "processor", "gate", 88, 126),
    # One token goes from 0 to 1: 5 + 4.
    (0, 0, 0, "links", "dispatch", 126, 135),
    (0, 0, 1, "links", "dispatch", 126, 135),
    # Expert 1 has two tokens: 3 matrices of 2 values = 12 B, 2 tokens in and out = 16 B.  Expert 0 has none.
    (0, 0, 1, "processor", "experts", 135, 163),
    (0, 0, 0, "links", "combine", 163, 172),
    (0, 0, 1, "links", "combine", 163, 172),
    # Head [1,2]x[2,2]: 16.
    (0, -1, 0, "processor", "head", 172, 188),
    (0, -1, 1, "processor", "head", 172, 188),
    # Step 1, decode. Attention: 40 + 16 + 16, and one query on two tokens: 2*4 + 4 values = 24.  Sum 96.
    (1, 0, 0, "processor", "attention", 188, 284),
    (1, 0, 1, "processor", "attention", 188, 284),
    (1, 0, 0, "processor", "gate", 284, 322),
    (1, 0, 1, "processor", "gate", 284, 322),
    # Both experts are where their token is: nothing is sent. One token each: 12 + 8.
    (1, 0, 0, "processor", "experts", 322, 342),
    (1, 0, 1, "processor", "experts", 322, 342),
    (1, -1, 0, "processor", "head", 342, 358),
    (1, -1, 1, "processor", "head", 342, 358),
]
CONTEXT_COHERENT = [
    # Step 0, prompts, replicated: two tokens on each device. qkv 2*2*8+24 = 56, out 2*2*4+8 = 24, norm 32, attention of
    # two prompts 32.  Sum 144.
    (0, 0, 0, "processor", "attention", 0, 144),
    (0, 0, 1, "processor", "attention", 0, 144),
    # Gate: norm 32, 2*7+4 = 18 values = 36.
    (0, 0, 0, "processor", "gate", 144, 212),
    (0, 0, 1, "processor", "gate", 144, 212),
    (0, 0, 1, "processor", "experts", 212, 240),
    # All-reduce of two hidden states (8 B) on a ring of two: 2 * 1/2 * 8 = 8 B per link.  5 + 8.
    (0, 0, 0, "links", "combine", 240, 253),
    (0, 0, 1, "links", "combine", 240, 253),
    (0, -1, 0, "processor", "head", 253, 269),
    (0, -1, 1, "processor", "head", 253, 269),
    # Step 1, decode: each token is where its expert is; nothing moves.
    (1, 0, 0, "processor", "attention", 269, 365),
    (1, 0, 1, "processor", "attention", 269, 365),
    (1, 0, 0, "processor", "gate", 365, 403),
    (1, 0, 1, "processor", "gate", 365, 403),
    (1, 0, 0, "processor", "experts", 403, 423),
    (1, 0, 1, "processor", "experts", 403, 423),
    (1, -1, 0, "processor", "head", 423, 439),
    (1, -1, 1, "processor", "head", 423, 439),
    # Key and value of the new token (8 B) to the other device: 5 + 8.
    (1, -1, 0, "links", "context", 439, 452),
    (1, -1, 1, "links", "context", 439, 452),
]
TABLES = {"dispatch_combine": DISPATCH_COMBINE, "context_coherent": CONTEXT_COHERENT}


@pytest.fixture
def scenario(tmp_path: Path) -> moesim.Scenario:
    """Write the trace of four requests, and the scenario that replays the two of its evaluation part."""
    table = {"request": [0, 0, 1, 1, 2, 2, 3, 3], "position": [0, 1] * 4, "phase": [0, 1] * 4, "model": "hand"}
    ones = moesim.RoutingTrace.from_arrays(np.ones((8, 1, 1), int), n_experts=2, top_k=1, **table)
    first = ones.evaluation(0.5, seed=0).tokens["request"].iloc[0]
    experts = [0 if request == first and phase == 1 else 1
               for request, phase in zip(table["request"], table["phase"], strict=True)]
    trace = moesim.RoutingTrace.from_arrays(np.reshape(experts, (8, 1, 1)), n_experts=2, top_k=1, **table)
    trace.write(tmp_path / "trace.parquet")
    (tmp_path / "hand.yaml").write_text(SCENARIO)
    return moesim.load(tmp_path / "hand.yaml")


@pytest.mark.parametrize("detail", ["events", "steps"])
@pytest.mark.parametrize("mode", TABLES)
def test_every_span(scenario: moesim.Scenario, mode: str, detail: str) -> None:
    result = moesim.simulate(moesim.override(scenario, (f"parallelism.mode={mode}", f"detail={detail}")))
    columns = ["step", "layer", "device", "server", "phase", "start_s", "end_s"]
    spans = pd.DataFrame(TABLES[mode], columns=columns).assign(half=0)
    pd.testing.assert_frame_equal(result.spans, spans, check_dtype=False, rtol=1e-9)


def test_what_the_spans_add_up_to(scenario: moesim.Scenario) -> None:
    result = moesim.simulate(scenario)
    assert result.requests["ttft_s"].tolist() == [188, 188]
    assert result.requests["tpot_s"].tolist() == [170, 170]
    summary = result.summary()
    assert summary["makespan_s"] == 358
    assert summary["throughput_tok_per_s"] == pytest.approx(4 / 358)
    # Processors work 358 s less 18 s of dispatch and combine, device 0 also less the 28 s of the expert it has not.
    assert summary["energy_j"] == pytest.approx(2 * 358 + 2 * (340 + 312))
    assert result.steps["experts_s"].tolist() == [14, 20]
    assert result.steps["wait_s"].tolist() == [14, 0]
    links = result.links.set_index("name")["bytes"]
    assert links[links > 0].sum() == 2 * (4 + 4)  # out of one device and into the other, there and back
    # Weights: two tables of 2x2 values, qkv 12, out 4, gate 4, norms 3x2: 34 values = 68 B; one expert 12 B.
    assert result.memory["non_expert_bytes"].tolist() == [68, 68]
    assert result.memory["expert_bytes"].tolist() == [12, 12]
    # The KV of two tokens per request (the last is never read): 2 x 8 B.
    assert result.memory["kv_peak_bytes"].tolist() == [16, 16]
