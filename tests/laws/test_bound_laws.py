"""Lower bounds are below everything: every division, by brute force and by chance, for any multipliers."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import registry
from moesim.placement import Problem, Profile, solve
from moesim.placement.bounds import _Relaxation, kept_at_most, lower_bound
from moesim.placement.costs import Costs
from moesim.placement.objective import Sets
from moesim.placement.solvers._chain import Chain

QUICK = settings(deadline=None, max_examples=40)
FEW = settings(deadline=None, max_examples=12)


def some_profile(rng: np.random.Generator, n_layers: int, n_experts: int, top_k: int) -> Profile:
    """Return skewed transitions, and sets of experts that do not belong to them."""
    flows = (40 * rng.random((n_layers - 1, n_experts, n_experts)) ** 4).astype(np.int64) + 1

    def sets(layer: int) -> Sets:
        own = np.random.default_rng(layer)
        chosen = np.stack([np.sort(own.permutation(n_experts)[:top_k]) for _ in range(6)])
        members, tokens = np.unique(chosen, axis=0, return_counts=True)
        return members.astype(np.int32), tokens.astype(float)

    return Profile(rng.integers(1, 40, (n_layers, n_experts)), 40, lambda top1: flows, sets)


def divisions(n_experts: int, n_devices: int, capacity: int) -> list[tuple[int, ...]]:
    """Return every way to put the experts of a layer on devices with room for *capacity*."""
    ways = product(range(n_devices), repeat=n_experts)
    return [way for way in ways if np.bincount(way, minlength=n_devices).max() <= capacity]


def least(costs: Costs, profile: Profile, problem: Problem) -> float:
    """Return the least cost of all placements, by trying them."""
    chain = Chain(costs, profile, problem)
    ways = divisions(profile.n_experts, problem.n_devices, int(problem.rooms(profile.sizes)[0]))
    return min(float(chain.all_terms(np.array(choice)).sum()) for choice in product(ways, repeat=profile.n_layers))


OBJECTIVES = [{"name": "transitions"}, {"name": "fanout"}, {"name": "fanout", "per": "node"}, {"name": "load"},
              {"name": "link_bytes"}, {"name": "link_bytes", "mode": "dispatch_combine"}, {"name": "migration"}]


@pytest.mark.parametrize("spec", OBJECTIVES, ids=lambda spec: "-".join(spec.values()))
@FEW
@given(st.sampled_from([(4, 2, 0, None), (4, 2, 3, None), (3, 2, 0, None), (4, 4, 0, 2), (3, 4, 1, 2)]),
       st.sampled_from([0, 1, 10]), st.integers(0, 2**32 - 1))
def test_no_placement_is_below_the_bound(spec: dict[str, Any], size: tuple[int, int, int, int | None], rounds: int,
                                         seed: int) -> None:
    n_experts, n_devices, capacity, per_node = size
    rng = np.random.default_rng(seed)
    profile = some_profile(rng, 2, n_experts, top_k=2)
    previous = solve(profile, n_devices, "random", seed=seed)
    problem = Problem(n_experts, n_devices, per_node, 3.0, capacity, previous=previous,
                      distances=rng.random((n_devices, n_devices)) * (1 - np.eye(n_devices)))
    costs = registry.make("objective", spec).costs(profile, problem)
    bound = lower_bound(costs, profile, problem, rounds)
    assert 0 <= bound <= least(costs, profile, problem) + 1e-9


@QUICK
@given(st.integers(1, 2), st.integers(2, 4), st.integers(1, 4), st.integers(0, 1), st.integers(0, 2**32 - 1))
def test_any_multipliers_prove_a_bound(layers: int, n_groups: int, size: int, spare: int, seed: int) -> None:
    """Also senseless ones: whatever a random division keeps is at most what they prove."""
    rng = np.random.default_rng(seed)
    n_experts = n_groups * size - min(spare, n_groups * size - 1)
    weights = rng.random((n_experts, n_experts)) ** 3
    if layers == 1:
        weights = (weights + weights.T) * (1 - np.eye(n_experts))
    groups = [rng.permutation(np.repeat(np.arange(n_groups), size))[:n_experts] for _ in range(layers)]
    kept = float((weights * (groups[0][:, None] == groups[-1])).sum()) * layers / 2
    relaxation = _Relaxation(weights, n_groups, size, layers)
    noise = rng.normal(size=relaxation.weights.shape) * rng.choice([0.01, 1.0])
    for multipliers in (relaxation.weights, np.zeros_like(noise), noise + noise.T, relaxation.multipliers(3)):
        assert kept <= relaxation.bound(multipliers) + 1e-9
    for rounds in (0, 2, 20):
        assert kept <= kept_at_most(weights, n_groups, size, rounds, layers) + 1e-9


def test_bounds_by_hand() -> None:
    """A ring of eight steps: cut in two it loses two of them; with an expert per device, half. And two loads."""
    problem = Problem(n_experts=4, n_devices=2)
    ring = np.array([[[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]]])
    profile = Profile(np.ones((2, 4), dtype=np.int64), 8, lambda top1: ring)
    costs = registry.make("objective", "transitions").costs(profile, problem)
    assert lower_bound(costs, profile, problem, rounds=0) == 0.0  # a device has room for both followers of an expert
    assert least(costs, profile, problem) == 0.25
    # Eigenvalues of the ring: 2 (constant), and 1 +- i of length sqrt(2): kept are at most (1 + sqrt(2) / 2) / 2.
    assert lower_bound(costs, profile, problem, rounds=10) == pytest.approx(0.5 - np.sqrt(2) / 4, abs=1e-5)
    alone = Problem(n_experts=4, n_devices=4)
    costs = registry.make("objective", "transitions").costs(profile, alone)
    assert lower_bound(costs, profile, alone, rounds=0) == pytest.approx(0.5, abs=1e-5)
    load = registry.make("objective", "load")
    heavy = Profile(np.array([[7, 1, 1, 1], [2, 3, 2, 3]]), 10, lambda top1: ring)
    assert lower_bound(load.costs(heavy, problem), heavy, problem) == pytest.approx((7 / 5 + 1) / 2, abs=1e-5)


def test_fanout_bound_by_hand() -> None:
    """Three experts chosen as every pair: on two devices one pair of three can be together: (1 + 2 + 2) / 3."""
    members = np.array(list(combinations(range(3), 2)), dtype=np.int32)
    profile = Profile(np.full((1, 3), 2), 3, lambda top1: np.zeros((0, 3, 3), dtype=np.int64),
                      lambda layer: (members, np.ones(3)))
    problem = Problem(n_experts=3, n_devices=2)
    costs = registry.make("objective", "fanout").costs(profile, problem)
    assert least(costs, profile, problem) == pytest.approx(5 / 3)
    assert 1.5 - 1e-5 <= lower_bound(costs, profile, problem, rounds=0) <= 5 / 3  # rows: half a pair per expert
    assert solve(profile, 2, "coactivation", balance=0.0).info["objective"] == pytest.approx(5 / 3)


def test_rounds_tighten_the_bound() -> None:
    profile = some_profile(np.random.default_rng(0), 3, 32, top_k=4)
    answer = [solve(profile, 4, balance=0.0, bound_rounds=rounds).info for rounds in (0, 10, 40)]
    bounds = [info["bound"] for info in answer]
    assert 0 < bounds[0] < bounds[1] < bounds[2] < answer[0]["objective"]
    assert answer[2]["gap"] == pytest.approx(1 - bounds[2] / answer[2]["objective"])
