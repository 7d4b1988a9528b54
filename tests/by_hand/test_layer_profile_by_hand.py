"""Steps priced from measured tables of layers, worked on paper: curves, experts, mixed attention, a whole step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from serving_machine import dense

import moesim
from moesim.kernels.layer_profile import Curve, ExpertTable
from moesim.kernels.mixed_attention import MixedAttention, Spread
from moesim.kernels.profiles.llmservingsim import Llmservingsim
from moesim.sections import EngineOptions

US = 1e-6
FILES = {  # time in us; a layer of T tokens takes T of each of its calls
    "dense.csv": "layer,tokens,time_us\n" + "".join(
        f"{layer},{n},{n}\n" for n in (1, 100) for layer in (
            "embedding", "final_layernorm", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn",
            "down_proj")),
    "per_sequence.csv": "layer,sequences,time_us\nlm_head,1,10\nlm_head,2,20\nsampler,1,1\nsampler,2,2\n",
    # chunk c behind p tokens and n decodes of context k: c * (1 + p / 16) + n * k / 16
    "attention.csv": "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n" + "".join(
        f"{c},{p},{n},{k},{c * (1 + p / 16) + n * k / 16}\n" for c in (0, 16, 32) for n in (0, 1, 2)
        for p in ((0, 16, 32) if c else (0,)) for k in ((16, 64, 256) if n else (0,)) if c or n),
    # the longest of two contexts 0.5 us per token above the mean: times are sums of three forwards
    "skew.csv": "n,ratio,skew,pc,kp,kvs,kv_big,kv_mean,t_mean_us,t_skew_us\n" + "".join(
        f"2,{ratio},4.0,{pc},{kp},{kvs},{4 * kvs},{kvs * (1 + 3 * ratio)},30,{30 + 3 * 0.5 * 3 * kvs * (1 - ratio)}\n"
        for pc, kp in ((0, 0), (16, 0)) for kvs in (128, 256) for ratio in (0.25, 0.5)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bf16/tp1").mkdir(parents=True)
    for name, text in FILES.items():
        (tmp_path / "bf16/tp1" / name).write_text(text)
    return tmp_path / "bf16"


def test_a_curve_is_linear_and_goes_on() -> None:
    rising, flat = Curve(np.array([1.0, 4.0]), np.array([1.0, 7.0])), Curve(np.array([2.0, 4.0]), np.array([1.0, 1.0]))
    both = rising + flat.times(2)
    assert both(np.array([0, 1, 2, 3, 4, 6])).tolist() == [0, 3, 5, 7, 9, 13]  # flat left of the first point


def test_experts_by_tokens_and_active_experts() -> None:
    table = ExpertTable(np.array([1.0, 3.0]), np.array([2.0, 4.0]), np.array([[10.0, 20.0], [14.0, 30.0]]))
    found = table(np.array([1, 2, 3, 5, 0.5, 0]), np.array([2, 3, 4, 2, 1, 0]))
    assert found.tolist() == [10, (12 + 25) / 2, 30, 18, 10, 0]  # beyond the last tokens the slope goes on


def attention() -> MixedAttention:
    """Return c (1 + p / 16) + n k / 16 us, and 0.5 us per token by which the longest decode is above the mean."""
    axes = (0, 16, 32), (0, 1, 2), (0, 16, 32), (0, 16, 64)
    chunk, decodes, past, context = (np.array(axis, float) for axis in axes)
    c, n, p, k = np.meshgrid(chunk, decodes, past, context, indexing="ij")
    spread = Spread(np.array([2.0]), np.array([7.0]), np.array([0.5]), np.full((1, 1, 1), 0.5), 4.0)
    return MixedAttention(chunk, decodes, past, context, c * (1 + p / 16) + n * k / 16, {(0.0, 0.0): spread})


@pytest.mark.parametrize(("chunks", "past", "contexts", "seconds"), [
    ([], [], [], 0),
    ([], [], [32], 2),
    ([24], [8], [], 24 * 1.5),
    ([16], [16], [64, 64], 32 + 8),
    ([], [], [16, 48], 4 + 0.5 * 16),                      # mean 32, the longest 16 above it
    ([8, 8], [8, 24], [], 16 * (1 + (8 * 12 + 8 * 28) / 16 / 16 - 0.5)),  # past sum(c (h + c / 2)) / 16 - 8 = 12
    ([64], [0], [], 64),                                   # beyond the largest chunk
])
def test_attention_of_mixed_batches(chunks: list[int], past: list[int], contexts: list[int], seconds: float) -> None:
    work = (np.array(values, np.int64) for values in (chunks, past, contexts))
    assert attention()(*work) == pytest.approx(seconds)


def test_short_prompts_cost_less_than_one_long_one() -> None:
    """Two prompts of 16 have 2 * 16 * 16 / 2 = 256 pairs of query and key, as a chunk of sqrt(512) has: 22.6 us."""
    assert attention()(np.array([16, 16]), np.array([0, 0]), np.empty(0)) == pytest.approx(512**0.5)


def test_the_folder_is_read(folder: Path) -> None:
    profile = Llmservingsim(str(folder)).read(1)
    assert profile.projections(np.array([10])) == pytest.approx(40 * US)   # norm, qkv, rotary, o
    assert profile.feed_forward is not None
    assert profile.feed_forward(np.array([10])) == pytest.approx(40 * US)  # norm, gate and up, activation, down
    assert profile.head(np.array([2])) == pytest.approx(22 * US)
    assert profile.opening(np.array([3])) == pytest.approx(6 * US)
    assert profile.experts is None
    even = profile.attention(np.array([16]), np.array([16]), np.array([64, 64]))
    assert even == pytest.approx((32 + 8) * US)
    uneven = profile.attention(np.empty(0), np.empty(0), np.array([128, 384]))  # mean 256, the longest 128 above
    assert uneven == pytest.approx((32 + 0.5 * 128) * US)


@pytest.mark.parametrize(("change", "message"), [
    (lambda f: (f / "tp1/dense.csv").unlink(), r"dense.csv: cannot be read"),
    (lambda f: (f / "tp1/skew.csv").write_text("n\n2\n"), r"skew.csv: no column ratio, skew, pc"),
    (lambda f: (f / "tp1/per_sequence.csv").write_text("layer,sequences,time_us\nlm_head,1,1\nlm_head,2,2\n"),
     r"the profile lacks sampler"),
    (lambda f: (f / "tp1/dense.csv").write_text("layer,tokens,time_us\nmixer,1,1\n"),
     r"unknown layer 'mixer'; known: act_fn"),
    (lambda f: (f / "tp1/attention.csv").write_text(
        "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,1,16,1\n0,0,1,64,\n"),
     r"attention.csv: row 2: not a number"),
])
def test_a_folder_that_is_wrong(folder: Path, change: Callable[[Path], object], message: str) -> None:
    change(folder)
    with pytest.raises(ValueError, match=message):
        Llmservingsim(str(folder)).read(1)


def test_captured_sizes() -> None:
    engine = EngineOptions(graphs=300)
    sizes = [1, 2, 3, 4, 5, 8, 9, 256, 257, 290]
    assert [int(engine.padded(np.array([n]))[0]) for n in sizes] == [1, 2, 4, 4, 8, 8, 16, 256, 272, 300]
    assert engine.padded(np.array([3, 0])).tolist() == [4, 4]       # who has nothing to do runs as many
    assert engine.padded(np.array([301, 0])).tolist() == [301, 1]   # no graph: its own tokens, and one
    assert EngineOptions().padded(np.array([3, 0])).tolist() == [3, 0]


def steps(folder: Path, *overrides: str) -> pd.DataFrame:
    """Return the steps of two requests, prompts of 16 and 3 tokens, that come at once to two layers without experts."""
    room = "hardware.device.memory=[{name: hbm, capacity: 4 kB, bandwidth: 1 B/s}]"
    return moesim.simulate(dense(folder, [(0, 16, 2), (0, 3, 2)], 1, "model.layers=2", "model.context=64",
                                 "scheduler=vllm", room, *overrides)).steps


def test_a_step_of_a_model_without_experts(folder: Path, tmp_path: Path) -> None:
    """Two layers, prompts of 16 and 3 tokens, filled up to 24: see the columns below."""
    profile = f"profile={{name: llmservingsim, path: {folder}}}"
    found = steps(tmp_path, profile, "engine={graphs: 32, eager: 1 ms, step: 5 us}")
    first = found.iloc[0]
    assert (first["prefill_tokens"], first["decode_tokens"]) == (19, 0)
    # attention: 24 tokens of projections; 16 and 3 new ones have 16 * 8 + 3 * 1.5 pairs, as a chunk of sqrt(265) has
    kernel = 265**0.5
    assert first["attention_s"] == pytest.approx(2 * (4 * 24 + kernel) * US)
    assert first["dense_s"] == pytest.approx(2 * 4 * 24 * US)
    assert first["head_s"] == pytest.approx((22 + 2 * 24) * US)
    assert first["host_s"] == pytest.approx(5 * US)
    moved = steps(tmp_path, profile, "engine={graphs: 16, eager: 1 ms}")
    assert moved.iloc[0]["host_s"] == pytest.approx(1e-3) and moved.iloc[0]["dense_s"] == pytest.approx(2 * 4 * 19 * US)


def test_a_profile_without_what_the_model_needs(folder: Path) -> None:
    tiny = Path(__file__).parents[1] / "data/tiny.yaml"
    with pytest.raises(moesim.ConfigError, match="has no times of experts, which model .* needs; use kernels"):
        moesim.simulate(moesim.load(tiny, (f"profile={{name: llmservingsim, path: {folder}}}",)))
