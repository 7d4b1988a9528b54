"""Seconds per step of both engines at the size of DeepSeek-V3 on 64 devices. Counts are asserted, times reported.

61 layers with 256 experts, 8 of them chosen, 64 devices in 8 nodes, 256 requests decoding. Run: `make bench`.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from moesim import config
from moesim.placement.placement import Placement
from moesim.requests import table
from moesim.scenario import Scenario
from moesim.sim.engine import Engine
from moesim.sim.inputs import Inputs, Routing, TokenRows
from moesim.trace import RoutingTrace

LAYERS, EXPERTS, TOP_K, BATCH = 61, 256, 8, 256

SCENARIO = {
    "name": "benchmark",
    "model": {
        "name": "all layers with experts", "source": "widths of DeepSeek-V3, every layer with experts", "hidden": 7168,
        "layers": LAYERS, "vocabulary": 129280, "context": 4096,
        "attention": {"kind": "mla", "heads": 128, "q_rank": 1536, "kv_rank": 512, "nope_dim": 128, "rope_dim": 64,
                      "value_dim": 128},
        "moe": {"experts": EXPERTS, "top_k": TOP_K, "ffn": 2048, "shared_ffn": 2048},
        "dtype": {"weights": "fp8", "experts": "fp8", "kv": "bf16", "activations": "bf16"}},
    "hardware": "h200-8x8",
    "trace": {"synthetic": {"preset": "gpt_oss_20b", "requests": 2, "prompt_tokens": 1, "output_tokens": 2},
              "scaled": True},
    "requests": {"kind": "closed_loop", "concurrency": BATCH, "count": BATCH, "prompt_tokens": 1, "output_tokens": 512},
    "placement": {"solver": "linear"},
    "scheduler": {"name": "prefill_first", "max_batch": BATCH},
    "span_steps": 0,
}


def inputs(detail: str, mode: str, *more: str) -> Inputs:
    """Return the inputs of a run whose routing is uniform at random (synthetic: only its size matters here)."""
    overrides = (f"detail={detail}", f"parallelism.mode={mode}", *more)
    scenario = config.build(Scenario, config.Document(copy.deepcopy(SCENARIO)), overrides)
    n_devices = scenario.hardware.n_devices
    rng = np.random.default_rng(0)
    rows = 4096
    experts = np.argsort(rng.random((rows, LAYERS, EXPERTS), dtype=np.float32), axis=2)[:, :, :TOP_K]
    trace = RoutingTrace.from_arrays(experts.astype(np.uint16), EXPERTS, TOP_K, model="uniform", synthetic=True)
    device_of = np.broadcast_to(np.arange(EXPERTS) // (EXPERTS // n_devices), (LAYERS, EXPERTS))
    start = rng.integers(rows - 512, size=BATCH)
    ones = np.ones(BATCH, np.int64)
    routing = Routing(trace, Placement.from_device_of(device_of, n_devices))
    return Inputs(scenario, routing, table(scenario.requests, 0),
                  TokenRows(start, ones, start, 512 * ones, 0 * ones))


def decoding(detail: str, mode: str, *more: str) -> Engine:
    """Return an engine whose 256 requests have run their prompts and are about to decode."""
    engine = Engine(inputs(detail, mode, *more))
    while engine.steps().empty:
        engine.advance()
    return engine


@pytest.mark.parametrize("mode", ["dispatch_combine", "context_coherent"])
@pytest.mark.parametrize("detail", ["steps", "events"])
def test_one_decode_step(benchmark: Any, detail: str, mode: str) -> None:
    engine = decoding(detail, mode)
    rounds = 30 if detail == "steps" else 5
    benchmark.pedantic(engine.advance, rounds=rounds, warmup_rounds=2)
    steps = engine.steps()
    assert steps["decode_tokens"].tolist() == [0] + [BATCH] * (len(steps) - 1)
    assert (steps["end_s"] > steps["start_s"]).all()


@pytest.mark.parametrize("nodes", [2, 8])
@pytest.mark.parametrize("link", ["400 Gbit/s", "20 Gbit/s"])
def test_one_decode_step_in_halves(benchmark: Any, nodes: int, link: str) -> None:
    """Two batches side by side: at 400 Gbit/s hardly a collective meets another, at 20 Gbit/s nearly all do."""
    more = ("overlap=two_batch", f"hardware.nodes={nodes}", f"hardware.fabric.link={link}")
    engine = decoding("events", "dispatch_combine", *more)
    benchmark.pedantic(engine.advance, rounds=3, warmup_rounds=1)
    assert engine.steps()["decode_tokens"].tolist()[1:] == [BATCH] * 4
