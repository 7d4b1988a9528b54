"""What docs/howto/offload-experts.md shows, runs, and its metrics are there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from moesim import metrics
from moesim.synthetic import SyntheticTrace

ANSWERS = ("host", "swapped", "skipped", "deferred", "low_precision")


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
    shown = {name for name in re.findall(r"`(cache_\w+)`", page) if name not in ("cache_conditional", "cache_policy")}
    steps = pd.DataFrame({name: [1.0] for name in (
        "start_s", "end_s", "expert_hits", "expert_misses", "fetched_bytes", "expert_choices", "host_busy_share",
        "gate_probability", "given_up_probability", *(f"{what}_choices" for what in ANSWERS))})
    found = metrics.expert_cache(steps.assign(end_s=2.0))
    assert len(shown) == 9 and shown <= {f"cache_{name}" for name in found.index}


def test_more_ranks_leave_the_choices_as_they_are() -> None:
    few, many = (SyntheticTrace(preset="dsv2_lite", requests=3, prompt_tokens=2, output_tokens=3, layers=3,
                                ranked=ranked).generate() for ranked in (None, 9))
    assert (few.chosen == many.chosen).all() and (few.n_ranked, many.n_ranked, many.top_k) == (6, 9, 6)
    assert (many.experts[..., 6:, None] != many.chosen[..., None, :]).all()


@pytest.mark.parametrize("ranked", [1, 33])
def test_ranks_are_from_top_k_to_all_experts(ranked: int) -> None:
    with pytest.raises(ValueError, match=rf"ranked is {ranked}; tokens use 4 of 32 experts: give a number from"):
        SyntheticTrace(preset="gpt_oss_20b", ranked=ranked)
