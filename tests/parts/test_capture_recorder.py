"""The recorder's own rules: layouts of older transformers, calls that would make a wrong trace, hooks always gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moesim.capture import record  # noqa: E402
from moesim.capture.reference_moe import Cache, ReferenceConfig, ReferenceMoE  # noqa: E402

nn = torch.nn
TINY = ReferenceConfig(vocabulary=32, n_layers=2, n_experts=6, top_k=2, width=16, n_heads=2, expert_width=8)
IDS = torch.arange(1, 11).reshape(2, 5)


class Stack(nn.Module):
    """Hold one MoE block and run it on embedded tokens."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.layers = nn.ModuleList([block])

    def forward(self, input_ids: Any, attention_mask: Any = None, past_key_values: Any = None) -> Any:
        return self.layers[0](self.embed(input_ids))


def older(name: str, gate: nn.Module, **settings: Any) -> Stack:
    """Build a stack of one block of class *name* that calls its gate."""
    block = type(name, (nn.Module,), {"forward": lambda self, x: self.gate(x)})()
    block.gate = gate
    for key, value in settings.items():
        setattr(block, key, value)
    return Stack(block).eval()


def returning(name: str, values: Any, **settings: Any) -> nn.Module:
    """Build a gate of class *name* whose forward returns *values*."""
    gate = type(name, (nn.Module,), {"forward": lambda self, x: values})()
    gate.weight = nn.Parameter(torch.zeros(6, 16))
    for key, value in settings.items():
        setattr(gate, key, value)
    return gate


@pytest.mark.parametrize("block", ["MixtralSparseMoeBlock", "Qwen2MoeSparseMoeBlock", "OlmoeSparseMoeBlock"])
def test_a_bare_linear_gate_is_read_by_its_logits(block: str) -> None:
    model = older(block, nn.Linear(16, 6, bias=False), top_k=2, norm_topk_prob=True)
    with torch.no_grad(), record(model, ranked=3) as recorder:
        logits = model(IDS)
    trace = recorder.trace()
    expected = logits.flatten(0, 1).argsort(dim=-1, descending=True)[:, :3]
    np.testing.assert_array_equal(trace.experts[:, 0], expected.numpy())
    assert trace.meta["renormalised"] is True


def test_ids_and_scaled_weights_without_logits() -> None:
    ids = torch.tensor([[4, 1], [0, 5], [2, 3], [1, 0], [5, 2]]).repeat(2, 1)
    weights = torch.tensor([[0.5, 2.0]]).repeat(10, 1)  # unsorted, and scaled by 2.5
    gate = returning("DeepseekV2MoEGate", (ids, weights, None), top_k=2, routed_scaling_factor=2.5)
    model = older("DeepseekV2MoE", gate)
    with record(model) as recorder:
        model(IDS)
    trace = recorder.trace()
    np.testing.assert_array_equal(trace.experts[:, 0], ids.flip(1).numpy())
    assert trace.probs is not None
    np.testing.assert_allclose(trace.probs[:, 0].astype(float), [[0.8, 0.2]] * 10, atol=1e-3)
    with pytest.raises(ValueError, match="returns no logits, so 3 candidates cannot be ranked"):
        with record(model, ranked=3):
            model(IDS)


def test_scattered_scores_and_ids() -> None:
    ids = torch.tensor([[1, 4]]).repeat(10, 1)
    scores = torch.zeros(10, 6).scatter(1, ids, torch.tensor([[0.3, 0.7]]).repeat(10, 1))
    model = older("GptOssMLP", returning("GptOssTopKRouter", (scores, ids), top_k=2))
    with record(model) as recorder:
        model(IDS)
    np.testing.assert_array_equal(recorder.trace().experts[:, 0], ids.flip(1).numpy())


def test_an_unknown_layout_is_named() -> None:
    model = older("GptOssMLP", returning("GptOssTopKRouter", (torch.zeros(10, 5),), top_k=2))
    with pytest.raises(ValueError, match=r"layers.0.gate: GptOssTopKRouter returned \(torch.float32\[10, 5\]\)"):
        with record(model):
            model(IDS)


