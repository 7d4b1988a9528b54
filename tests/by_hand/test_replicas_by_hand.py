"""Replicas worked on paper: which one a token uses, what each objective is worth, and what the solver does with them.

Three layers, two experts, two devices. Expert 0 is on device 0 and expert 1 on device 1, but layer 1 has expert 0 on
both. Ten tokens. From layer 0 to 1, tokens of expert 0 (device 0): four to expert 0, which is there, two to expert 1,
which is not; of expert 1 (device 1): two to expert 0, whose replica is there, two to expert 1. So the replicas of
expert 0 get four and two of its six tokens. From layer 1 to 2 three of them go to expert 0 and three to expert 1: of
the four on device 0 two and two, of the two on device 1 one and one; two and one of these cross. The four tokens of
expert 1 stay where they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim import registry
from moesim.placement import CapacityError, Placement, Problem, Profile, evaluate, evaluate_layers, solve, stay_load
from moesim.placement.replicas import Replicas, replicate
from moesim.trace import RoutingTrace

FLOWS = np.array([[[4, 2], [2, 2]], [[3, 3], [0, 4]]])
COUNTS = np.array([[6, 4], [6, 4], [3, 7]])


@pytest.fixture
def placement() -> Placement:
    replicas = Placement.from_device_of([[0, 1]] * 3, 2).replicas.copy()
    replicas[1, 0, 1] = True
    return Placement(replicas)


@pytest.fixture
def profile() -> Profile:
    both = np.array([[0, 1]], dtype=np.int32), np.array([10.0])  # in every layer ten tokens chose both experts
    return Profile(COUNTS, 10, lambda top1: FLOWS, lambda layer: both)


def test_what_each_replica_gets(placement: Placement) -> None:
    replicas = Replicas.of(placement.replicas)
    assert replicas.expert.tolist() == [[0, 1, -1], [0, 0, 1], [0, 1, -1]]
    assert replicas.device.tolist() == [[0, 1, -1], [0, 1, 1], [0, 1, -1]]
    flows, share = replicas.flows(FLOWS, Problem(2, 2))
    assert flows[0].tolist() == [[4, 0, 2], [0, 2, 2], [0, 0, 0]]
    np.testing.assert_allclose(flows[1], [[2, 2, 0], [1, 1, 0], [0, 4, 0]], rtol=1e-12)
    np.testing.assert_allclose(share, [[1, 1, 0], [4 / 6, 2 / 6, 1], [1, 1, 0]], rtol=1e-12)


@pytest.mark.parametrize(("spec", "expected"), [
    ({"name": "transitions"}, (2 + 2 + 1) / 20),
    ({"name": "load"}, (6 / 5 + 7 / 5 + 7 / 5) / 3),                 # layer 1: three and three of six
    ({"name": "load", "stay": True}, (6 / 5 + 6 / 5 + 7 / 5) / 3),   # four and two
    ({"name": "fanout"}, (2 + 3 / 2 + 2) / 3),                       # half of the tokens find both on device 1
    ({"name": "link_bytes"}, (2 * 3 + 2 * 3 + 1 * 6) / 20),          # from 0 to 1 it is 3, back 6
    # To device 0 and back it is 3 + 6 from half of the devices, likewise 1: 9/4 for every token wherever it goes
    ({"name": "link_bytes", "mode": "dispatch_combine"}, 9 / 4),
    ({"name": "migration"}, 1 / 7)])                                 # from one of each
def test_every_objective(spec: dict[str, Any], expected: float, placement: Placement, profile: Profile) -> None:
    before = Placement.from_device_of([[0, 1]] * 3, 2)
    problem = Problem(2, 2, distances=np.array([[0, 3], [6, 0]]), previous=before)
    assert registry.make("objective", spec).value(placement, profile, problem) == pytest.approx(expected)


def test_tokens_without_a_replica_at_hand_take_turns() -> None:
    """Four devices; expert 0 of layer 1 is on 1, 2 and 3, expert 1 on 0. All six tokens come from device 0.

    Alone the devices take turns: 1, 2, 3, 1, 2, 3. In nodes of two, device 1 is of the tokens' node and gets them all.
    Layer 2 has both experts on device 2, so the tokens on 1 and 3 cross, or all six; node 1 is where it is.
    """
    trace = RoutingTrace.from_arrays(np.zeros((6, 3, 1), int), n_experts=2, top_k=1)
    replicas = Placement.from_device_of([[0, 0], [1, 0], [2, 2]], 4).replicas.copy()
    replicas[1, 0, 2:] = True
    placement = Placement(replicas)
    alone, nodes = evaluate_layers(placement, trace), evaluate_layers(placement, trace, 2)
    assert alone["cross_top1"].tolist()[:2] == [1, 4 / 6] and nodes["cross_top1"].tolist()[:2] == [1, 1]
    assert nodes["cross_node_top1"].tolist()[:2] == [0, 1]
    assert evaluate(placement, trace)["load_max_over_mean"] == pytest.approx((4 + 4 / 3 + 4) / 3)  # all evenly
    assert stay_load(placement, trace) == pytest.approx((4 + 4 / 3 + 4) / 3)
    assert stay_load(placement, trace, 2) == pytest.approx((4 + 4 + 4) / 3)


def test_before_the_first_layer_tokens_are_on_all_devices_in_turn() -> None:
    """Expert 0 is on devices 0 and 1: tokens 0, 1, 3 and 4 are there, 2 and 5 take turns. Expert 1 is on device 0."""
    trace = RoutingTrace.from_arrays(np.tile([[[0], [1]]], (6, 1, 1)), n_experts=2, top_k=1)
    placement = Placement(np.array([[[True, True, False], [False, False, True]],
                                    [[False, False, True], [True, False, False]]]))
    assert evaluate(placement, trace)["cross_top1"] == 3 / 6
    assert stay_load(placement, trace) == pytest.approx((3 / 2 + 3) / 2)


def test_who_gets_a_replica() -> None:
    """9 and 5: 9 is split in 4.5 and 4.5, then 5 in 2.5, then one half of 9; no item has more than most."""
    weights = np.array([9.0, 5.0])
    assert replicate(weights, 5)[0].tolist() == [0, 1, 0, 1, 0] and replicate(weights, 5)[1].max() == 3
    assert replicate(weights, 5, most=2)[0].tolist() == [0, 1, 0, 1]


def test_replicas_take_room() -> None:
    profile = Profile(np.array([[9, 1, 1, 1]]), 12, lambda top1: np.zeros((0, 4, 4), int))
    with pytest.raises(CapacityError, match="2 devices with room for 2 experts of a layer do not hold 4 experts and 1 "
                                            "redundant ones; they need room for 3, or use 0 redundant ones"):
        solve(profile, 2, redundant=1, capacity=2)
    assert solve(profile, 2, redundant=1, capacity=3).replicas[0, 0].tolist() == [True, True]


def test_the_solver_splits_what_is_too_much_for_a_device() -> None:
    """Twelve tokens: eight of expert 0, so one device has eight; with a replica both have six, which is proved best."""
    profile = Profile(np.array([[8, 2, 1, 1]]), 12, lambda top1: np.zeros((0, 4, 4), int))
    info = [solve(profile, 2, redundant=redundant, balance=1.0, capacity=3).info for redundant in (0, 1)]
    assert [i["objective"] for i in info] == [8 / 6, 1] and [i["gap"] for i in info] == pytest.approx([0, 0], abs=1e-5)
    assert "replica_rule" in info[1] and "replica_rule" not in info[0]


def test_the_solver_puts_replicas_where_tokens_come_from() -> None:
    """Two layers of two experts, each token equally often on any path. A replica of both saves the other half."""
    profile = Profile(np.full((2, 2), 10), 20, lambda top1: np.array([[[5, 5], [5, 5]]]))
    plain, more = (solve(profile, 2, redundant=redundant, balance=1.0) for redundant in (0, 2))
    assert plain.info["values"]["cross_top1"] == 1 / 2 and more.info["values"]["cross_top1"] == 0
    assert more.replicas[1].all() and more.info["values"]["stay_load_max_over_mean"] == 1
    assert more.info["bound"] == pytest.approx(1, abs=1e-5)
