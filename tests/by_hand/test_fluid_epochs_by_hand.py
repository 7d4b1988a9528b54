"""Fluid flows that stop, wait for one another, or meet a dead link, worked on paper. Rates in bytes per second."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.network import fluid

INF = np.inf


def on(*links: tuple[int, ...]) -> fluid.Paths:
    """Return flows that use all of their rate on each of their *links*."""
    first = np.cumsum([0, *(len(path) for path in links)])
    link = np.array([l for path in links for l in path], np.int32)
    return fluid.Paths(first, link, np.ones(len(link)))


def go(paths: fluid.Paths, capacity: list[float], size: list[float], start_s: list[float], **options: Any) -> Any:
    return fluid.run(paths, np.array(capacity), np.array(size), np.array(start_s), **options)


@pytest.mark.parametrize(("until", "end_s", "left", "bottleneck"), [
    # One link of 12: a (12) and b (36) from 0, 6 each; a is done at 2, b has 24 left. c (12) comes at 3, when b, alone
    # at 12, has 12 left: 6 each, both done at 5. Not begun: no bottleneck.
    (0.0, [INF, INF, INF], [12.0, 36.0, 12.0], [-1, -1, -1]),
    (-9.0, [INF, INF, INF], [12.0, 36.0, 12.0], [-1, -1, -1]),
    (1.5, [INF, INF, INF], [3.0, 27.0, 12.0], [0, 0, -1]),
    (2.0, [2.0, INF, INF], [0.0, 24.0, 12.0], [0, 0, -1]),   # what ends at the stop has ended
    (2.5, [2.0, INF, INF], [0.0, 18.0, 12.0], [0, 0, -1]),
    (3.0, [2.0, INF, INF], [0.0, 12.0, 12.0], [0, 0, -1]),   # what begins at the stop has not sent
    (4.0, [2.0, INF, INF], [0.0, 6.0, 6.0], [0, 0, 0]),
    (5.0, [2.0, 5.0, 5.0], [0.0, 0.0, 0.0], [0, 0, 0]),
    (INF, [2.0, 5.0, 5.0], [0.0, 0.0, 0.0], [0, 0, 0])])
def test_a_run_that_stops(until: float, end_s: list[float], left: list[float], bottleneck: list[int]) -> None:
    course = go(on((0,), (0,), (0,)), [12.0], [12.0, 36.0, 12.0], [0.0, 0.0, 3.0], until=until)
    assert course.end_s.tolist() == end_s
    assert course.left_bytes.tolist() == left
    assert course.bottleneck.tolist() == bottleneck


def test_the_time_of_an_end_is_a_good_time_to_stop() -> None:
    """Far from zero a time has few digits; the end that a run reports is still not missed by the run that stops there.
    """
    paths, size, start = on((0,), (0,)), [1.0, 3.0], [1e5 + 0.1, 1e5 + 0.1]
    whole = go(paths, [3e6], size, start)
    part = go(paths, [3e6], size, start, until=float(whole.end_s[0]))
    assert part.end_s[0] == whole.end_s[0] and part.end_s[1] == INF
    assert part.left_bytes.tolist() == pytest.approx([0.0, 2.0])


def test_flows_in_turn() -> None:
    # Links of 10. a (20), then b (10), then c (30, not before 8), on link 0; d (40) on link 0 and 1; e (30) on link 1.
    # 0: a 5, d 5, e 5.  4: a done, b begins. 6: b done (10), d and e have 10 and 0 left: e done.
    # 6 to 7: d alone at 10, done. 8: c may begin, 10: done at 11.
    paths = on((0,), (0,), (0,), (0, 1), (1,))
    course = go(paths, [10.0, 10.0], [20.0, 10.0, 30.0, 40.0, 30.0], [0.0, 0.0, 8.0, 0.0, 0.0],
                after=np.array([-1, 0, 1, -1, -1]))
    assert course.end_s.tolist() == pytest.approx([4.0, 6.0, 11.0, 7.0, 6.0], rel=1e-15)
    stopped = go(paths, [10.0, 10.0], [20.0, 10.0, 30.0, 40.0, 30.0], [0.0, 0.0, 8.0, 0.0, 0.0],
                 after=np.array([-1, 0, 1, -1, -1]), until=5.0)
    assert stopped.left_bytes.tolist() == [0.0, 5.0, 30.0, 15.0, 5.0]
    assert stopped.end_s.tolist() == [4.0, INF, INF, INF, INF]


def test_one_that_could_begin_sooner_waits_for_its_turn() -> None:
    # b may begin at 1 but follows a (20 at 10: done at 2), which it would otherwise share the link with.
    # Rows in any order: the first is the last of the chain.
    course = go(on((0,), (0,), (0,)), [10.0], [5.0, 10.0, 20.0], [0.0, 1.0, 0.0], after=np.array([1, 2, -1]))
    assert course.end_s.tolist() == pytest.approx([3.5, 3.0, 2.0], rel=1e-15)


def test_a_follower_shares_with_the_weight_and_limit_of_its_own() -> None:
    # Link of 12. a (12, weight 1) and x (48, weight 1): 6 each until 2. b (weight 2): 8 and x 4; b has 16: done at 4.
    # x: 12 + 8, 28 left. c (limit 2, size 4): done at 6, x at 10 meanwhile: 8 left; 12: 2/3 s.
    course = go(on((0,), (0,), (0,), (0,)), [12.0], [12.0, 16.0, 4.0, 48.0], [0.0] * 4,
                weight=np.array([1.0, 2.0, 1.0, 1.0]), limit=np.array([INF, INF, 2.0, INF]),
                after=np.array([-1, 0, 1, -1]))
    assert course.end_s.tolist() == pytest.approx([2.0, 4.0, 6.0, 6.0 + 2 / 3], rel=1e-15)
    assert course.bottleneck.tolist() == [0, 0, -1, 0]


def test_a_dead_link_stops_only_those_who_cross_it() -> None:
    # Link 1 is dead. a (link 0) and c (link 0, from 1) share 10: a has 10 left at 1, 5 each: both done at 3.
    # b crosses links 0 and 1, d only link 1: they never move; e follows d, f follows a (10 bytes on link 0, alone).
    paths = on((0,), (0, 1), (0,), (1,), (0,), (0,))
    size, start = [20.0, 20.0, 10.0, 7.0, 5.0, 10.0], [0.0, 0.0, 1.0, 0.5, 0.0, 0.0]
    after = np.array([-1, -1, -1, -1, 3, 0])
    course = go(paths, [10.0, 0.0], size, start, after=after)
    assert course.end_s.tolist() == [3.0, INF, 3.0, INF, INF, 4.0]
    assert course.left_bytes.tolist() == [0.0, 20.0, 0.0, 7.0, 5.0, 0.0]
    assert course.bottleneck.tolist() == [0, 1, 0, 1, -1, 0]
    stopped = go(paths, [10.0, 0.0], size, start, after=after, until=2.0)
    assert stopped.left_bytes.tolist() == [5.0, 20.0, 5.0, 7.0, 5.0, 10.0]
    rate, bottleneck = fluid.rates(paths, np.array([10.0, 0.0]))
    assert rate.tolist() == [2.5, 0.0, 2.5, 0.0, 2.5, 2.5] and bottleneck.tolist() == [0, 1, 0, 1, 0, 0]


def test_nothing_but_dead_links() -> None:
    course = go(on((0,), (0,)), [0.0], [1.0, 2.0], [0.0, 5.0])
    assert course.end_s.tolist() == [INF, INF] and course.left_bytes.tolist() == [1.0, 2.0]


def test_a_dead_link_that_a_flow_does_not_use() -> None:
    # Listed with usage 0; half of its rate on each of links 0 and 2: 8 in all, 16 bytes.
    paths = fluid.Paths(np.array([0, 3]), np.array([0, 1, 2]), np.array([0.5, 0.0, 0.5]))
    assert go(paths, [4.0, 0.0, 4.0], [16.0], [0.0]).end_s.tolist() == [2.0]


@pytest.mark.parametrize(("after", "message"), [
    ([1, 2, 0], "flow 0 comes after itself"), ([0, -1, -1], "flow 0 comes after itself"),
    ([-1, 2, 1], "flow 1 comes after itself"), ([-1, 0, 0], "flows 1 and 2 both come after flow 0"),
    ([-1, 3, -1], "flow 1 comes after flow 3; flows are 0 to 2"), ([-2, 0, -1], "flow 0 comes after flow -2"),
    ([-1, 0], "give a whole number for each of 3 flows"), ([-1.0, 0.0, 1.0], "give a whole number")])
def test_what_is_no_chain(after: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        go(on((0,), (0,), (0,)), [1.0], [1.0] * 3, [0.0] * 3, after=np.array(after))


def test_a_memo_keeps_what_was_asked_for_last() -> None:
    memo, paths = fluid.Memo(entries=2), on((0,), (0,))

    def ends(a: float, b: float, **options: Any) -> list[float]:
        return go(paths, [2.0], [a, b], [0.0, 0.0], memo=memo, **options).end_s.tolist()

    assert ends(1, 2) == [1.0, 1.5] and ends(1, 1) == [1.0, 1.0] and ends(10, 20) == [10.0, 15.0]
    assert (memo.hits, memo.misses, len(memo)) == (1, 2, 2)
    assert ends(1, 4) == [1.0, 2.5]                       # a third: what was asked for longest ago (1, 1) goes
    assert ends(3, 6) == [3.0, 4.5] and ends(5, 5) == [5.0, 5.0]
    assert (memo.hits, memo.misses, len(memo)) == (2, 4, 2)
    assert ends(5, 5, until=2.0) == [INF, INF] and memo.hits + memo.misses == 6  # runs that stop are not asked for
    small = fluid.Memo(flows=3)
    for size in ([1.0, 2.0], [1.0, 3.0]):
        go(paths, [2.0], size, [0.0, 0.0], memo=small)
    assert len(small) == 1
    with pytest.raises(ValueError, match="keeps nothing"):
        fluid.Memo(entries=0)


def test_a_memo_hands_out_what_may_be_written_to() -> None:
    memo, paths = fluid.Memo(), on((0,), (0,))
    for _ in range(3):
        course = go(paths, [2.0], [1.0, 2.0], [0.0, 0.0], memo=memo)
        assert course.end_s.tolist() == [1.0, 1.5] and course.bottleneck.tolist() == [0, 0]
        course.end_s[:], course.bottleneck[:], course.left_bytes[:] = 9, 9, 9
