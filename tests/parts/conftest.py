"""Fixtures that several parts share."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moesim.cli import app


@pytest.fixture(scope="session")
def tiny_mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny Mixtral and a tokenizer of one token per character."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=31, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, eos_token_id=1, bos_token_id=0)
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    letters = {token: index for index, token in enumerate(["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz .,"])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def run_page(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Run the commands of a page's shell blocks in a new folder; return what each printed."""
    monkeypatch.chdir(tmp_path)
    for folder in ("workloads", "studies"):
        (tmp_path / folder).symlink_to(repo / folder)

    def run(page: str) -> list[str]:
        printed = []
        for line in "".join(re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)).splitlines():
            program, *arguments = shlex.split(line)
            done = CliRunner().invoke(app, arguments)
            assert program == "moesim" and done.exit_code == 0, f"{line}: {done.stderr}"
            printed.append(done.stdout)
        return printed

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread: threads that wait for each other are slow beside other tests."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
