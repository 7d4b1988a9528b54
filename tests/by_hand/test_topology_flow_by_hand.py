"""Topology flow on paper: a line of three devices, two layers of three experts, hops there and back.

    device   0 - 1 - 2        hops from 0: 0 2 4      hops from 2: 4 2 0

    tokens per expert         layer 0: 9 1 5          layer 1: 2 7 3        27 in all
    host                      device 0                device 2

One expert of a layer per device: the busiest stays at home, the next goes 2 hops out and 2 back.
Half of both ways: (0*9 + 2*5 + 4*1 + 0*7 + 2*3 + 4*2) / 27 = 28 / 27.
"""

from __future__ import annotations

import numpy as np
import pytest

from moesim.placement import CapacityError, PlacementError, Profile, solve
from moesim.placement.solvers.topology_flow import TopologyFlow, Transport, transport

COUNTS = np.array([[9, 1, 5], [2, 7, 3]])
LINE = np.array([[0, 2, 4], [2, 0, 2], [4, 2, 0]])


def profile(counts: np.ndarray = COUNTS) -> Profile:
    layers, experts = counts.shape
    return Profile(counts, 27, lambda top1: np.zeros((layers - 1, experts, experts), dtype=np.int64))


def test_the_busiest_is_nearest() -> None:
    answer = solve(profile(), 3, "topology_flow", distances=LINE, hosts=(0, 2))
    assert answer.device_of.tolist() == [[0, 2, 1], [0, 2, 1]]
    info = answer.info
    assert info["objective"] == pytest.approx(28 / 27) and info["bound"] == info["objective"]
    assert (info["status"], info["gap"], info["fraction"]) == ("optimal", 0.0, 0.0)


def test_room_for_two_keeps_two_at_home() -> None:
    """9 and 5 stay at 0, 7 and 3 at 2; the last ones go one link: 2 * 1 + 2 * 2."""
    answer = solve(profile(), 3, "topology_flow", distances=LINE, hosts=(0, 2), capacity=2)
    assert answer.device_of.tolist() == [[0, 1, 0], [1, 2, 2]]
    assert answer.info["objective"] == pytest.approx(6 / 27)


def test_a_total_that_binds() -> None:
    """Both layers start at device 0, which takes two experts of a layer but three in all.

    Without the total 9, 5, 7, 3 stay. One must go 2 hops out: the 3, for 6, with 1 and 2 on device 1 already (2 * 3).
    """
    answer = solve(profile(), 3, "topology_flow", distances=LINE, hosts=(0,), capacity=2, total=3)
    assert answer.device_of.tolist() == [[0, 1, 0], [1, 0, 1]]
    assert answer.info["objective"] == pytest.approx(12 / 27)
    assert answer.info["programs"] >= 1 and answer.info["fraction"] <= 1e-9 and answer.info["status"] == "optimal"


def test_ways_of_hosts_and_collectors() -> None:
    """A lopsided line: 1 from low to high numbers, 3 back. Layer 0 leaves from 0 and returns to 2."""
    lopsided = np.where(np.arange(3)[:, None] < np.arange(3), 1.0, 3.0) * (1 - np.eye(3))
    problem = _problem(lopsided)
    assert TopologyFlow(hosts=(0,), collectors=(2,)).ways(problem, 1).tolist() == [[0.5, 1, 0.5]]
    assert TopologyFlow(hosts="round_robin").ways(problem, 2).tolist() == [[0, 2, 2], [2, 0, 2]]
    everywhere = [(6 + 2) / 6, (4 + 4) / 6, (2 + 6) / 6]  # mean of the way in, mean of the way out, half of both
    np.testing.assert_allclose(TopologyFlow().ways(problem, 1), [everywhere])


def _problem(distances: np.ndarray):  # type: ignore[no-untyped-def]
    from moesim.placement import Problem

    return Problem(3, 3, distances=distances)


def test_devices_equally_far_share_the_load() -> None:
    """Nothing to gain between two devices of a node: 6 + 1 against 4 + 3, not 6 + 4 against 3 + 1."""
    answer = solve(profile(np.array([[6, 4, 3, 1]])), 2, "topology_flow")
    assert answer.device_of.tolist() == [[0, 1, 1, 0]]


def test_no_time_gives_a_feasible_placement_and_says_so() -> None:
    task = Transport(COUNTS.astype(float), np.tile([0.0, 2.0, 4.0], (2, 1)), 2, 3)
    answer = transport(task, 0.0)
    assert answer.device_of.tolist() == [[0, 1, 2], [0, 1, 2]] and answer.bound == 0.0 and answer.programs == 0
    info = solve(profile(), 3, "topology_flow", distances=LINE, hosts=(0,), capacity=2, total=3, time_limit="0 s").info
    assert info["status"] == "feasible" and info["gap"] == 1.0


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"hosts": (3,)}, PlacementError, r"hosts is \[3\]; give one device, or one per layer \(2\), each in 0..2"),
    ({"hosts": (0, 1, 2)}, PlacementError, "give one device, or one per layer"),
    ({"collectors": (-1,)}, PlacementError, r"collectors is \[-1\]"),
    ({"total": 1}, CapacityError, "room for 1 experts of all layers do not hold 6; give total = 2 or more, or use 6"),
])
def test_bad_input(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve(profile(), 3, "topology_flow", **options)
