"""MoETuner on small sizes: clusters on paper, labels against every permutation, honest at no time."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from moesim.placement import PlacementError, Profile, solve
from moesim.placement.solvers.moetuner import _cluster, _label, worst_links


def test_clusters_are_as_even_as_can_be() -> None:
    """7 + 2 + 2 against 4 + 4 + 3: 11 and 11; heaviest first with three places each gives 7 + 3 + 2 and 4 + 4 + 2."""
    stage = _cluster(np.array([7, 4, 4, 3, 2, 2]), 2, 3, 10.0)
    assert stage.proved and stage.objective == 0.0
    assert (stage.devices == stage.devices[0]).tolist() == [True, False, False, False, True, True]


@pytest.mark.parametrize("seed", range(4))
def test_labels_equal_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    traffic, distances = rng.integers(0, 9, (2, 3, 3)) / 8, rng.integers(1, 4, (3, 3)) * (1.0 - np.eye(3))
    orders = [np.array(order) for order in permutations(range(3))]
    best = min(worst_links(traffic, distances, np.stack(choice)) for choice in product(orders, repeat=3))
    stage = _label(traffic, distances, 20.0)
    assert stage.proved and stage.objective == pytest.approx(best) and stage.bound == pytest.approx(best)
    assert all(sorted(layer) == [0, 1, 2] for layer in stage.devices.tolist())


def test_objective_is_the_worst_link_of_the_placement_and_no_time_is_said() -> None:
    rng = np.random.default_rng(0)
    transitions = rng.integers(0, 30, (2, 8, 8))
    counts = np.stack([*transitions.sum(axis=2), transitions[-1].sum(axis=0)])
    profile = Profile(counts, 100, lambda top1: transitions)
    for limit, stages in (("20 s", {"balance": "optimal", "links": "optimal"}), ("0 s", None)):
        answer = solve(profile, 2, "moetuner", time_limit=limit)
        one = np.eye(2)[answer.device_of]
        traffic = np.einsum("lic,lij,ljd->lcd", one[:-1], transitions, one[1:]) / transitions.sum()
        worst = worst_links(traffic, 1 - np.eye(2), np.tile([0, 1], (3, 1)))
        assert answer.info["objective"] == pytest.approx(worst) and answer.counts().max() == 4
        assert answer.info["links_bound"] <= answer.info["objective"] and "bound" not in answer.info
        assert stages is None or answer.info["stages"] == stages


def test_too_large_is_refused_with_a_remedy() -> None:
    profile = Profile(np.full((3, 32), 2), 64, lambda top1: np.ones((2, 32, 32), dtype=np.int64))
    with pytest.raises(PlacementError, match="needs 131072 variables, 81072 more .* use joint, fewer devices"):
        solve(profile, 16, "moetuner")
