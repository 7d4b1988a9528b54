"""Sizes of today's models are ordinary: 58 layers of 256 experts on 64 devices, and more devices than experts."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from moesim.placement import Problem, Profile, solve
from moesim.placement.objective import transition_cost


def coupled(layers: int, experts: int, top_k: int, tokens: int) -> Profile:
    """Return the profile of first choices that follow their last ones by popularity and liking, as sums only."""
    rng = np.random.default_rng(0)
    liking = 2.4 * rng.normal(size=(layers - 1, experts, experts)) + 0.8 * rng.normal(size=(layers - 1, 1, experts))
    chance = np.exp(liking)
    chance /= chance.sum(axis=2, keepdims=True)
    counts, flows = [np.full(experts, tokens // experts)], []
    for step in chance:
        flows.append(np.stack([rng.multinomial(n, row) for n, row in zip(counts[-1], step, strict=True)]))
        counts.append(flows[-1].sum(axis=0))
    return Profile(top_k * np.stack(counts), tokens, lambda top1: np.stack(flows))


@pytest.mark.slow
def test_deepseek_v3_on_eight_nodes_is_ordinary() -> None:
    """A minute of two cores and 4 GB, from 200,000 tokens; twice that in case the machine has other things to do."""
    profile = coupled(layers=58, experts=256, top_k=8, tokens=200_000)
    answer = solve(profile, 64, devices_per_node=8)
    assert answer.info["seconds"] < 120 and (answer.counts() == 4).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6  # KiB
    assert 0 < answer.info["bound"] < answer.info["objective"] and 0 < answer.info["gap"] < 1
    usual = solve(profile, 64, "joint", restarts=1, perturbations=0, devices_per_node=8)
    assert answer.info["objective"] < usual.info["objective"]


@pytest.mark.parametrize("n_devices", [2, 8, 64, 512])
def test_two_to_five_hundred_devices(n_devices: int) -> None:
    profile = coupled(layers=4, experts=64, top_k=4, tokens=20_000)
    nodes = {"devices_per_node": 8} if n_devices >= 8 else {}
    answer = solve(profile, n_devices, perturbations=100, **nodes)
    random = solve(profile, n_devices, "random", **nodes)
    assert answer.counts().max() == -(-64 // n_devices) and answer.info["bound"] <= answer.info["objective"]
    distance = Problem(64, n_devices, 8 if nodes else None).distance
    assert answer.info["values"]["cross_top1"] < transition_cost(profile.top1, random.device_of, distance)


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "seed"), [(4, 0), (4, 1), (8, 0), (8, 1)])
def test_default_solver_is_never_worse_than_the_integer_program(layers: int, seed: int) -> None:
    """8 experts on 4 devices. With 4 layers the program proves its answer optimal, with 8 it stops at its limit."""
    rng = np.random.default_rng(seed)
    flows = rng.multinomial(1000, rng.dirichlet(np.full(64, 0.3)), size=layers - 1).reshape(-1, 8, 8)
    profile = Profile(np.full((layers, 8), 125), 1000, lambda top1: flows)
    joint, ilp = solve(profile, 4, balance=0.0).info, solve(profile, 4, "exflow_ilp", time_limit="20 s").info
    assert ilp["bound"] <= joint["objective"] <= ilp["objective"] + 1e-12
    assert joint["bound"] <= ilp["objective"] + 1e-12
