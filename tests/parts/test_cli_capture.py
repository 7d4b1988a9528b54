"""`moesim capture` on a tiny model in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from moesim.cli import app
from moesim.trace import read_trace

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def model(tiny_mixtral: Path) -> Path:
    """Return where the tiny Mixtral and its tokenizer are."""
    return tiny_mixtral


def call(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, ["capture", *map(str, arguments)])


def test_paragraphs_become_requests_with_the_file_as_domain(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prose.txt").write_text("the gate\nchooses\n\nan expert\n\n\n")
    (tmp_path / "lists.txt").write_text("a, b, c")
    done = call("--model", model, "--text", tmp_path / "prose.txt", "--text", tmp_path / "lists.txt",
                "--prompt-tokens", 6, "--new-tokens", 3, "--licence", "CC0-1.0",
                "--out", tmp_path / "new/trace.parquet")
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    trace = read_trace(tmp_path / "new/trace.parquet")
    tokens = trace.tokens
    assert tokens.groupby("request")["domain"].first().tolist() == ["prose", "prose", "lists"]
    assert tokens[tokens["phase"] == 0].groupby("request").size().tolist() == [6, 6, 6]
    assert (tokens["phase"] == 1).any()
    assert (trace.n_layers, trace.n_experts, trace.top_k) == (2, 4, 2)
    assert (trace.meta["licence"], trace.meta["synthetic"]) == ("CC0-1.0", False)
    assert f"{trace.n_tokens} tokens, 2 layers, 4 experts, top 2" in done.stderr


def test_wrong_input_is_told(model: Path, tmp_path: Path) -> None:
    text, empty = tmp_path / "t.txt", tmp_path / "e.txt"
    text.write_text("hello")
    empty.write_text("\n\n")
    for arguments, message in (
            (("--model", tmp_path, "--text", text, "--out", "t.parquet"), "holds no config.json"),
            (("--model", model, "--text", empty, "--out", "t.parquet"), "e.txt: holds no text"),
            (("--model", model, "--text", text, "--out", "t.csv"), "end the name in .parquet"),
            (("--model", model, "--text", text, "--out", "t.parquet", "--domain", "a", "--domain", "b"),
             "2 domains for 1 text files; give one, or one for each file"),
            (("--model", model, "--text", text, "--out", "t.parquet", "--ranked", 9), "ranked"),
            (("--model", model, "--text", tmp_path / "no.txt", "--out", "t.parquet"),
             "no.txt: no such file or directory; correct the path")):
        done = call(*arguments)
        assert (done.exit_code, done.stdout) == (2, ""), (message, done.exception)
        assert message in done.stderr
