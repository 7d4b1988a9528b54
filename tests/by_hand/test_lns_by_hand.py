"""Four experts, four layers, two devices: two pairs of layers that hold together, and disagree.

From layer 0 to 1 and from 2 to 3 ten tokens go from every expert to the same one. From 1 to 2 one token each goes
0 -> 0, 1 -> 2, 2 -> 1, 3 -> 3. With experts 0, 1 | 2, 3 in all layers two of 84 cross. Changing one layer alone costs
twenty for two; both layers of a pair together (0, 2 | 1, 3) cost nothing, and then nothing crosses.
"""

from __future__ import annotations

import numpy as np
import pytest

from moesim.placement import PlacementError, Problem, Profile, solve
from moesim.placement.objectives.transitions import Transitions
from moesim.placement.solvers._chain import Chain, assign, swap

FLOWS = np.stack([10 * np.eye(4, dtype=np.int64), np.eye(4, dtype=np.int64)[[0, 2, 1, 3]],
                  10 * np.eye(4, dtype=np.int64)])


@pytest.fixture
def profile() -> Profile:
    return Profile(np.full((4, 4), 21), 84, lambda top1: FLOWS)


def test_two_layers_at_once_find_what_one_layer_cannot(profile: Profile) -> None:
    problem = Problem(4, 2)
    linear = np.tile([0, 0, 1, 1], (4, 1))
    chain = Chain(Transitions().costs(profile, problem), profile, problem)
    assert not any(improve(chain, linear, layer) for improve in (assign, swap) for layer in range(4))
    # Two layers of four experts on two devices are 8 choices; three windows, and the last two look at a solved one.
    info = solve(profile, 2, "lns", start="linear", balance=0.0, choices=8).info
    assert info["start_objective"] == pytest.approx(2 / 84) and info["objective"] == 0.0
    assert info["status"] == "optimal" and info["improvements"] == 1 and info["programs"] <= 6


def test_what_is_minimised_and_without_programs_the_start(profile: Profile) -> None:
    info = solve(profile, 2, "lns", start="linear", programs=0).info
    assert info["minimises"] == "cross_top1 + 0.3 x load_max_over_mean"
    assert info["values"] == {"cross_top1": pytest.approx(2 / 84), "load_max_over_mean": 1.0}
    assert info["objective"] == info["start_objective"] == pytest.approx(2 / 84 + 0.3)
    assert (info["programs"], info["improvements"], info["status"]) == (0, 0, "heuristic")


def test_load_counts_as_well() -> None:
    """Every expert is followed by itself, so what is kept over both layers crosses nothing; 6 + 5 | 3 + 2 is uneven
    (11 of a mean of 8), 6 + 2 | 5 + 3 is even."""
    profile = Profile(np.array([[6, 5, 3, 2]] * 2), 16, lambda top1: np.diag([6, 5, 3, 2])[None])
    answer = solve(profile, 2, "lns", start="linear")
    assert answer.info["start_objective"] == pytest.approx(0.3 * 11 / 8)
    assert answer.info["objective"] == pytest.approx(0.3) and answer.info["status"] == "optimal"
    assert answer.device_of[0, 0] == answer.device_of[0, 3] != answer.device_of[0, 1]


def test_a_start_with_replicas_is_refused() -> None:
    profile = Profile(np.array([[60, 2, 2, 2]]), 66, lambda top1: np.zeros((0, 4, 4), dtype=np.int64))
    with pytest.raises(PlacementError, match="its start has replicas; start from a solver without, such as joint"):
        solve(profile, 2, "lns", start={"name": "eplb", "redundant": 2})
