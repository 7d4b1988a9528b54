"""The reference model: it learns, its cache changes nothing, its experts are what a token loop gives; its trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim import config, read_trace, trace_stats
from moesim.model import ModelSpec

torch = pytest.importorskip("torch")

from moesim.capture import record  # noqa: E402
from moesim.capture.bpe import BytePairEncoding  # noqa: E402
from moesim.capture.generate import generate, left_padded  # noqa: E402
from moesim.capture.reference_moe import Cache, ReferenceConfig, ReferenceMoE, balance_loss  # noqa: E402
from moesim.capture.train import Recipe, train  # noqa: E402

WORKLOADS = Path(__file__).resolve().parents[2] / "workloads"
SHIPPED = WORKLOADS / "traces" / "reference-moe.parquet"
TINY = ReferenceConfig(vocabulary=64, n_layers=3, n_experts=6, top_k=2, width=32, n_heads=4, expert_width=16)


def batches(step: int) -> torch.Tensor:
    """Return sequences in which every token is the one before plus 3, modulo the vocabulary."""
    first = torch.randint(0, 64, (8, 1), generator=torch.Generator().manual_seed(step))
    return (first + 3 * torch.arange(17)) % 64


def test_training_lowers_the_loss_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    recipe = Recipe(steps=30, warmup=5, every=10)
    whole = ReferenceMoE(TINY)
    table = train(whole, batches, {"sum": batches(99)}, recipe, tmp_path / "whole")
    log = pd.read_csv(table)
    assert log["step"].tolist() == [10, 20, 30]
    assert log["sum"].iloc[-1] < 0.8 * log["sum"].iloc[0] and log["sum"].iloc[0] < np.log(64)
    killed = ReferenceMoE(TINY)

    def stop_at_step_20(step: int) -> torch.Tensor:
        if step == 20:
            raise KeyboardInterrupt
        return batches(step)

    with pytest.raises(KeyboardInterrupt):
        train(killed, stop_at_step_20, {"sum": batches(99)}, recipe, tmp_path / "killed")
    again = ReferenceMoE(TINY, seed=1)  # everything must come from the checkpoint
    train(again, batches, {"sum": batches(99)}, recipe, tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_experts_match_a_loop_over_tokens() -> None:
    block = ReferenceMoE(TINY).layers[0]
    hidden = torch.randn(11, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, weights, chosen = block.gate(hidden)
        expected = torch.zeros_like(hidden)
        for token in range(11):
            for weight, expert in zip(weights[token], chosen[token], strict=True):
                gate, value = (block.experts.up[expert] @ hidden[token]).chunk(2)
                inner = gate * torch.sigmoid(gate) * value
                expected[token] += weight * (block.experts.down[expert] @ inner)
        torch.testing.assert_close(block.experts(hidden, weights, chosen), expected)
        torch.testing.assert_close(weights, torch.softmax(logits.gather(1, chosen), -1))  # renormalised softmax


@pytest.mark.parametrize("top_k", [1, 2])
def test_every_gate_learns(top_k: int) -> None:
    """One weight that was made to sum to 1 would be 1 whatever the gate says, and have no gradient."""
    model = ReferenceMoE(ReferenceConfig(vocabulary=32, n_layers=2, n_experts=4, top_k=top_k, width=16, n_heads=2,
                                         expert_width=8))
    with record(model) as recorder:
        logits = model(torch.arange(24).reshape(2, 12)).logits
    logits.square().sum().backward()
    assert float(model.layers[0].gate.weight.grad.abs().max()) > 1e-3
    _, weights, chosen = model.layers[0].gate(torch.randn(5, 16))
    total = weights.sum(-1)
    assert chosen.shape == (5, top_k) and (torch.allclose(total, torch.ones(5)) if top_k > 1 else (total < 1).all())
    assert recorder.trace().meta["renormalised"] == (top_k > 1)


def test_training_stops_when_it_is_told_to_and_goes_on(tmp_path: Path) -> None:
    recipe, models = Recipe(steps=6, warmup=2, every=4), [ReferenceMoE(TINY, seed=1) for _ in range(2)]
    asked = iter([False, False, True])
    held = {"a": batches(99)}
    table = train(ReferenceMoE(TINY, seed=1), batches, held, recipe, tmp_path / "cut", lambda: next(asked))
    assert [row.split(",")[0] for row in table.read_text().splitlines()] == ["step", "3"]
    train(models[0], batches, held, recipe, tmp_path / "cut")
    train(models[1], batches, held, recipe, tmp_path / "whole")
    assert [row.split(",")[0] for row in table.read_text().splitlines()] == ["step", "3", "4", "6"]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_balance_loss_by_hand() -> None:
    even = torch.zeros(4, 2)
    assert balance_loss(even, torch.tensor([[0], [1], [0], [1]])).item() == pytest.approx(1.0)
    sure = torch.tensor([[50.0, 0.0]] * 4)  # every token to expert 0 with probability 1: E * 1 * 1
    assert balance_loss(sure, torch.zeros(4, 1, dtype=torch.long)).item() == pytest.approx(2.0)


def test_cache_and_padding_change_no_logits() -> None:
    model = ReferenceMoE(TINY).eval()
    prompts = [[5, 9, 2, 7, 11, 4, 3], [8, 1, 6, 2]]
    with torch.no_grad():
        alone = [model(torch.tensor([prompt])).logits[0] for prompt in prompts]
        ids, mask = left_padded(prompts, pad=0)
        cache, parts = Cache(), []
        for start, stop in ((0, 4), (4, 5), (5, 7)):  # a prompt chunk, one token, two tokens
            parts.append(model(ids[:, start:stop], mask[:, :stop], cache).logits)
    together = torch.cat(parts, 1)
    torch.testing.assert_close(together[0], alone[0])
    torch.testing.assert_close(together[1, 3:], alone[1])


def test_generate_is_seeded_and_recorded_by_phase() -> None:
    model = ReferenceMoE(TINY)
    prompts, lengths = [[5, 9, 2, 7, 11], [8, 1]], [2, 4]
    with record(model, ranked=4) as recorder:
        outputs = generate(model, prompts, lengths, seed=3)
    assert outputs == generate(model, prompts, lengths, seed=3) and [len(row) for row in outputs] == lengths
    tokens = recorder.trace(domain=["a", "b"]).tokens
    for request, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        rows = tokens[tokens["request"] == request]
        assert rows["token_id"].tolist() == prompt + output[:-1]  # the last token is never routed
        assert rows["position"].tolist() == list(range(len(prompt) + len(output) - 1))
        assert rows["phase"].tolist() == [0] * len(prompt) + [1] * (len(output) - 1)
        assert rows["step"].tolist() == [0] * len(prompt) + list(range(1, len(output)))


def test_generate_refuses_empty_prompts() -> None:
    with pytest.raises(ValueError, match="give one length >= 1 for every prompt"):
        generate(ReferenceMoE(TINY), [[]], [3], seed=0)


@pytest.mark.parametrize(("sizes", "message"), [
    (dict(width=30), "make width a multiple of 2\\*n_heads"),
    (dict(top_k=33), "choose 1..n_experts"),
])
def test_impossible_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReferenceConfig(**sizes)


def test_byte_pair_encoding_by_hand_and_round_trip() -> None:
    encoding = BytePairEncoding.learn(["ababab ababab abc"], 259)
    assert encoding.merges == ((97, 98), (256, 256))  # ab first, then abab (in "ababab" it occurs at most once)
    assert encoding.encode("ababab") == [257, 256] and encoding.vocabulary == 259 and encoding.end == 258
    text = "def größe(x):\n    return x * 1234  # ∞\n"
    assert encoding.decode(encoding.encode(text)) == text
    with pytest.raises(ValueError, match="at most 258"):
        BytePairEncoding.learn(["ab ab"], 400)


def test_shipped_trace_has_real_affinity() -> None:
    trace = read_trace(SHIPPED)
    assert trace.n_layers >= 8 and trace.n_experts >= 16 and trace.top_k == 2 and trace.n_tokens > 30_000
    assert SHIPPED.stat().st_size <= 10_000_000
    assert len(trace.requests) >= 200 and len(trace.domains()) == 5 and not trace.meta["synthetic"]
    assert all(trace.meta[key] for key in ("model", "revision", "origin", "licence"))
    information, null = trace_stats.mutual_information(trace), trace_stats.mutual_information_null(trace)
    assert (information > 3 * null).all() and information.mean() > 10 * null.mean()
    assert trace.counts().sum() == trace.n_tokens * trace.n_layers * trace.top_k
    np.testing.assert_array_less(1.3, trace_stats.load_imbalance(trace))  # uneven, as real routing is


def test_model_file_describes_the_model_and_its_trace() -> None:
    spec = config.load(ModelSpec, WORKLOADS / "models" / "reference-moe.yaml")
    model, trace = ReferenceMoE(ReferenceConfig()), read_trace(SHIPPED)
    assert spec.total_parameters == sum(weight.numel() for weight in model.parameters())
    assert spec.expert_parameters == model.layers[0].experts.up[0].numel() + model.layers[0].experts.down[0].numel()
    assert (spec.n_moe_layers, spec.n_experts, spec.top_k) == (trace.n_layers, trace.n_experts, trace.top_k)
    assert spec.name == trace.meta["model"] and list(spec.moe_layer_indices) == trace.meta["moe_layer_indices"]


def test_the_readmes_say_what_the_trace_says(repo: Path) -> None:
    trace = read_trace(SHIPPED)
    numbers = (repo / "studies" / "00_capture" / "README.md").read_text(encoding="utf-8")
    origin = (WORKLOADS / "traces" / "README.md").read_text(encoding="utf-8")
    information = trace_stats.mutual_information(trace).mean()
    null = trace_stats.mutual_information_null(trace).mean()
    assert f"(nat) | {information:.2f} |" in numbers and f"(nat) | {null:.2f} |" in numbers
    assert f"0.63 nat, shuffled {null:.2f}" in origin and f"{information:.2f}" == "0.63"
    assert f"over experts | {trace_stats.load_imbalance(trace).mean():.2f} |" in numbers
    assert f"{trace.n_tokens:,}" in origin and "PSF" in trace.meta["licence"]


@pytest.mark.slow
def test_the_study_runs_and_can_be_kept_apart(repo: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repo / "studies" / "00_capture" / "study.py"), "--steps", "2", "--requests", "5",
               "--keep", "--out", str(tmp_path)]
    before = SHIPPED.read_bytes()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_trace(tmp_path / "reference-moe.parquet").domains() == ("c", "code", "docs", "tables", "tests")
    assert (tmp_path / "routing.png").stat().st_size > 10_000 and SHIPPED.read_bytes() == before
