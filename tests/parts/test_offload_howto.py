"""What docs/howto/offload-experts.md shows, runs, and its metrics are there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from moesim.explore import metric_names
from moesim.synthetic import SyntheticTrace


@pytest.fixture(scope="module")
def page(repo: Path) -> str:
    return (repo / "docs/howto/offload-experts.md").read_text(encoding="utf-8")


def test_the_commands_print_what_the_page_shows(page: str, run_page: Callable[[str], list[str]]) -> None:
    printed = [dict(line.split() for line in out.splitlines()) for out in run_page(page)]
    shown = [dict(line.split() for line in block.splitlines()) for block in re.findall(r"```\n(\w.*?)```", page, re.S)]
    assert len(shown) == len(printed) == 3
    for ours, theirs in zip(shown, printed, strict=True):
        assert len(ours) >= 4
        for name, value in ours.items():
            assert float(value) == pytest.approx(float(theirs[name]), rel=1e-3), name
    fetched, host, rerouted = (float(run["throughput_tok_per_s"]) for run in shown)
    assert host > 5 * rerouted > 5 * fetched


def test_the_page_names_metrics_that_there_are(page: str) -> None:
    names = set(re.findall(r"`((?:cache|share|tpot|throughput)_\w+)`", page))
    assert len(names) >= 11 and names <= set(metric_names())


def test_more_ranks_leave_the_choices_as_they_are() -> None:
    few, many = (SyntheticTrace(preset="dsv2_lite", requests=3, prompt_tokens=2, output_tokens=3, layers=3,
                                ranked=ranked).generate() for ranked in (None, 9))
    assert (few.chosen == many.chosen).all() and (few.n_ranked, many.n_ranked, many.top_k) == (6, 9, 6)
    assert (many.experts[..., 6:, None] != many.chosen[..., None, :]).all()


@pytest.mark.parametrize("ranked", [1, 33])
def test_ranks_are_from_top_k_to_all_experts(ranked: int) -> None:
    with pytest.raises(ValueError, match=rf"ranked is {ranked}; tokens use 4 of 32 experts: give a number from"):
        SyntheticTrace(preset="gpt_oss_20b", ranked=ranked)
