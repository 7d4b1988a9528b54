"""The machine on which serving is worked on paper, and how its scenarios are written.

It is that of ``test_two_devices``: memory moves 1 byte/s and compute is free, links move 1 byte/s after 5 s, values
have 2 bytes, the hidden state 2 values. Keys and values of a token are 2 x 2 values: 8 bytes. A KV block has one token.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import moesim
from moesim.placement.placement import Placement

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
kv: {{block: 1}}
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


_EXPERTS = "moe: {experts: 1, top_k: 1, ffn: 1}"


def dense(folder: Path, requests: list[tuple[float, int, int]], devices: int, *overrides: str) -> moesim.Scenario:
    """Write and load a scenario of a model without experts on so many *devices*."""
    text = SCENARIO.format(layers=1, experts=1, top_k=1, devices=devices)
    assert _EXPERTS in text
    text = "\n".join(row for row in text.replace(_EXPERTS, "dense_ffn: 1").splitlines()
                     if not row.startswith(("trace:", "placement:")))
    (folder / "dense.yaml").write_text(text)
    pd.DataFrame(requests, columns=["arrival_s", "prompt_tokens", "output_tokens"]).to_csv(
        folder / "requests.csv", index=False)
    return moesim.load(folder / "dense.yaml", overrides)
