"""What docs/howto/place-experts.md shows, runs (its Python blocks run in test_docs.py)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from moesim.placement import Placement, evaluate
from moesim.trace import read_trace


@pytest.fixture(scope="module")
def page(repo: Path) -> str:
    return (repo / "docs/howto/place-experts.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_print_what_the_page_shows(page: str, run_page: Callable[[str], list[str]],
                                                tmp_path: Path) -> None:
    printed = [out.splitlines() for out in run_page(page)]
    shown = re.findall(r"```\n(judged_on.*?)\.\.\.\n```", page, flags=re.DOTALL)[0].splitlines()
    assert [line.split() for line in shown[:1]] == [line.split() for line in printed[0][:1]]
    for ours, theirs in zip(shown[1:], printed[0][1:], strict=False):
        *names, cross_top1, cross_all, fanout, load = ours.split()
        *found, a, b, c, d = theirs.split()
        assert names == found
        assert [float(v) for v in (cross_top1, cross_all)] == pytest.approx([float(a), float(b)], abs=0.0006)
        assert [float(v) for v in (fanout, load)] == pytest.approx([float(c), float(d)], abs=0.006)
    assert "stay_load_max_over_mean" in printed[1][0] and "cross_node_top1" in printed[2][0]
    placement, unseen = Placement.load(tmp_path / "out/placement.json"), read_trace(
        tmp_path / "workloads/traces/reference-moe.parquet").evaluation()
    row = dict(zip(printed[1][0].split(), printed[1][3].split(), strict=True))
    assert row["judged_on"] == "evaluation" and float(row["cross_top1"]) == pytest.approx(
        evaluate(placement, unseen)["cross_top1"], rel=1e-4)


def test_the_page_names_what_there_is(page: str) -> None:
    from moesim import placement, registry

    for name in re.findall(r"`(\w+)`", page):
        if name in registry.names("solver") + registry.names("objective"):
            continue
        assert name in {"balance", "capacity", "gap", "cross_top1", "cross_all", "fanout", "load_max_over_mean",
                        "stay_load_max_over_mean", "stay_load", "context_coherent", "dispatch_combine"}, name
    assert {"judge", "solve", "evaluate", "stay_load"} <= set(placement.__all__)
