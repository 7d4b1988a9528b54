"""Integer programs: their value is the cost, their optimum that of brute force; what solvers make of them is honest.

``optimum`` is the twin: dynamic programming along the layers over every division of a layer, no program at all.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.placement import Problem, Profile, solve
from moesim.placement.costs import total
from moesim.placement.objective import transition_cost
from moesim.placement.solvers._chain import Chain
from moesim.placement.solvers._program import Program
from moesim.placement.solvers._task import Task, canonical, ranks
from moesim.placement.solvers.exflow_ilp import ExflowIlp, settled
from moesim.placement.solvers.joint import Joint
from moesim.placement.solvers.lns import Free, Lns, _Search

QUICK = settings(deadline=None, max_examples=25)
FEW = settings(deadline=None, max_examples=10)


def some_profile(rng: np.random.Generator, sizes: list[int], tokens: int = 200) -> Profile:
    """Return first choices that follow their last ones by liking; layers have *sizes* experts."""
    widest = max(sizes)
    counts, flows = np.zeros((len(sizes), widest), np.int64), np.zeros((len(sizes) - 1, widest, widest), np.int64)
    counts[0, :sizes[0]] = rng.multinomial(tokens, rng.dirichlet(np.full(sizes[0], 1.5)))
    for layer, (n, m) in enumerate(zip(sizes, sizes[1:], strict=False)):
        liking = rng.dirichlet(np.full(m, 0.4), size=n)
        flows[layer, :n, :m] = [rng.multinomial(t, p) for t, p in zip(counts[layer, :n], liking, strict=True)]
        counts[layer + 1] = flows[layer].sum(axis=0)
    return Profile(counts, tokens, lambda top1: flows, sizes=np.array(sizes))


def divisions(n_experts: int, n_devices: int, room: int) -> np.ndarray:
    """Return every way to put the experts of a layer on devices, [ways, N]."""
    rows = np.zeros((1, 0), np.int64)
    for _ in range(n_experts):
        rows = np.concatenate([np.c_[rows, np.full(len(rows), d)] for d in range(n_devices)])
        rows = rows[[np.bincount(row).max() <= room for row in rows]]
    return rows


def optimum(profile: Profile, problem: Problem, balance: float = 0.0) -> float:
    """Return the least transition cost + *balance* x mean load max/mean of all placements."""
    rooms = problem.rooms(profile.sizes)
    ways = [divisions(n, problem.n_devices, room) for n, room in zip(profile.sizes, rooms, strict=True)]
    on = [np.eye(problem.n_devices)[way] for way in ways]  # [ways, N, D]
    mean = profile.counts.sum(axis=1) / problem.n_devices
    load = [balance / profile.n_layers * np.einsum("e,sed->sd", counts[:n], one).max(axis=1) / m if balance else 0.0
            for counts, n, one, m in zip(profile.counts, profile.sizes, on, mean, strict=True)]
    best = np.zeros(len(on[0])) + load[0]
    for layer, flows in enumerate(profile.top1 / max(profile.top1.sum(), 1)):
        here, there = on[layer], on[layer + 1]
        to = np.einsum("sep,ef,pq->sfq", here, flows[:here.shape[1], :there.shape[1]], problem.distance)
        step = to.reshape(len(here), -1) @ there.reshape(len(there), -1).T
        best = (best[:, None] + step).min(axis=0) + load[layer + 1]
    return float(best.min())


@st.composite
def tasks(draw: st.DrawFn, alike: bool = False) -> Task:
    """Return tasks of every form: levels, tables, loads, empty layers, spare rooms."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    per_group, groups = draw(st.sampled_from([(2, 1), (3, 1), (1, 2), (2, 2)]))
    places, n_layers = per_group * groups, draw(st.integers(1, 3))
    sizes = [draw(st.integers(0 if places < 4 else 1, 3 if places < 4 else 2)) for _ in range(n_layers)]
    spare = 1 if alike else places
    rooms = np.array([-(-n // places) + rng.integers(0, 2, spare) * np.ones(places, int) for n in sizes])
    start = [rng.permutation(np.repeat(np.arange(places), room))[:n] for n, room in zip(sizes, rooms, strict=True)]
    flows = [rng.integers(0, 9, (n, m)) * (rng.random((n, m)) < 0.7) / draw(st.sampled_from([1, 7]))
             for n, m in zip(sizes, sizes[1:], strict=False)]
    levels = [(np.arange(places), 0.25 if groups > 1 else 1.0)]
    levels += [(np.arange(places) // per_group, 0.75)] if groups > 1 else []
    table = [rng.integers(0, 9, (n, places)) / 2 for n in sizes] if draw(st.booleans()) and not alike else None
    loads = [rng.integers(0, 9, n) / 2 for n in sizes] if draw(st.booleans()) else None
    floor = rng.integers(0, 9, n_layers) / 2 if loads and draw(st.booleans()) else None
    return Task(start, rooms, flows, levels, table, loads, floor, alike)


def least(task: Task) -> float:
    """Return the least cost of a task, by trying everything."""
    ways = [[np.array(way, dtype=np.int64) for way in product(range(task.rooms.shape[1]), repeat=len(at))
             if (np.bincount(np.array(way, dtype=np.int64), minlength=len(room)) <= room).all()]
            for at, room in zip(task.start, task.rooms, strict=True)]
    return min(task.cost(list(choice)) for choice in product(*ways))


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("alike", [True, False])
@QUICK
@given(data=st.data())
def test_both_forms_of_the_program_equal_brute_force(pairs: bool, alike: bool, data: st.DataObject) -> None:
    task = data.draw(tasks(alike))
    found = Program(task, pairs).solve(seed=0, time_limit=20.0)
    best = least(task)
    assert found.proved and found.bound <= best + 1e-6
    assert task.cost(found.places) == pytest.approx(best, abs=1e-5)
    for at, room in zip(found.places, task.rooms, strict=True):
        assert (np.bincount(at, minlength=len(room)) <= room).all()


@pytest.mark.parametrize("pairs", [True, False])
@QUICK
@given(data=st.data())
def test_a_program_starts_from_its_start(pairs: bool, data: st.DataObject) -> None:
    """HiGHS itself reports the start's cost when it may not look at a single node, nor presolve."""
    task = data.draw(tasks(data.draw(st.booleans())))
    program = Program(task, pairs)
    found = program.solve(seed=0, mip_max_nodes=0, time_limit=0.0)
    highs = program.program.solverModel
    if highs.modelStatusToString(highs.getModelStatus()) == "Time limit reached":
        assert highs.getInfo().objective_function_value * program.unit == pytest.approx(task.cost(task.start))
        assert not found.proved and all(np.array_equal(a, b) for a, b in zip(found.places, task.start, strict=True))
    assert task.cost(found.places) <= task.cost(task.start) + 1e-9


@QUICK
@given(st.integers(1, 3), st.sampled_from([None, 1, 2, 4]), st.integers(0, 2**32 - 1))
def test_canonical_names_keep_costs_and_break_the_symmetry(layers: int, per_node: int | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = Problem(n_experts=8, n_devices=4, devices_per_node=per_node)
    device_of = np.stack([rng.permutation(np.arange(8) % 4) for _ in range(layers + 1)])
    transitions = rng.integers(0, 30, (layers, 8, 8))
    renamed = canonical(device_of[0], problem.levels)[device_of]
    assert transition_cost(transitions, renamed, problem.distance) == pytest.approx(
        transition_cost(transitions, device_of, problem.distance))
    assert (ranks(problem.levels)[renamed[0]] <= np.arange(8)).all() and renamed[0, 0] == 0
    seen = list(dict.fromkeys(problem.node_of[renamed[0]].tolist()))
    assert seen == sorted(seen)


@QUICK
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_settling_never_costs_and_leaves_no_layer_to_improve(sizes: list[int], places: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rooms = np.array([[-(-n // places) + seed % 2] * places for n in sizes])
    start = [rng.permutation(np.repeat(np.arange(places), room))[:n] for n, room in zip(sizes, rooms, strict=True)]
    flows = [rng.integers(0, 9, (n, m)) for n, m in zip(sizes, sizes[1:], strict=False)]
    levels = [(np.arange(places), 0.25), (np.arange(places) // 2, 0.75)]
    task = Task(start, rooms, flows, levels)
    calm = settled(task).start
    assert task.cost(calm) <= task.cost(start)
    for layer, at in enumerate(calm):
        assert (np.bincount(at, minlength=places) <= rooms[layer]).all()
        for way in divisions(len(at), places, int(rooms[layer, 0])):
            assert task.cost(calm) <= task.cost([way if n == layer else other for n, other in enumerate(calm)])


@st.composite
def machines(draw: st.DrawFn) -> tuple[Profile, Problem]:
    """Return small problems whose optimum is known by trying: up to four devices, layers of different sizes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_devices, per_node = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (4, 1), (4, None)]))
    sizes = [draw(st.integers(1, 5 if n_devices < 4 else 4)) for _ in range(draw(st.integers(1, 3)))]
    room = draw(st.sampled_from([0, -(-max(sizes) // n_devices) + 1]))
    profile = some_profile(rng, sizes)
    return profile, Problem(profile.n_experts, n_devices, per_node, draw(st.sampled_from([1.0, 2.5, 9.0])), room)


@pytest.mark.parametrize("by", ["whole", "nodes", "bisection"])
@FEW
@given(data=st.data())
def test_stages_are_honest(by: str, data: st.DataObject) -> None:
    profile, problem = data.draw(machines())
    if by == "nodes" and problem.devices_per_node is None:
        problem = Problem(profile.n_experts, problem.n_devices, 1)
    answer = ExflowIlp(by=by).solve(profile, problem, seed=0)  # type: ignore[arg-type]
    info, best = answer.info, optimum(profile, problem)
    cost = transition_cost(profile.top1, answer.device_of, problem.distance)
    assert info["objective"] == pytest.approx(cost) and info["bound"] <= best + 1e-9 <= cost + 2e-9
    assert cost <= info["warm_start_objective"] + 1e-12 and cost <= info["stages_objective"] + 1e-12
    if info["status"] == "optimal" or by == "whole":
        assert info["status"] == "optimal" and cost == pytest.approx(best)
    assert (answer.counts() <= problem.rooms(profile.sizes)[:, None]).all()
    within = 1.0 if problem.n_nodes == 1 else 1 / problem.inter_node_weight  # a stage that divides a node

    def weight(stage: dict[str, Any]) -> float:
        if by == "bisection":
            first, last = (int(d) for d in stage["name"].removeprefix("devices ").split("-"))
            return 1.0 if problem.node_of[first] != problem.node_of[last] else within
        return within if stage["name"].startswith("node ") else 1.0

    parts = sum(weight(stage) * stage["objective"] for stage in info["stages"])
    assert info["stages_objective"] == pytest.approx(parts)  # what crosses, crosses in exactly one stage
    for stage in info["stages"]:
        assert stage["status"] == "optimal" and stage["bound"] == stage["objective"]


@FEW
@given(st.integers(0, 2**32 - 1), st.sampled_from([(6, 3, None), (7, 3, None), (8, 4, 2)]))
def test_ilp_sweep_linear_in_order_and_bound_below(seed: int, size: tuple[int, int, int | None]) -> None:
    n_experts, n_devices, per_node = size
    transitions = np.random.default_rng(seed).integers(0, 30, (1, n_experts, n_experts))
    profile = Profile(np.full((2, n_experts), 10), 40, lambda top1: transitions)
    problem = Problem(n_experts, n_devices, per_node)
    ilp, sweep, linear = (solve(profile, n_devices, solver, devices_per_node=per_node) for solver in
                          ({"name": "exflow_ilp", "time_limit": "0.1 s"}, "affinity_sweep", "linear"))
    cost = [transition_cost(transitions, answer.device_of, problem.distance) for answer in (ilp, sweep, linear)]
    assert ilp.info["bound"] <= cost[0] + 1e-9 and (np.diff(cost) >= -1e-9).all(), cost


@pytest.mark.parametrize("by", ["whole", "nodes", "bisection"])
def test_without_time_the_start_comes_back(by: str) -> None:
    profile = some_profile(np.random.default_rng(0), [12] * 4)
    options: dict[str, Any] = {"devices_per_node": 2, "seed": 3}
    info = solve(profile, 4, "exflow_ilp", by=by, time_limit="0 s", **options).info
    sweep = solve(profile, 4, "affinity_sweep", **options).info
    assert info["status"] == "feasible" and info["objective"] <= info["warm_start_objective"] == sweep["objective"]
    assert 0 < info["bound"] < info["objective"] and info["gap"] > 0
    for stage in info["stages"]:
        assert stage["status"] == "feasible" and stage["bound"] < stage["objective"]
    if by == "whole":
        assert info["stages"][0]["objective"] == info["stages_objective"] == pytest.approx(sweep["objective"])


def test_stages_that_end_worse_give_way_to_the_start() -> None:
    """The best halves of the devices are not always part of the best whole: here they cost a twentieth more."""
    rng = np.random.default_rng(0)
    flows = rng.multinomial(1000, rng.dirichlet(np.full(64, 0.3)), size=2).reshape(-1, 8, 8)
    profile = Profile(np.full((3, 8), 125), 1000, lambda top1: flows)
    answer = solve(profile, 4, "exflow_ilp", by="bisection")
    info = answer.info
    assert info["objective"] == pytest.approx(transition_cost(flows, answer.device_of, Problem(8, 4).distance))
    assert all(stage["status"] == "optimal" for stage in info["stages"])
    assert info["objective"] == info["warm_start_objective"] < 0.97 * info["stages_objective"]
    assert info["status"] == "feasible" and info["bound"] < info["objective"]
    assert info["objective"] == pytest.approx(optimum(profile, Problem(8, 4)))


@QUICK
@given(machines(), st.sampled_from([0.0, 0.3]), st.data())
def test_a_neighbourhood_costs_what_the_whole_costs(machine: tuple[Profile, Problem], balance: float,
                                                    data: st.DataObject) -> None:
    """Whatever the free experts do, the program's cost changes by what the placement's cost changes by."""
    profile, problem = machine
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    aim = Joint(balance=balance)
    chain = Chain(total(o.costs(profile, problem) for o in aim.minimised() if o.weight), profile, problem)
    search = _Search(aim, profile, problem, chain.random(rng))
    start = data.draw(st.integers(0, profile.n_layers - 1))
    layers = range(start, data.draw(st.integers(start + 1, profile.n_layers)))
    n_free = data.draw(st.integers(min(2, problem.n_devices), problem.n_devices))
    free = Free(layers, tuple(np.sort(rng.choice(problem.n_devices, n_free, replace=False)).tolist()))
    task, before = search.task(free), search.devices
    for _ in range(3):
        trial, places = before.copy(), []
        for layer, at, room in zip(layers, task.start, task.rooms, strict=True):
            places.append(rng.permutation(np.repeat(np.arange(len(room)), room))[:len(at)])
            trial[layer, np.isin(before[layer], free.devices)] = np.array(free.devices)[places[-1]]
        change = chain.all_terms(trial).sum() - chain.all_terms(before).sum()
        assert (task.cost(places) - task.cost(task.start)) / search.scale == pytest.approx(change, abs=1e-12)
        if task.alike:
            names = rng.permutation(problem.n_devices) if n_free == problem.n_devices else rng.permutation(2)
            if problem.n_nodes == 1 or n_free == 2:
                assert task.cost([names[at] for at in places]) == pytest.approx(task.cost(places))


@FEW
@given(machines(), st.sampled_from([0.0, 0.3]), st.sampled_from([0, 1]), st.sampled_from(["random", "linear"]))
def test_search_is_between_the_optimum_and_its_start(machine: tuple[Profile, Problem], balance: float, layers: int,
                                                     start: str) -> None:
    profile, problem = machine
    answer = Lns(balance=balance, layers=layers, start=start).solve(profile, problem, seed=0)
    info, best = answer.info, optimum(profile, problem, balance)
    assert info["bound"] <= best + 1e-9 <= info["objective"] + 2e-9 <= info["start_objective"] + 3e-9
    if info["status"] == "optimal":
        assert info["objective"] == pytest.approx(best)
    assert (answer.counts() <= problem.rooms(profile.sizes)[:, None]).all()
    assert info["programs_proved"] <= info["programs"] <= 40 and info["improvements"] <= info["programs"]


@FEW
@given(machines(), st.sampled_from([0.0, 0.3]))
def test_search_with_room_for_everything_is_exact(machine: tuple[Profile, Problem], balance: float) -> None:
    profile, problem = machine
    lns = Lns(balance=balance, layers=profile.n_layers, choices=1000, nodes=10_000, programs=1, start="random")
    info = lns.solve(profile, problem, seed=0).info
    assert info["status"] == "optimal" and info["objective"] == pytest.approx(optimum(profile, problem, balance))
