"""A router that is told counts now and then, on paper: what it knows, what it adds, where it errs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_machine import dense

import moesim
from moesim.serving.group import Group, Requests
from moesim.serving.pool import Pool
from moesim.serving.routers.fewest_requests import FewestRequests

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny.yaml"


def groups(arrivals: list[float]) -> list[Group]:
    """Return two empty groups for requests that come at *arrivals*."""
    table = pd.DataFrame({"arrival_s": arrivals, "prompt_tokens": 1, "output_tokens": 2})
    requests = Requests(table)
    return [Group(requests, Pool(8, 1, len(table))) for _ in range(2)]


@pytest.mark.parametrize(("period", "expected"), [("0 s", [0, 1, 0, 1, 0, 1]), ("100 s", [0, 1, 0, 1, 0, 0])])
def test_what_was_sent_just_before_is_not_known_yet(tmp_path: Path, period: str, expected: list[int]) -> None:
    """A prompt of one token takes 146 s (test_islands_by_hand); each request has one, on one of two devices.

    At 150 the router has been told nothing since 100: it counts what it sent itself, 2 at 150, 3 at 160 and 4 at 199.
    At 205 it has been told the counts of 200, which are those of 146, when the first two were done: none. It forgets
    what it sent between and gives 5 to device 0, which has 2 and 4; one that always knows gives it to device 1.
    """
    come = [(0, 1, 1), (0, 1, 1), *((at, 1, 2) for at in (150, 160, 199, 205))]
    router = f"request_router={{name: fewest_requests, period: {period}}}"
    assert moesim.simulate(dense(tmp_path, come, 2, router)).requests["group"].tolist() == expected


def test_who_waits_counts_more_and_so_does_who_was_sent_since() -> None:
    """Reported at 0.05: three run here, one waits there. 3 against 4: here. Sent at 0.11, that one counts 4 more."""
    here, there = both = groups([0.0, 0.0, 0.0, 0.0, 0.11, 0.12, 0.21])
    here.running = np.arange(3)
    there.add(3)
    for group in both:
        group.report(0.05)
    there.report(0.13)  # of a step that ends after the router has been told at 0.1
    router = FewestRequests(waiting=4, period="100 ms")
    assert router.choose(4, both, 4) == 0
    here.add(4)
    assert router.choose(5, both, 5) == 1
    there.add(5)
    here.running = np.arange(2)
    here.report(0.19)  # 2 run and one waits: 6; there one waits, 5 came later than 0.13: 4
    assert router.choose(6, both, 6) == 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.lists(st.integers(0, 60), max_size=10))
def test_nothing_is_known_before_it_happened(ends: list[int], asked: list[int]) -> None:
    """Whatever is asked, in order: the last report that was made by then, as found by looking through all of them."""
    group = groups([0.0])[0]
    reports = [(float(end), i) for i, end in enumerate(sorted(ends))]
    for end, i in reports:
        group.running = np.arange(i)
        group.report(end)
    for time_s in sorted(asked):
        known = [i for end, i in reports if end <= time_s]
        assert group.reported(float(time_s)) == (0, known[-1] if known else 0)


def test_groups_keep_no_reports_that_nobody_asks_for(tmp_path: Path) -> None:
    from moesim.sim.engine import Engine
    from moesim.sim.inputs import prepare

    engine = Engine(prepare(dense(tmp_path, [(0, 1, 3)], 2)))
    engine.run()
    assert [group._reports for island in engine._islands for group in island.groups] == [[], []]


@pytest.mark.parametrize("wrong", ["-1 s", "100"])
def test_a_period_that_makes_no_sense_is_refused(wrong: str) -> None:
    with pytest.raises(moesim.ConfigError, match=r"request_router"):
        moesim.load(TINY, (f"request_router={{name: fewest_requests, period: {wrong}}}",))
