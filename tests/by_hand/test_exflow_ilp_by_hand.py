"""Four experts, two layers, four devices in two nodes, thirty tokens: every stage worked on paper.

    from \\ to   0   1   2   3        nodes: {0, 1} of layer 0 with {2, 3} of layer 1, and the other two likewise:
    0            1   .   6   2               0 -> 0 and 3 -> 2 leave, 2 of 30; any other division loses more
    1            .   .   1   5        node 0: 0 with 2 and 1 with 3: 0 -> 3 and 1 -> 2 leave, 2 + 1
    2            7   .   .   .        node 1: 2 with 0 and 3 with 1: 3 -> 0 leaves, 3
    3            3   4   1   .        best row by row as well (6, 5, 7, 4 of 30 stay), so no placement is better
"""

from __future__ import annotations

import numpy as np
import pytest

from moesim.placement import PlacementError, Problem, Profile, solve
from moesim.placement.objective import transition_cost
from moesim.placement.solvers._program import Program
from moesim.placement.solvers._task import Task, assigned

FLOWS = np.array([[[1, 0, 6, 2], [0, 0, 1, 5], [7, 0, 0, 0], [3, 4, 1, 0]]])


@pytest.fixture
def profile() -> Profile:
    return Profile(np.stack([FLOWS[0].sum(axis=1), FLOWS[0].sum(axis=0)]), 30, lambda top1: FLOWS)


def stay_together(device_of: np.ndarray) -> bool:
    return bool((device_of[0] == device_of[1, [2, 3, 0, 1]]).all())


def test_experts_to_nodes_then_to_devices(profile: Profile) -> None:
    answer = solve(profile, 4, "exflow_ilp", by="nodes", devices_per_node=2)
    stages = [(s["name"], s["status"], round(30 * s["objective"], 9), round(30 * s["bound"], 9))
              for s in answer.info["stages"]]
    node = int(answer.device_of[0, 0] // 2)  # which of the two nodes has experts 0 and 1
    assert stages == [("nodes", "optimal", 2, 2)] + [
        (f"node {n}", "optimal", 3, 3) for n in range(2)] and node in (0, 1)
    assert stay_together(answer.device_of)
    assert answer.info["objective"] == pytest.approx((2 + (3 + 3) / 9) / 30)  # inside a node a ninth
    assert answer.info["objective"] == answer.info["stages_objective"]
    # The stages are proved, the whole is not: two of thirty leave the nodes, whatever happens inside.
    assert answer.info["status"] == "feasible" and 2 / 30 <= answer.info["bound"] < answer.info["objective"]


def test_experts_to_halves_of_the_devices(profile: Profile) -> None:
    answer = solve(profile, 4, "exflow_ilp", by="bisection")
    found = {s["name"]: round(30 * s["objective"], 9) for s in answer.info["stages"]}
    assert found == {"devices 0-3": 2, "devices 0-1": 3, "devices 2-3": 3}
    assert answer.info["objective"] == pytest.approx(8 / 30) and stay_together(answer.device_of)
    whole = solve(profile, 4, "exflow_ilp").info
    assert whole["status"] == "optimal" and whole["objective"] == whole["bound"] == pytest.approx(8 / 30)
    assert whole["stages"] == [{"name": "whole", "status": "optimal", "objective": whole["objective"],
                                "bound": whole["objective"]}]


def test_stages_that_divide_nothing_are_left_out(profile: Profile) -> None:
    one_node = solve(profile, 4, "exflow_ilp", by="nodes", devices_per_node=4)
    alone = solve(profile, 4, "exflow_ilp", by="nodes", devices_per_node=1)
    assert [s["name"] for s in one_node.info["stages"]] == ["node 0"]
    assert [s["name"] for s in alone.info["stages"]] == ["nodes"]
    for answer in (one_node, alone):  # then the only stage is the whole, and so is its proof
        assert answer.info["status"] == "optimal" and answer.info["objective"] == pytest.approx(8 / 30)
    for by in ("whole", "nodes", "bisection"):
        info = solve(profile, 1, "exflow_ilp", by=by, devices_per_node=1).info
        assert (info["status"], info["objective"], info["stages"]) == ("optimal", 0.0, [])


def test_what_cannot_be_staged_is_refused_with_a_remedy(profile: Profile) -> None:
    with pytest.raises(PlacementError, match="by nodes needs nodes; give devices_per_node, or use by = bisect"):
        solve(profile, 4, "exflow_ilp", by="nodes")
    with pytest.raises(PlacementError, match="halves the devices, but 3 is no power of two; use by = nodes or whole"):
        solve(profile, 3, "exflow_ilp", by="bisection")
    with pytest.raises(PlacementError, match=r"\(whole\) needs 36 constraints, 1 more than max_constraints = 35"):
        solve(profile, 4, "exflow_ilp", max_constraints=35)  # nine pairs, four devices
    with pytest.raises(PlacementError, match=r"program \(nodes\) needs 18 constraints"):
        solve(profile, 4, "exflow_ilp", by="nodes", devices_per_node=2, max_constraints=17)
    with pytest.raises(ValueError, match="by: Input should be 'whole', 'nodes' or 'bisection', got 'node'"):
        solve(profile, 4, "exflow_ilp", by="node")


def test_assignment_is_the_best_within_rooms() -> None:
    cost = np.array([[0.0, 5.0], [1.0, 3.0], [0.0, 1.0]])
    assert assigned(cost, np.array([3, 0])).tolist() == [0, 0, 0]
    assert assigned(cost, np.array([2, 2])).tolist() == [0, 0, 1]
    assert assigned(cost, np.array([1, 2])).tolist() == [0, 1, 1]


def test_the_program_starts_from_the_start_it_is_given() -> None:
    """Without time HiGHS reports a bad start's own cost; with a little it is far better, and never worse."""
    rng = np.random.default_rng(1)
    flows = (30 * rng.random((3, 12, 12)) ** 4).astype(np.int64)
    problem = Problem(n_experts=12, n_devices=4)
    start = np.stack([rng.permutation(np.arange(12) % 4) for _ in range(4)])
    task = Task(list(start), np.full((4, 4), 3), list(flows), problem.levels, alike=True)
    cost = transition_cost(flows, start, problem.distance) * flows.sum()
    assert task.cost(task.start) == pytest.approx(cost)
    program = Program(task, pairs=True)
    outcome = program.solve(seed=0, time_limit=0.0)
    assert np.array_equal(outcome.places, start) and not outcome.proved
    assert program.program.solverModel.getInfo().objective_function_value == pytest.approx(cost)


def test_small_programs_are_proved_and_large_ones_admit_their_limit() -> None:
    rng = np.random.default_rng(0)
    flows = (40 * rng.random((4, 12, 12)) ** 4).astype(np.int64)
    small = Profile(np.full((2, 6), 9), 54, lambda top1: flows[:1, :6, :6])
    info = solve(small, 3, "exflow_ilp").info
    assert info["status"] == "optimal" and info["gap"] == 0
    large = Profile(np.full((5, 12), 9), 108, lambda top1: flows)
    info = solve(large, 4, "exflow_ilp", time_limit="0.5 s").info
    assert info["status"] == "feasible" and info["gap"] > 0
    assert 0 < info["bound"] < info["objective"] <= info["warm_start_objective"]
