"""Laws of runs of flows that stop and go on, of flows in turn, of dead links, and of what a memo keeps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from moesim.network import fluid

SEEDS = st.integers(0, 100_000)


class Case(NamedTuple):
    """A random run: usage [flows, links], capacity, sizes, starts, weights and limits, and which flow each follows."""

    usage: np.ndarray
    capacity: np.ndarray
    size: np.ndarray
    start_s: np.ndarray
    weight: np.ndarray
    limit: np.ndarray
    after: np.ndarray

    def run(self, rows: Any = slice(None), **options: Any) -> fluid.Course:
        """Run the flows *rows*; *options* replace arrays or go to ``fluid.run``."""
        given_s = {"size": self.size[rows], "start_s": self.start_s[rows], "weight": self.weight[rows],
                   "limit": self.limit[rows], "capacity": self.capacity, **options}
        return fluid.run(fluid.Paths.of(sparse.csr_array(self.usage[rows])), **given_s)


def random_case(seed: int, whole: bool = False) -> Case:
    """Return a case of up to 40 flows on up to 15 links; *whole*: no flow splits its rate, so usage is all ones."""
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 41), rng.integers(1, 16)
    usage = rng.choice([0.0, 0.0, 1.0] if whole else [0.0, 0.0, 0.25, 1.0], (n, m))
    usage[np.arange(n), rng.integers(m, size=n)] = 1.0
    after, row = np.full(n, -1), rng.permutation(n)
    after[row[1:]] = np.where(rng.random(n - 1) < 0.6, row[:-1], -1)
    return Case(usage, rng.uniform(1, 10, m), rng.lognormal(0, 1, n), rng.choice([0.0, 0.3, 1.0], n) * rng.random(n),
                rng.choice([0.5, 1.0, 3.0], n), np.where(rng.random(n) < 0.2, rng.uniform(0.1, 2, n), np.inf), after)


@given(SEEDS, st.floats(0, 1.1), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_stopping_and_going_on_changes_nothing(seed: int, when: float, whole: bool, in_turn: bool) -> None:
    case = random_case(seed, whole)
    after = case.after if in_turn else None
    full = case.run(after=after)
    until = when * float(full.end_s.max())
    first = case.run(after=after, until=until)
    ended = first.end_s < np.inf
    assert first.end_s[ended] == pytest.approx(full.end_s[ended], rel=1e-12) and (first.end_s[ended] <= until).all()
    assert (first.left_bytes[ended] == 0).all() and (first.left_bytes[~ended] > 0).all()
    assert (first.left_bytes <= case.size).all()
    rest = np.flatnonzero(~ended)
    place = np.full(len(ended) + 1, -1)  # the last is for -1
    place[rest] = np.arange(len(rest))
    then = case.run(rest, size=first.left_bytes[rest], start_s=np.maximum(case.start_s[rest], until),
                    after=place[after[rest]] if in_turn else None)
    assert then.end_s == pytest.approx(full.end_s[rest], rel=1e-9)


@given(SEEDS, st.floats(0, 1.1))
@settings(max_examples=40, deadline=None)
def test_what_is_sent_by_a_time_fits_through_the_links(seed: int, when: float) -> None:
    case = random_case(seed)
    start = case.start_s.min()
    until = when * float(case.run(after=case.after).end_s.max())
    sent = case.size - case.run(after=case.after, until=until).left_bytes
    assert (sent >= 0).all()
    assert (sent @ case.usage <= case.capacity * max(until - start, 0.0) * (1 + 1e-9) + 1e-12).all()
    rate = np.minimum(case.limit, 1e9)  # inf times 0 s is not a number of bytes
    assert (sent <= rate * np.maximum(until - case.start_s, 0.0) * (1 + 1e-9) + 1e-12).all()


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_a_flow_in_turn_begins_no_sooner_than_it_may(seed: int) -> None:
    """Given the times at which they begin, flows in turn are flows like all others."""
    case = random_case(seed)
    course = case.run(after=case.after)
    begins = np.where(case.after >= 0, np.maximum(case.start_s, course.end_s[case.after]), case.start_s)
    assert case.run(start_s=begins).end_s == pytest.approx(course.end_s, rel=1e-7)


@given(SEEDS, st.booleans())
@settings(max_examples=50, deadline=None)
def test_pieces_in_turn_on_one_path_are_one_flow(seed: int, whole: bool) -> None:
    case = random_case(seed, whole)
    n = len(case.size)
    share = np.random.default_rng(seed).uniform(0.1, 0.9, n)
    twice = np.tile(np.arange(n), 2)
    pieces = case.run(twice, size=np.concatenate([case.size * share, case.size * (1 - share)]),
                      after=np.concatenate([np.full(n, -1), np.arange(n)]))
    assert pieces.end_s[n:] == pytest.approx(case.run().end_s, rel=1e-9)


@given(SEEDS, st.booleans())
@settings(max_examples=40, deadline=None)
def test_flows_across_dead_links_are_as_good_as_not_there(seed: int, whole: bool) -> None:
    case = random_case(seed, whole)
    capacity = np.where(np.random.default_rng(seed).random(len(case.capacity)) < 0.2, 0.0, case.capacity)
    dead = (case.usage[:, capacity == 0] > 0).any(axis=1)
    course = case.run(capacity=capacity)
    assert (course.end_s[dead] == np.inf).all() and (course.left_bytes[dead] == case.size[dead]).all()
    assert (capacity[course.bottleneck[dead]] == 0).all()
    if not dead.all():
        assert course.end_s[~dead] == pytest.approx(case.run(~dead, capacity=capacity).end_s, rel=1e-9)
    rate, _ = fluid.rates(fluid.Paths.of(sparse.csr_array(case.usage)), capacity, case.weight, case.limit)
    assert (rate[dead] == 0).all() and (rate[~dead] > 0).all()


@given(SEEDS, st.lists(st.sampled_from([1.0, 3.0, 0.1, 1e6 / 7, 2.0**-40]), min_size=1, max_size=4), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_memo_changes_nothing_but_rounding(seed: int, factors: list[float], in_turn: bool) -> None:
    case, memo = random_case(seed), fluid.Memo()
    after = case.after if in_turn else None
    case.run(after=after, memo=memo)
    for factor in factors:
        scaled = {"size": case.size * factor, "start_s": case.start_s * factor, "after": after}
        kept, plain = case.run(memo=memo, **scaled), case.run(**scaled)
        assert kept.end_s == pytest.approx(plain.end_s, rel=1e-12)
        assert kept.bottleneck.tolist() == plain.bottleneck.tolist() and (kept.left_bytes == plain.left_bytes).all()
    assert (memo.hits, memo.misses) == (len(factors), 1)


@given(SEEDS, SEEDS)
@settings(max_examples=40, deadline=None)
def test_a_memo_tells_different_runs_apart(seed: int, other: int) -> None:
    """Change one number of one argument: a miss, and the answer of the changed run."""
    case, rng = random_case(seed), np.random.default_rng(other)
    changes: list[dict[str, Any]] = [{"tolerance": 0.1}, {"limit": None}, {"after": case.after}]
    arrays = {"size": case.size, "start_s": case.start_s, "weight": case.weight, "capacity": case.capacity}
    for name, values in arrays.items():
        changed = values.copy()
        changed[rng.integers(len(values))] *= 1 + rng.choice([1e-9, 1e-3, 1.0])
        if not np.array_equal(_relative(name, changed), _relative(name, values)):
            changes.append({name: changed})
    for change in changes:
        memo = fluid.Memo()
        case.run(memo=memo)
        assert case.run(memo=memo, **change).end_s == pytest.approx(case.run(**change).end_s, rel=1e-12)
        assert (memo.hits, memo.misses) == (0, 2)


def _relative(name: str, values: np.ndarray) -> np.ndarray:
    """Return what of *values* the memo tells apart when nothing else changes."""
    return values / values.max() if name == "size" else values - values.min() if name == "start_s" else values


def test_a_flow_that_begins_when_the_run_stops_has_all_its_bytes() -> None:
    paths = fluid.Paths(np.array([0, 1, 2]), np.array([0, 0]), np.ones(2))
    course = fluid.run(paths, np.array([10.0]), np.array([10.0, 7.0]), np.zeros(2), until=1.0, after=np.array([-1, 0]))
    assert course.end_s.tolist() == [1.0, np.inf] and course.left_bytes.tolist() == [0.0, 7.0]
