"""A model and its tokenizer in a folder, run by name."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from moesim.capture.text import Plan, capture_text  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a tiny Mixtral and a tokenizer of one token per character."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=31, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, eos_token_id=1, bos_token_id=0)
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    letters = {token: index for index, token in enumerate(["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz .,"])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(folder)
    return str(folder)


def test_prompts_become_requests(folder: str) -> None:
    plan = Plan(prompt_tokens=8, new_tokens=4, rows=2, ranked=3)
    prompts = ["the gate", "an expert is chosen", "top"]
    trace = capture_text(folder, prompts, ["x", "y", "x"], plan, licence="CC0-1.0")
    tokens = trace.tokens
    prefill = tokens[tokens["phase"] == 0].groupby("request").size()
    assert prefill.tolist() == [8, 8, 3]  # cut to eight, padding left out
    assert (tokens[tokens["phase"] == 1].groupby("request").size() <= 3).all()
    assert trace.n_ranked == 3 and trace.domains() == ("x", "y")
    assert trace.meta["model"] == folder and trace.meta["licence"] == "CC0-1.0"
    again = capture_text(folder, prompts, ["x", "y", "x"], plan)
    assert (again.experts == trace.experts).all()


def test_an_empty_prompt_is_refused(folder: str) -> None:
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        capture_text(folder, ["a", ""])