def test_a_model_without_gates_is_refused_with_what_was_looked_for() -> None:
    with pytest.raises(ValueError, match=r"Linear has no gate that moesim knows.*MixtralTopKRouter.*FAMILIES"):
        with record(nn.Linear(2, 2)):
            pass


@pytest.mark.parametrize("ranked", [1, 7])
def test_ranked_must_fit(ranked: int) -> None:
    with pytest.raises(ValueError, match=rf"ranked={ranked}; choose from top_k = 2 to the 6 experts"):
        with record(ReferenceMoE(TINY), ranked=ranked):
            pass


def test_hooks_leave_after_an_error() -> None:
    model = ReferenceMoE(TINY)
    with pytest.raises(KeyError), record(model):
        raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nothing_recorded_and_wrong_labels() -> None:
    model = ReferenceMoE(TINY)
    with record(model) as recorder:
        with pytest.raises(ValueError, match="nothing was recorded"):
            recorder.trace()
        model(IDS)
    with pytest.raises(ValueError, match="3 domain labels for 2 recorded requests"):
        recorder.trace(domain=["a", "b", "c"])


@torch.no_grad()
def test_passes_that_would_mix_requests_are_refused() -> None:
    model, cache, other = ReferenceMoE(TINY), Cache(), Cache()
    model(IDS, past_key_values=cache)
    with record(model):
        with pytest.raises(ValueError, match="continues 2 rows of 5 cached .* before left nothing"):
            model(IDS[:, :1], past_key_values=cache)
    with record(model):
        model(IDS[:, :3], past_key_values=other)
        with pytest.raises(ValueError, match="left 2 rows of 3 positions"):
            model(IDS[:, :1], past_key_values=cache)


def test_generation_without_a_cache_is_refused() -> None:
    model = ReferenceMoE(TINY)
    with record(model):
        model(IDS[:, :3])
        with pytest.raises(ValueError, match="use_cache=True"):
            model(IDS[:, :4])


@torch.no_grad()
def test_a_row_that_goes_on_after_a_stop_token_is_refused() -> None:
    model, cache = ReferenceMoE(TINY), Cache()
    with record(model, stop_ids=[9]):
        model(IDS, past_key_values=cache)
        model(torch.tensor([[9], [3]]), past_key_values=cache)
        with pytest.raises(ValueError, match="row 0 goes on with token 4 after a stop token"):
            model(torch.tensor([[4], [3]]), past_key_values=cache)


@torch.no_grad()
def test_a_chunked_prompt_is_one_request() -> None:
    model, cache = ReferenceMoE(TINY), Cache()
    with record(model) as recorder:
        model(IDS[:, :3], past_key_values=cache)
        model(IDS[:, 3:], past_key_values=cache)
        model(IDS[:, :1], past_key_values=cache)
    tokens = recorder.trace().tokens
    assert tokens["request"].tolist() == [0] * 6 + [1] * 6
    assert tokens["position"].tolist() == [*range(6)] * 2
    assert tokens["phase"].tolist() == [0, 0, 0, 0, 0, 1] * 2


@pytest.mark.parametrize("mask", [torch.ones(2, 1, 5, 5), torch.ones(2, 3)])
def test_other_masks_are_refused(mask: Any) -> None:
    with pytest.raises(ValueError, match="attention_mask is .*not .rows, positions. for tokens"):
        with record(ReferenceMoE(TINY)) as recorder:
            recorder.begin(ReferenceMoE(TINY), (IDS,), {"attention_mask": mask})


def test_a_gate_called_elsewhere_or_never_is_refused() -> None:
    model = ReferenceMoE(TINY)
    with record(model), pytest.raises(ValueError, match="layers.0.gate: called outside a pass"):
        model.layers[0].gate(torch.zeros(3, 16))
    silent = Stack(nn.Identity())
    silent.spare = nn.ModuleList([model.layers[0].gate])
    with record(silent), pytest.raises(ValueError, match="spare.0 was not called in this pass"):
        silent(IDS)


def test_a_gate_outside_numbered_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="ReferenceGate: no layer number in this name; record the whole model"):
        with record(ReferenceMoE(TINY).layers[0].gate):
            pass
