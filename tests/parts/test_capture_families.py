"""Recording must not change what a model computes, and must say what its gates said: every supported family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from moesim.capture import record  # noqa: E402
from moesim.capture.reference_moe import ReferenceConfig, ReferenceMoE  # noqa: E402

PAD = 0
SIZES: dict[str, Any] = dict(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
)
EXPERTS = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=16)
LATENT = dict(kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
              n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=16, n_shared_experts=1,
              first_k_dense_replace=1, num_key_value_heads=4)


def hugging_face(kind: str, **options: Any) -> Any:
    """Build a randomly initialised model of class *kind*, in evaluation mode."""
    torch.manual_seed(0)
    is_switch = kind == "SwitchTransformers"
    config = getattr(transformers, f"{kind}Config")(**(options if is_switch else SIZES | options))
    head = "ForConditionalGeneration" if is_switch else "ForCausalLM"
    model = getattr(transformers, kind + head)(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith(("gate.weight", "router.weight", "classifier.weight")):
            torch.nn.init.normal_(weight)  # some gates start at zero, which makes every choice a tie
    return model


def reference() -> Any:
    """Build a tiny reference model."""
    config = ReferenceConfig(vocabulary=61, n_layers=3, n_experts=8, top_k=3, width=32, n_heads=4, expert_width=16)
    return ReferenceMoE(config).eval()


BUILD: dict[str, Callable[[], Any]] = {
    "reference": reference,
    "mixtral": lambda: hugging_face("Mixtral", num_local_experts=8, num_experts_per_tok=3),
    "qwen2_moe": lambda: hugging_face("Qwen2Moe", **EXPERTS, shared_expert_intermediate_size=16),
    "qwen3_moe": lambda: hugging_face("Qwen3Moe", **EXPERTS, head_dim=8),
    "olmoe": lambda: hugging_face("Olmoe", num_experts=8, num_experts_per_tok=3),
    "deepseek_v2": lambda: hugging_face("DeepseekV2", **LATENT, topk_method="greedy"),
    "deepseek_v2_groups": lambda: hugging_face(
        "DeepseekV2", **LATENT, topk_method="group_limited_greedy", n_group=4, topk_group=2),
    "deepseek_v3": lambda: hugging_face("DeepseekV3", **LATENT, n_group=4, topk_group=2),
    "gpt_oss": lambda: hugging_face("GptOss", num_local_experts=8, num_experts_per_tok=3, head_dim=8),
}
LAYERS = {name: [1, 2] if "deepseek" in name else [0, 1, 2] for name in BUILD}
PLAIN = [name for name in BUILD if name not in ("deepseek_v2_groups", "deepseek_v3")]


def gate_modules(model: Any) -> list[Any]:
    """Find the gates by what they are, not by moesim's table."""
    names = ("Router", "Gate")
    return [module for module in model.modules() if any(name in type(module).__name__ for name in names)]


def padded_batch() -> tuple[Any, Any]:
    """Return two rows of 7 tokens, the first with three pads on the left."""
    ids = torch.arange(3, 17).reshape(2, 7)
    mask = torch.ones_like(ids)
    ids[0, :3], mask[0, :3] = PAD, 0
    return ids, mask


