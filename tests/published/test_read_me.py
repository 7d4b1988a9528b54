"""Read-ME (arXiv 2410.19123): expert-aware batches read fewer experts than those of the usual schedulers.

Six experts, one per token and the same in every layer; a token repeats the choice of the one before it with probability
2921 / 4096, as measured there. The paper, on replayed chats: 5.08 (decode first) and 5.21 (prefill first) distinct
experts in a batch against 3.51, and 5.0 to 6.1 % less mean, 9.5 to 10 % less p95 latency per token. Its load and token
limit are not known here: sixteen users, ten tokens per step and answers of 100 to 300 tokens are assumed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import moesim

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
LAYERS, EXPERTS, REPEATS = 2, 6, 2921 / 4096
MODEL = """model={name: read-me, source: sizes near Llama2-7B in six parts, hidden: 4096, layers: 2, vocabulary: 32000,
 context: 4096, attention: {kind: gqa, heads: 32, kv_heads: 32, head_dim: 128},
 moe: {experts: 6, top_k: 1, ffn: 5504}, dtype: {weights: bf16, experts: bf16, kv: bf16, activations: bf16}}"""


def trace(path: Path, requests: int = 60, prompt: int = 60, decode: int = 250) -> None:
    """Write a trace of tokens that keep their expert, or draw another, each as often."""
    rng, length = np.random.default_rng(0), prompt + decode
    keeps = rng.random((requests, length)) < REPEATS
    moves = np.where(keeps, 0, rng.integers(1, EXPERTS, (requests, length)))
    chosen = (rng.integers(EXPERTS, size=(requests, 1)) + moves.cumsum(axis=1)) % EXPERTS
    moesim.RoutingTrace.from_arrays(
        np.repeat(chosen.reshape(-1, 1, 1), LAYERS, axis=1), EXPERTS, 1, request=np.repeat(np.arange(requests), length),
        position=np.tile(np.arange(length), requests), phase=np.tile(np.arange(length) >= prompt, requests).astype(int),
        model="read-me").write(path)


def served(folder: Path, scheduler: str) -> tuple[float, float, float]:
    """Return distinct experts per step, and mean and p95 of the seconds per output token of a request."""
    result = moesim.simulate(moesim.load(TINY, (
        MODEL, "hardware=a100-1x8", "hardware.devices_per_node=1", "kernels=roofline", f"scheduler={scheduler}",
        f"trace={{path: {folder / 'trace.parquet'}}}", "requests={kind: closed_loop, concurrency: 16, count: 40, "
        "prompt_tokens: {low: 20, high: 100}, output_tokens: {low: 100, high: 300}}")))
    per_token = result.requests["e2e_s"] / result.requests["output_tokens"]
    return (float(result.steps["active_experts"].mean() / LAYERS), float(per_token.mean()),
            float(per_token.quantile(0.95)))


@pytest.mark.slow  # some 10 s
def test_fewer_experts_and_less_latency(tmp_path: Path) -> None:
    trace(tmp_path / "trace.parquet")
    usual = [served(tmp_path, f"{{name: {name}, max_batch: 10}}") for name in ("decode_first", "prefill_first")]
    usual.append(served(tmp_path, "{name: vllm, max_tokens: 10}"))
    aware, mean_s, p95_s = served(tmp_path, "{name: expert_aware, max_tokens: 10}")
    assert all(4.0 < experts < 5.3 for experts, _, _ in usual)
    assert aware / np.mean([experts for experts, _, _ in usual[:2]]) == pytest.approx(3.51 / 5.145, abs=0.1)
    assert all(mean_s < mean and p95_s < p95 for _, mean, p95 in usual)
