"""What holds for every transportation problem: whole vertices, brute force, the whole program, its bound."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from moesim.placement import Problem, Profile, solve
from moesim.placement.objectives.link_bytes import LinkBytes
from moesim.placement.solvers import topology_flow
from moesim.placement.solvers.topology_flow import Transport, transport

FEW = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)


def random_task(seed: int, layers: int, experts: int, devices: int) -> Transport:
    """Return a problem whose total mostly binds; few distinct values, so that ties are common."""
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(-(-experts // devices), experts + 1))
    total = int(rng.integers(-(-layers * experts // devices), layers * capacity + 1))
    return Transport(rng.integers(0, 9, (layers, experts)).astype(float),
                     rng.integers(0, 5, (layers, devices)).astype(float), capacity, total)


def fits(task: Transport, device_of: np.ndarray) -> bool:
    held = np.stack([np.bincount(layer, minlength=task.way.shape[1]) for layer in device_of])
    return bool(held.max() <= task.capacity and held.sum(axis=0).max() <= task.total)


def whole_program(task: Transport) -> tuple[float, np.ndarray]:
    """Return optimum and values of the linear program written out, by dual simplex: the twin."""
    (layers, experts), devices = task.counts.shape, task.way.shape[1]
    cost = (task.counts[:, :, None] * task.way[:, None]).ravel()
    one = np.eye(cost.size).reshape(cost.size, layers, experts, devices)
    limits = np.vstack([one.sum(axis=2).reshape(cost.size, -1).T, one.sum(axis=(1, 2)).T])
    room = np.append(np.full(layers * devices, task.capacity), np.full(devices, task.total))
    placed = one.sum(axis=3).reshape(cost.size, -1).T
    found = linprog(cost, limits, room, placed, np.ones(len(placed)), (0, None), "highs-ds")
    return found.fun, found.x


@FEW
@given(seeds)
def test_equals_brute_force(seed: int) -> None:
    task = random_task(seed, layers=2, experts=3, devices=3)
    best = min(task.cost(place) for choice in product(range(3), repeat=6)
               if fits(task, place := np.array(choice).reshape(2, 3)))
    answer = transport(task, 60.0)
    assert fits(task, answer.device_of) and answer.fraction <= 1e-9
    assert task.cost(answer.device_of) == pytest.approx(best, abs=1e-9)
    assert answer.bound == pytest.approx(best, abs=1e-6)


@FEW
@given(seeds, st.sampled_from([(1, 8, 4), (3, 10, 4), (5, 12, 6)]), st.sampled_from([2, 32]))
def test_equals_the_whole_program_whose_values_are_whole(seed: int, size: tuple[int, int, int], bins: int) -> None:
    """With two bins the first program is rough, so that columns have to be added."""
    task = random_task(seed, *size)
    optimum, values = whole_program(task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topology_flow, "BINS", bins)
        patch.setattr(topology_flow, "NEAR", 1)
        answer = transport(task, 60.0)
    assert np.abs(values - np.round(values)).max() <= 1e-9 and answer.fraction <= 1e-9
    assert fits(task, answer.device_of)
    assert task.cost(answer.device_of) == pytest.approx(optimum, abs=1e-6)
    assert answer.bound <= task.cost(answer.device_of) + 1e-6
    assert answer.bound == pytest.approx(optimum, abs=1e-5)


@FEW
@given(seeds)
def test_objective_is_that_of_link_bytes_and_nothing_is_nearer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, distances = rng.integers(0, 50, (3, 8)), rng.integers(0, 5, (4, 4)) * (1 - np.eye(4))
    profile = Profile(counts, 9, lambda top1: np.zeros((2, 8, 8), dtype=np.int64))
    problem, objective = Problem(8, 4, distances=distances), LinkBytes(mode="dispatch_combine")
    answer = solve(profile, 4, "topology_flow", distances=distances)
    assert answer.info["objective"] == pytest.approx(objective.value(answer, profile, problem))
    for other in ("linear", "lpt", "random"):
        value = objective.value(solve(profile, 4, other, distances=distances), profile, problem)
        assert answer.info["bound"] <= value + 1e-9


def test_more_room_never_costs_more() -> None:
    counts = np.random.default_rng(1).integers(0, 50, (4, 12))
    profile = Profile(counts, 9, lambda top1: np.zeros((3, 12, 12), dtype=np.int64))
    distances = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    costs = [solve(profile, 4, "topology_flow", distances=distances, hosts="round_robin", capacity=5, total=total)
             .info["objective"] for total in (12, 13, 15, 20)]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.slow
def test_deepseek_v3_on_32_servers_is_whole_and_quick() -> None:
    """58 x 256 x 32, random counts and ways, totals that bind (3 % of slack): seconds are given by the target."""
    rng = np.random.default_rng(0)
    task = Transport(rng.lognormal(5, 1, (58, 256)).round(), rng.random((58, 32)), 16, 480)
    start = time.perf_counter()
    answer = transport(task, 60.0)
    assert time.perf_counter() - start <= 20.0
    assert answer.programs > 1 and answer.fraction <= 1e-9 and fits(task, answer.device_of)
    assert task.cost(answer.device_of) == pytest.approx(answer.bound, rel=1e-9)
