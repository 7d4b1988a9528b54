"""What docs/howto/replay-an-expert-cache.md shows, runs (its Python blocks run in test_docs.py)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from moesim import registry


@pytest.fixture(scope="module")
def page(repo: Path) -> str:
    return (repo / "docs/howto/replay-an-expert-cache.md").read_text(encoding="utf-8")


def test_the_commands_print_what_the_page_shows(page: str, run_page: Callable[[str], list[str]],
                                                tmp_path: Path) -> None:
    printed = [[line.split() for line in out.splitlines()] for out in run_page(page)]
    policies, rerouted = re.findall(r"```\n(batch.*?)(?:\.\.\.\n)?```", page, flags=re.DOTALL)
    for shown, of in ((policies, printed[0]), (rerouted, printed[3])):
        assert [line.split() for line in shown.splitlines()] == of[:len(shown.splitlines())]
    assert (tmp_path / "out/cache.csv").is_file() and "loaded_ahead" in printed[1][0]


def test_the_background_names_every_policy_and_prefetcher(repo: Path) -> None:
    text = (repo / "docs/background/expert-caches.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| [^t]", text, flags=re.MULTILINE)) >= set(registry.names("cache_policy"))
    for name in (*registry.names("prefetcher"), *registry.names("batching"), *registry.names("reroute")):
        assert name == "none" or f"`{name}`" in text, name
