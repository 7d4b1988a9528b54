"""Seconds of whole runs of a serving engine: 5,000 and 100,000 requests to Mixtral on 8 H200 that share its experts.

The routing is synthetic, every layer of every token drawn for itself; only its size matters here. Run: `make bench`.
"""

from __future__ import annotations

from typing import Any

import pytest

import moesim
from moesim import config
from moesim.scenario import Scenario

GATE = {"sigma_b": 0.5, "a": 1.0, "s": 0.5, "sigma_d": 0.5, "domains": 4}
SCENARIO = {
    "name": "benchmark", "model": "mixtral-8x7b", "hardware": "h200-1x8",
    "trace": {"synthetic": {"parameters": GATE, "layers": 32, "experts": 8, "top_k": 2, "requests": 64,
                            "prompt_tokens": 64, "output_tokens": 192}, "scaled": True},
    "requests": {"kind": "poisson", "rate": "400 /s", "count": 20, "prompt_tokens": {"low": 128, "high": 512},
                 "output_tokens": 512},
    "placement": {"solver": "linear"}, "scheduler": {"name": "vllm", "max_batch": 256, "max_tokens": 2048},
    "request_router": "fewest_requests", "span_steps": 0}


@pytest.mark.parametrize(("count", "output"), [(5_000, "512"), (100_000, "{low: 64, high: 192}")])
def test_a_run(benchmark: Any, count: int, output: str) -> None:
    scenario = config.build(Scenario, config.Document(SCENARIO), (
        f"requests.count={count}", f"requests.output_tokens={output}"))
    moesim.simulate(moesim.override(scenario, ("requests.count=20",)))  # compiles
    result = benchmark.pedantic(moesim.simulate, (scenario,), rounds=1)
    requests, steps = result.requests, result.steps
    assert requests["finish_s"].notna().all() and (requests["preemptions"] == 0).all()
    assert steps["prefill_tokens"].sum() == requests["prompt_tokens"].sum()
    assert steps["decode_tokens"].sum() == requests["output_tokens"].sum() - count
    benchmark.extra_info["tokens"] = int(requests["output_tokens"].sum())
