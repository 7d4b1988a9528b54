"""Seconds of the replay of 300 requests, tokens and all, to one device and to two that share experts.

As studies/05_validation replays public runs, with what ships: prompts that partly begin alike, the prefix cache, vLLM's
scheduler, steps planned as the one before runs, CUDA graphs. Run: `make bench`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moesim
from moesim import config
from moesim.scenario import Scenario

COUNT = 300
BASE = {
    "name": "replay", "scheduler": {"name": "vllm", "max_batch": 128, "max_tokens": 2048}, "kv": {"prefix_cache": True},
    "engine": {"asynchronous": True, "graphs": 256, "eager": "3 ms"}, "span_steps": 0,
    "kernels": "roofline"}  # as quick as a measured profile: what is timed is the serving
UNIFORM = {"sigma_b": 0.0, "a": 0.0, "s": 0.0, "sigma_d": 0.0, "domains": 1}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {
        "model": {
            "name": "dense-8b", "source": "widths of Llama-3.1-8B", "hidden": 4096, "layers": 32, "vocabulary": 128256,
            "context": 131072, "attention": {"kind": "gqa", "heads": 32, "kv_heads": 8, "head_dim": 128},
            "dense_ffn": 14336, "dtype": dict.fromkeys(("weights", "experts", "kv", "activations"), "bf16")}},
    "experts": {
        "model": "qwen3-30b-a3b", "placement": {"solver": "linear"}, "parallelism": {"dispatch": "all_gather"},
        "request_router": {"name": "fewest_requests", "waiting": 4.0},
        "trace": {"synthetic": {"parameters": UNIFORM, "layers": 48, "experts": 128, "top_k": 8, "requests": 32,
                                "prompt_tokens": 96, "output_tokens": 32}, "scaled": True}}}


def requests(file: Path) -> Path:
    """Write 300 requests at 25 per second, of lengths as in ShareGPT, a third of them with a prompt of 64 in common."""
    rng = np.random.default_rng(0)
    prompt, output = (np.clip(rng.lognormal(np.log(median), 1.0, COUNT), 4, 512).astype(int) for median in (100, 200))
    common = rng.integers(50_000, size=64)
    prompts = [np.concatenate([common, ids]) if i % 3 == 0 else ids
               for i, ids in enumerate(rng.integers(50_000, size=n) for n in prompt)]
    pd.DataFrame({
        "arrival_s": np.cumsum(rng.exponential(0.04, COUNT)), "prompt_tokens": [len(ids) for ids in prompts],
        "output_tokens": output, "prompt_ids": prompts,
        "output_ids": [rng.integers(50_000, size=n) for n in output]}).to_parquet(file)
    return file


@pytest.mark.parametrize(("which", "devices"), [("dense", 1), ("experts", 2)])
def test_a_replay_of_300_requests(benchmark: Any, tmp_path: Path, which: str, devices: int) -> None:
    replay = {"requests": {"kind": "replay", "path": str(requests(tmp_path / "requests.parquet"))}}
    scenario = config.build(Scenario, config.Document(
        BASE | MODELS[which] | replay | {"hardware": "h200-1x8"}), (f"hardware.devices_per_node={devices}",))
    result = benchmark.pedantic(moesim.simulate, (scenario,), rounds=5, warmup_rounds=1)  # the first one compiles
    table, steps = result.requests, result.steps
    assert table["finish_s"].notna().all() and (table["preemptions"] == 0).all()
    assert (table["cached_tokens"] >= 64).sum() > COUNT // 4
    assert steps["prefill_tokens"].sum() == (table["prompt_tokens"] - table["cached_tokens"]).sum()
    assert steps["decode_tokens"].sum() == (table["output_tokens"] - 1).sum()
    benchmark.extra_info["steps"] = len(steps)
