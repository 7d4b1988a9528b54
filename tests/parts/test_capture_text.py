"""A model and its tokenizer in a folder, run by name."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from moesim.capture.text import Plan, capture_text  # noqa: E402


@pytest.fixture(scope="module")
def folder(tiny_mixtral: Path) -> str:
    """Return where the tiny Mixtral and its tokenizer are."""
    return str(tiny_mixtral)


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
