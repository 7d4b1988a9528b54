"""Every shipped model against published counts, the checkpoints and the PyTorch classes themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim.config import ConfigError, load, validate
from moesim.document import read_text
from moesim.layers import layer_indices
from moesim.model import DTYPE_BYTES, ModelSpec

FOLDER = Path(__file__).resolve().parents[2] / "workloads" / "models"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
PUBLISHED = ("deepseek-v2-lite", "deepseek-v3", "gpt-oss-120b", "gpt-oss-20b", "mixtral-8x22b", "mixtral-8x7b",
             "olmoe-1b-7b", "qwen1.5-moe-a2.7b", "qwen3-235b-a22b", "qwen3-30b-a3b")
# Active counts that are published with two digits only: 1 % is finer than the figure. The count must
# give the printed digits when rounded (OLMoE: 1.282) or cut (DeepSeek-V2-Lite: 2.451, Qwen3: 3.353).
TWO_DIGITS = ("deepseek-v2-lite", "olmoe-1b-7b", "qwen3-30b-a3b")


def model(name: str) -> ModelSpec:
    return load(ModelSpec, FOLDER / f"{name}.yaml")


def test_all_models_are_there():
    assert set(PUBLISHED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_file_loads_and_round_trips(name):
    spec = model(name)
    assert spec.name == name
    assert ModelSpec.model_validate(spec.dump()).dump() == spec.dump()
    assert 0 < spec.active_parameters <= spec.total_parameters
    assert (spec.active_parameters < spec.total_parameters) == (spec.moe is not None)


@pytest.mark.parametrize("name", [*PUBLISHED, "llama-3.1-8b"])
def test_total_is_the_published_one(name):
    spec = model(name)
    assert spec.total_parameters == spec.published.checkpoint
    assert spec.total_parameters == pytest.approx(spec.published.total, rel=0.01)


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n not in TWO_DIGITS])
def test_active_is_the_published_one(name):
    spec = model(name)
    assert spec.count_active(spec.published.active_counts) == pytest.approx(spec.published.active, rel=0.01)


@pytest.mark.parametrize("name", TWO_DIGITS)
def test_active_prints_as_published(name):
    spec = model(name)
    tenths = spec.count_active(spec.published.active_counts) / 1e8
    assert round(spec.published.active / 1e8) in (int(tenths), round(tenths))


def test_exact_counts_from_other_programs():
    assert model("mixtral-8x7b").total_parameters == 46_702_792_704
    # Unrelated parameter counters in public repositories give these two to the last digit.
    assert model("qwen3-30b-a3b").active_parameters == 3_353_032_704
    assert model("deepseek-v3").count_active(["head"]) == 36_625_618_432


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_mxfp4_checkpoint_sizes(name, gib):
    # arXiv 2508.10925, table 1
    assert model(name).total_bytes / 2**30 == pytest.approx(gib, rel=0.01)


def test_kv_cache_sizes():
    # 96 KiB per token: 48 layers x 2 x 4 heads x 128 x 2 bytes; DeepSeek-V3: 61 layers x 576 x 2 bytes = 70 KB
    # (arXiv 2505.09343, table 1: 70.272 KB)
    assert model("qwen3-30b-a3b").kv_bytes_per_token == 96 * 1024
    assert model("deepseek-v3").kv_bytes_per_token == 70_272


def test_shapes_that_kernel_tables_measure():
    assert [(g.n, g.k) for g in model("mixtral-8x7b").attention_gemms()] == [(6144, 4096), (4096, 4096)]
    assert [(g.n, g.k) for g in model("qwen3-30b-a3b").attention_gemms()] == [(5120, 2048), (2048, 4096)]
    deepseek = model("deepseek-v3")
    assert [(g.n, g.k) for g in deepseek.attention_gemms()] == [
        (2112, 7168), (24576, 1536), (32768, 512), (7168, 16384)]
    assert [(g.n, g.k) for g in deepseek.shared_gemms()] == [(4096, 7168), (7168, 2048)]
    assert (deepseek.gate_gemm.n, deepseek.gate_gemm.k, deepseek.gate_gemm.dtype) == (256, 7168, "bf16")
    assert deepseek.attention_shape(8, "decode") == (16, 1, 576, 512)
    assert deepseek.attention_shape(8, "prefill") == (16, 16, 192, 128)


def test_gpt_oss_alternates_windows():
    windows = model("gpt-oss-20b").attention_windows
    assert windows.tolist() == [128, 0] * 12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_devices_together_hold_all_heads_and_columns(name, tp):
    spec = model(name)
    whole, part = spec.attention_gemms(), spec.attention_gemms(tp)
    if tp <= getattr(spec.attention, "kv_heads", tp):
        for one, all_ in zip(part, whole, strict=True):
            assert one.n * one.k in (all_.n * all_.k, all_.n * all_.k // tp)
    pairs = list(zip(spec.dense_gemms(tp), spec.dense_gemms(), strict=True))
    if spec.moe is not None:
        pairs += zip(spec.expert_gemms(tp), spec.expert_gemms(), strict=True)
    for one, all_ in pairs:
        assert one.n * one.k * tp == all_.n * all_.k
    assert spec.non_expert_bytes() / tp <= spec.non_expert_bytes(tp) <= spec.non_expert_bytes()


def test_dtypes():
    assert DTYPE_BYTES["mxfp4"] * 8 == 4.25      # bits, as arXiv 2508.10925 says
    assert DTYPE_BYTES["bf16"] == DTYPE_BYTES["fp16"] == 2


def test_scaled_changes_sizes_and_drops_what_was_published():
    small, spec = model("mixtral-8x7b").scaled(hidden=1024, moe={"ffn": 3584}), model("mixtral-8x7b")
    assert small.expert_parameters * 16 == spec.expert_parameters
    assert (small.n_moe_layers, small.n_experts, small.top_k) == (32, 8, 2)
    assert small.published is None and small.name == "mixtral-8x7b-scaled"
    with pytest.raises(ValueError, match="top_k 9 exceeds the 8 experts"):
        spec.scaled(moe={"top_k": 9})


@pytest.mark.parametrize(("layers", "indices"), [
    ("all", (0, 1, 2, 3)), ("1-2", (1, 2)), ("3, 0-1", (0, 1, 3)), ((2, 0), (0, 2)), ("2", (2,)),
])
def test_layer_sets(layers, indices):
    assert layer_indices(layers, 4) == indices


@pytest.mark.parametrize("layers", ["", "2-1", "odd", "1-", "-1", "4", "0,0", ()])
def test_bad_layer_sets(layers):
    with pytest.raises(ValueError, match="layers"):
        layer_indices(layers, 4)


GOOD = (FOLDER / "deepseek-v2-lite.yaml").read_text()


@pytest.mark.parametrize(("old", "new", "message"), [
    ("dense_ffn: 10944", "", "1 layers have no experts and dense_ffn is 0"),
    ("layers: 1-26", "layers: all", "0 layers have no experts and dense_ffn is 10944"),
    ("layers: 1-26", "layers: 1-27", "moe.layers '1-27' names no layer, one twice, or one outside 0-26"),
    ("experts: 64", "experts: [64, 64]", "moe.experts lists 2 numbers for 26 layers with experts"),
    ("top_k: 6", "top_k: 65", "moe.top_k 65 exceeds the 64 experts of a layer"),
    ("top_k: 6", "topk: 6", "unknown key; did you mean 'top_k'"),
    ("weights: bf16", "weights: bf17", "bf16"),
    ("kind: mla", "kind: latent", "latent"),
    ("rope_dim: 64", "rope_dim: 0", "greater than 0"),
])
def test_wrong_models_are_refused(old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        validate(ModelSpec, read_text(GOOD.replace(old, new), "model.yaml", FOLDER))
    assert message in str(caught.value)
    assert "model.yaml:" in str(caught.value)


def test_kv_heads_must_divide_heads():
    with pytest.raises(ValueError, match="kv_heads 5 does not divide heads 32"):
        model("mixtral-8x7b").scaled(attention={"kv_heads": 5})
    with pytest.raises(ValueError, match="3 key/value heads cannot be shared or copied evenly by 2 devices"):
        model("mixtral-8x7b").scaled(attention={"heads": 12, "kv_heads": 3}).attention_gemms(2)


def torch_config(spec: ModelSpec):
    """Return the transformers configuration of the class that runs *spec*, from our numbers."""
    import transformers as hf

    attention, moe = spec.attention, spec.moe
    common = {"hidden_size": spec.hidden, "num_hidden_layers": spec.layers, "vocab_size": spec.vocabulary,
              "num_attention_heads": attention.heads, "num_experts_per_tok": moe.top_k,
              "tie_word_embeddings": spec.tied_embeddings}
    if attention.kind == "mla":
        latent = {"q_lora_rank": attention.q_rank, "kv_lora_rank": attention.kv_rank,
                  "qk_nope_head_dim": attention.nope_dim, "qk_rope_head_dim": attention.rope_dim,
                  "v_head_dim": attention.value_dim, "num_key_value_heads": attention.heads,
                  "intermediate_size": spec.dense_ffn, "moe_intermediate_size": moe.ffn,
                  "n_shared_experts": moe.shared_ffn // moe.ffn, "n_routed_experts": moe.experts,
                  "first_k_dense_replace": spec.layers - spec.n_moe_layers}
        return {"deepseek-v2-lite": hf.DeepseekV2Config, "deepseek-v3": hf.DeepseekV3Config}[spec.name](
            **common, **latent)
    common |= {"num_key_value_heads": attention.kv_heads, "head_dim": attention.head_dim}
    if spec.name.startswith("qwen3"):
        return hf.Qwen3MoeConfig(**common, num_experts=moe.experts, moe_intermediate_size=moe.ffn)
    if spec.name.startswith("qwen1.5"):
        return hf.Qwen2MoeConfig(**common, num_experts=moe.experts, moe_intermediate_size=moe.ffn,
                                 shared_expert_intermediate_size=moe.shared_ffn)
    if spec.name.startswith("olmoe"):
        return hf.OlmoeConfig(**common, num_experts=moe.experts, intermediate_size=moe.ffn)
    family = hf.MixtralConfig if spec.name.startswith("mixtral") else hf.GptOssConfig
    return family(**common, num_local_experts=moe.experts, intermediate_size=moe.ffn)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PUBLISHED)
def test_pytorch_class_has_as_many_weights(name):
    torch = pytest.importorskip("torch", reason="needs the extra 'transformers'")
    transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")
    spec = model(name)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(torch_config(spec))
    weights = sum(p.numel() for p in module.parameters())
    correction = sum(b.numel() for n, b in module.named_buffers() if n.endswith("e_score_correction_bias"))
    assert weights + correction == spec.total_parameters