@pytest.fixture(scope="module", params=list(BUILD))
def named_model(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """Give every family's model, built once."""
    return request.param, BUILD[request.param]()


def test_logits_are_bit_equal_and_hooks_leave(named_model: tuple[str, Any]) -> None:
    name, model = named_model
    ids, mask = padded_batch()
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        with record(model) as recorder:
            during = model(input_ids=ids, attention_mask=mask).logits
        after = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(before, during) and torch.equal(before, after)
    assert recorder.trace().n_tokens == 11  # the pass outside the block was not recorded
    hooks = [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert not hooks


def test_choices_are_the_gates_own(named_model: tuple[str, Any]) -> None:
    name, model = named_model
    own: list[tuple[Any, ...]] = []
    handles = [gate.register_forward_hook(lambda m, a, output: own.append(output)) for gate in gate_modules(model)]
    ids, mask = padded_batch()
    with torch.no_grad(), record(model) as recorder:
        model(ids, attention_mask=mask)
    for handle in handles:
        handle.remove()
    trace, real = recorder.trace(), mask.bool().flatten()
    assert trace.meta["moe_layer_indices"] == LAYERS[name] and len(own) == trace.n_layers
    for layer, (logits, weights, chosen) in enumerate(own):
        order = weights.argsort(dim=-1, descending=True)
        np.testing.assert_array_equal(trace.chosen[:, layer], chosen.gather(1, order)[real].numpy())
        scores = logits.sigmoid() if name == "deepseek_v3" else logits.softmax(-1)
        expected = scores.gather(1, chosen.gather(1, order))[real].detach().numpy()
        assert trace.probs is not None
        np.testing.assert_allclose(trace.probs[:, layer].astype(float), expected, atol=1e-3)  # float16


def test_rows_say_request_position_token(named_model: tuple[str, Any]) -> None:
    _, model = named_model
    ids, mask = padded_batch()
    with torch.no_grad(), record(model) as recorder:
        model(ids, attention_mask=mask)
    tokens = recorder.trace(domain=["prose", "code"]).tokens
    assert tokens["request"].tolist() == [0] * 4 + [1] * 7
    assert tokens["position"].tolist() == [*range(4), *range(7)]
    assert tokens["token_id"].tolist() == [*range(6, 10), *range(10, 17)]  # no pad among them
    assert tokens["phase"].eq(0).all() and tokens["step"].eq(0).all()
    assert tokens["domain"].tolist() == ["prose"] * 4 + ["code"] * 7


@pytest.mark.parametrize("name", PLAIN)
def test_runners_up_follow_the_chosen(name: str) -> None:
    model = BUILD[name]()
    ids, mask = padded_batch()
    with torch.no_grad(), record(model, ranked=8) as full, record(model) as short:
        model(ids, attention_mask=mask)
    ranked, chosen = full.trace(), short.trace()
    assert ranked.n_ranked == 8 and (np.sort(ranked.experts, axis=2) == np.arange(8)).all()
    np.testing.assert_array_equal(ranked.chosen, chosen.experts)
    assert ranked.probs is not None
    np.testing.assert_allclose(ranked.probs.astype(float).sum(2), 1, atol=4e-3)  # a softmax, in float16


@pytest.mark.parametrize("name", ["deepseek_v2_groups", "deepseek_v3"])
def test_runners_up_are_refused_where_a_bias_or_groups_overrule_the_score(name: str) -> None:
    with pytest.raises(ValueError, match=r"ranked=4: DeepSeek-V. gates choose with a bias or by groups"):
        with record(BUILD[name](), ranked=4):
            pass


@pytest.mark.parametrize("name", [name for name in BUILD if name != "reference"])
def test_generate_tells_prefill_from_decode(name: str) -> None:
    model = BUILD[name]()
    ids, mask = padded_batch()
    with record(model, stop_ids=[]) as recorder:
        out = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None)
    trace = recorder.trace()
    assert out.shape[1] == 12
    prefill, decode = trace.phase("prefill").tokens, trace.phase("decode").tokens
    assert len(prefill) == 11 and len(decode) == 2 * 4  # the last generated token is never routed
    assert decode["step"].tolist() == [1, 2, 3, 4] * 2
    assert decode["position"].tolist() == [4, 5, 6, 7, 7, 8, 9, 10]
    assert decode["token_id"].tolist() == out[:, 7:11].flatten().tolist()


def test_finished_rows_are_not_recorded() -> None:
    model = BUILD["mixtral"]()
    ids, mask = padded_batch()
    free = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)[:, 7:]
    stop = next(token for token in free[0, 1:4].tolist() if token not in free[1].tolist())
    length = free[0].tolist().index(stop)
    with record(model, stop_ids=[stop]) as recorder:
        model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=stop)
    decode = recorder.trace().phase("decode").tokens
    assert (decode["request"] == 0).sum() == length  # the stop token and the pads after it are left out
    assert (decode["request"] == 1).sum() == 5


def switch(**options: Any) -> Any:
    """Build a tiny Switch model with sparse layers 1 and 3 in either stack."""
    return hugging_face("SwitchTransformers", vocab_size=61, pad_token_id=PAD, eos_token_id=2, d_model=32,
                        d_ff=48, d_kv=8, num_heads=4, num_layers=4, num_decoder_layers=4,
                        num_sparse_encoder_layers=2, num_sparse_decoder_layers=2,
                        num_experts=8, decoder_start_token_id=PAD, **options)


def test_switch_records_one_stack() -> None:
    model = switch(expert_capacity=64)
    ids, mask = padded_batch()
    start = torch.zeros(2, 1, dtype=torch.long)
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits
        own: list[Any] = []
        gates = gate_modules(model.encoder)
        handles = [gate.register_forward_hook(lambda m, a, output: own.append(output)) for gate in gates]
        with record(model.encoder, ranked=4) as recorder:
            during = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits
    for handle in handles:
        handle.remove()
    trace = recorder.trace()
    assert torch.equal(before, during)
    assert trace.meta["moe_layer_indices"] == [1, 3] and trace.top_k == 1 and trace.n_tokens == 11
    for layer, (one_hot, weights, _) in enumerate(own):
        real = mask.bool()
        np.testing.assert_array_equal(trace.chosen[:, layer, 0], one_hot[real].argmax(-1).numpy())
        assert trace.probs is not None
        np.testing.assert_allclose(trace.probs[:, layer, 0].astype(float), weights[real][:, 0].numpy(), atol=1e-3)


def test_switch_decoder_generates() -> None:
    model = switch(expert_capacity=64)
    ids, mask = padded_batch()
    with record(model.decoder, stop_ids=[]) as recorder:
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)
    tokens = recorder.trace().tokens
    assert tokens["phase"].tolist() == [0, 1, 1, 1] * 2  # the start token is the prompt
    assert tokens["token_id"].tolist() == out[:, :4].flatten().tolist()


def test_switch_whole_model_and_full_experts_are_refused() -> None:
    ids, mask = padded_batch()
    with pytest.raises(ValueError, match=r"two gates claim layer 1.*record\(model.encoder\)"), record(switch()):
        pass
    model = switch(expert_capacity=1)
    with pytest.raises(ValueError, match="got no expert because it was full"), torch.no_grad():
        with record(model.encoder):
            model.encoder(input_ids=ids, attention_mask=mask)
