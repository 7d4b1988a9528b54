"""Placements, their files, their messages, and the contract that every solver keeps."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim import placement as placing
from moesim import registry
from moesim.placement import Placement, PlacementError, Problem, Profile, evaluate, solve
from moesim.placement.objective import chosen_together
from moesim.trace import RoutingTrace

SOLVERS = registry.names("solver")


def make_trace(layers: int = 3, experts: int = 8, top_k: int = 2, tokens: int = 200, seed: int = 0) -> RoutingTrace:
    """Return tokens whose choices depend on their choices one layer before."""
    rng = np.random.default_rng(seed)
    score = rng.gumbel(size=(tokens, layers, experts))
    liking = 2 * rng.normal(size=(layers, experts, experts))
    for layer in range(1, layers):
        score[:, layer] += liking[layer, score[:, layer - 1].argmax(axis=1)]
    chosen = np.argsort(-score, axis=2)[:, :, :top_k]
    return RoutingTrace.from_arrays(chosen, experts, top_k, request=np.arange(tokens) // 10)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("experts", "devices"), [(8, 4), (7, 3), (2, 4), (4, 1)])
def test_every_solver_covers_every_expert_once_within_capacity(name: str, experts: int, devices: int) -> None:
    trace = make_trace(layers=2, experts=experts, top_k=1)
    answer = solve(trace, devices, name)
    assert answer.replicas.shape == (2, experts, devices)
    assert (answer.replicas.sum(axis=2) == 1).all()
    assert answer.counts().max() <= Problem(experts, devices).rooms([experts])[0] == -(-experts // devices)


@cache
def answered(name: str) -> Placement:
    """Return the answer of the solver *name* to the usual trace, drawn with seed 3."""
    return solve(make_trace(), 4, name, seed=3)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_reports_what_it_did(name: str) -> None:
    info = answered(name).info
    assert info["solver"] == registry.dump(registry.make("solver", name)) and info["seed"] == 3
    assert info["profile_tokens"] == 200 and info["n_devices"] == 4 and info["seconds"] >= 0
    assert info["status"] in ("optimal", "feasible", "heuristic")
    assert (info["objective"] is None) == (info["minimises"] == "nothing")
    if "bound" in info:
        assert info["bound"] <= info["objective"] and 0 <= info["gap"] <= 1
    assert json.loads(json.dumps(info)) == info


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_gives_the_same_answer_for_the_same_seed(name: str) -> None:
    one, trace = answered(name), make_trace()
    np.random.seed(1)  # the global generator: nobody may use it
    untouched = np.random.random()
    np.random.seed(1)
    assert np.array_equal(one.replicas, solve(trace, 4, name, seed=3).replicas)
    assert np.random.random() == untouched


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_needs_one_layer_only(name: str) -> None:
    answer = solve(make_trace(layers=1), 4, name)
    assert answer.replicas.shape == (1, 8, 4)


def test_solvers_see_sums_only() -> None:
    """The profile is enough: a solver gets the same from it as from the trace, and never asks for tokens."""
    trace = make_trace()
    profile = Profile(trace.counts(), trace.n_tokens, trace.transitions)
    assert np.array_equal(solve(trace, 4).device_of, solve(profile, 4).device_of)


def test_transitions_are_counted_when_needed_only() -> None:
    asked: list[bool] = []

    def count(top1: bool) -> np.ndarray:
        asked.append(top1)
        return np.ones((1, 4, 4), dtype=np.int64)

    profile = Profile(np.ones((2, 4), dtype=np.int64), 4, count)
    solve(profile, 2, "lpt")
    assert asked == []
    for _ in range(2):
        solve(profile, 2, "affinity_sweep", perturbations=1)
    assert asked == [True]
    solve(profile, 2, "joint", pairs="all", perturbations=1)
    assert asked == [True, False]


def test_solver_can_be_a_name_a_mapping_or_a_part() -> None:
    trace = make_trace()
    part = registry.make("solver", {"name": "joint", "balance": 2.0})
    answers = [solve(trace, 4, part), solve(trace, 4, {"name": "joint", "balance": 2.0}),
               solve(trace, 4, "joint", balance=2.0), solve(trace, 4, {"name": "joint"}, balance=2.0)]
    assert all(np.array_equal(a.device_of, answers[0].device_of) for a in answers)
    assert all(a.info["solver"]["balance"] == 2.0 for a in answers)


@pytest.mark.parametrize(("solver", "devices", "options", "message"), [
    ("joint", 0, {}, "8 experts on 0 devices; both must be at least 1"),
    ("joint", 4, {"devices_per_node": 3}, "4 devices do not fill nodes of 3; devices_per_node must divide n_devices"),
    ("joint", 4, {"devices_per_node": 2, "inter_node_weight": 0.5}, "inter_node_weight is 0.5; between nodes"),
    ("joint", 4, {"balanse": 1}, "joint has no parameter 'balanse'; did you mean 'balance'?"),
    ("joint", 4, {"balance": -1}, "joint: balance: Input should be greater than or equal to 0"),
    ("linear", 4, {"balance": 1}, "linear has no parameter 'balance'; it takes none"),
    ("lptt", 4, {}, "unknown solver 'lptt'; did you mean 'lpt'?"),
    ({"name": "joint", "balance": 1}, 4, {"balance": 2}, "balance: given beside a solver that has its"),
    ("exflow_ilp", 4, {"time_limit": 60}, "exflow_ilp: time_limit: 60 has no unit; write a time, e.g. '2.5 us'"),
    ("exflow_ilp", 4, {"max_constraints": 10}, "more than max_constraints = 10; use affinity_sweep or joint"),
    ("joint", 4, {"capacity": 1}, "4 devices with room for 1 experts of a layer do not hold 8; they need "
                                  "room for 2, or use 8 devices"),
    ("joint", 4, {"capacity_bytes": 10}, "give capacity .experts of a layer per device., or capacity_bytes and expert"),
    ("joint", 4, {"capacity_bytes": 10, "expert_bytes": [1, 2]}, "expert_bytes must be above 0, one number or one per"),
    ("joint", 4, {"capacity_bytes": 10e9, "expert_bytes": 4e9}, "a device has 10 GB for experts, but one of every "
                                                                "layer takes 12 GB"),
    ("joint", 4, {"distances": np.ones((4, 4))}, "distances must be finite and not negative, and 0 from a device to"),
    ("joint", 4, {"distances": np.zeros((3, 4))}, "distances has shape .3, 4.; give one number per pair of devices"),
    ("joint", 4, {"objectives": ("link_bytes",)}, "link_bytes needs the distances between devices; give solve"),
    ("joint", 4, {"objectives": ("migration",)}, "migration needs the placement to migrate from; give solve"),
    ("joint", 4, {"objectives": ("migration",), "previous": Placement.from_device_of([[0, 1]], 4)},
     "previous has .1, 2, 4. layers, experts and devices, the problem has .3, 8, 4.; they must be equal"),
    ("joint", 4, {"objectives": ("fanuot",)}, "unknown objective 'fanuot'; did you mean 'fanout'"),
    ("joint", 4, {"objectives": ("fanout",), "pairs": "all"}, "pairs is given beside objectives, which do not read it"),
    ("eplb", 4, {"redundant": 3}, "8 experts and 3 redundant ones do not fill 4 devices evenly"),
    ("eplb", 4, {"groups": 3}, "8 experts do not divide into 3 groups"),
])
def test_wrong_problems_are_named(solver: object, devices: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", "[?]")):
        solve(make_trace(), devices, solver, **options)


def test_fanout_needs_to_know_what_is_chosen_together() -> None:
    trace = make_trace()
    profile = Profile(trace.counts(), trace.n_tokens, trace.transitions)
    with pytest.raises(PlacementError, match="this profile does not know which experts tokens chose together"):
        solve(profile, 4, "coactivation")


def test_sets_stand_for_the_tokens() -> None:
    """Few sets: all of them, tokens counted. Many: as many tokens as asked for, drawn evenly from the sorted sets."""
    trace = RoutingTrace.from_arrays(np.array([[[1, 0]], [[0, 1]], [[2, 3]], [[0, 1]], [[3, 1]]]), 4, 2)
    members, tokens = chosen_together(trace, 0)
    assert members.tolist() == [[0, 1], [1, 3], [2, 3]] and tokens.tolist() == [3, 1, 1]
    members, tokens = chosen_together(trace, 0, most=2)  # tokens 0 to 4 in order of sets: 1.25 and 3.75 are drawn
    assert members.tolist() == [[0, 1], [1, 3]] and tokens.tolist() == [1, 1]


def test_objectives_do_what_they_say() -> None:
    """Each objective, alone and heavy, is smaller than where it does not count."""
    trace = make_trace(layers=4, experts=12, top_k=3, tokens=500)
    previous, ring = solve(trace, 4, "random", seed=9), np.array([[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1],
                                                                              [1, 2, 1, 0]])
    profile, problem = Profile.of(trace), Problem(12, 4, 2, distances=ring, previous=previous)
    usual = solve(trace, 4)
    for spec in ({"name": "transitions", "pairs": "all"}, {"name": "fanout"}, {"name": "fanout", "per": "node"},
                 {"name": "link_bytes"}, {"name": "migration"}):
        part = registry.make("objective", spec)
        answer = solve(trace, 4, objectives=(spec,), balance=0.0, perturbations=100, devices_per_node=2, distances=ring,
                       previous=previous)
        values = [part.value(p, profile, problem) for p in (answer, usual)]
        assert values[0] < values[1], spec
        assert answer.info["values"][part.label] == pytest.approx(values[0])
    assert solve(trace, 4, objectives=("migration",), balance=0.0, previous=previous).info["objective"] == 0.0


def test_migration_trades_moves_for_crossing() -> None:
    trace = make_trace(layers=4, experts=12, top_k=1, tokens=500)
    previous = solve(trace, 4, "random", seed=9)
    rows = [solve(trace, 4, objectives=("transitions", {"name": "migration", "weight": weight}), previous=previous,
                  perturbations=200).info["values"] for weight in (0.01, 0.5, 5.0)]
    moved, crossing = ([row[name] for row in rows] for name in ("moved", "cross_top1"))
    assert moved == sorted(moved, reverse=True) and crossing == sorted(crossing)
    assert moved[0] > 0.5 and moved[2] < 0.1


def test_room_lets_counts_differ() -> None:
    """With room for all experts on one device nothing need cross; bytes are another way to say how much room."""
    trace = make_trace(layers=3, experts=8, top_k=1, tokens=500)
    free = solve(trace, 4, balance=0.0, capacity=8)
    assert free.info["objective"] == 0.0 and free.counts().max() == 8 and free.info["capacity"] == 8
    tight, same = (solve(trace, 4, balance=0.0, **room) for room in (
        {"capacity": 3}, {"capacity_bytes": 19.9, "expert_bytes": [1, 2, 3]}))
    assert tight.counts().max() == 3 and np.array_equal(tight.device_of, same.device_of)
    assert 0 < tight.info["objective"] < solve(trace, 4, balance=0.0).info["objective"]
    same.check_capacity([1, 2, 3], 19.9)


@pytest.mark.parametrize("solver", ["joint", "affinity_sweep", "coactivation"])
def test_far_more_devices_than_experts(solver: str) -> None:
    answer = solve(make_trace(layers=4, experts=16, top_k=2), 512, solver, perturbations=20)
    assert (answer.counts() <= 1).all() and answer.info["seconds"] < 20  # a machine that compiles first, and is busy


def test_placement_and_trace_must_fit() -> None:
    with pytest.raises(PlacementError, match="the placement has 1 layers of 4 experts but the trace has 3 layers of 8"):
        evaluate(Placement.from_device_of([[0, 0, 1, 1]], 2), make_trace())


@pytest.mark.parametrize(("replicas", "message"), [
    (np.ones((1, 2, 2)), "replicas is float64 of shape .1, 2, 2.; give a bool array"),
    (np.ones((1, 2), dtype=bool), "shape .1, 2.; give a bool array"),
    (np.array([[[True, False], [False, False]]]), "layer 0, expert 1: on no device .1 such experts."),
])
def test_a_placement_checks_itself(replicas: np.ndarray, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        Placement(replicas)


def test_device_numbers_are_checked() -> None:
    with pytest.raises(PlacementError, match="layer 1, expert 0: on device 2, but the devices are 0..1"):
        Placement.from_device_of([[0, 1], [2, 1]], 2)
    with pytest.raises(PlacementError, match="device_of is float64"):
        Placement.from_device_of([[0.0, 1.0]], 2)


def test_a_placement_cannot_be_changed() -> None:
    given = np.ones((1, 2, 2), dtype=bool)
    answer = Placement(given)
    given[:] = False
    assert answer.replicas.all()
    for array in (answer.replicas, answer.device_of):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 0


def test_migration_needs_equal_shapes() -> None:
    with pytest.raises(PlacementError, match="cannot migrate"):
        Placement.from_device_of([[0, 1]], 2).migration_bytes(Placement.from_device_of([[0, 1]], 3), 1)


def test_file_gives_back_the_placement(tmp_path: Path) -> None:
    replicas = np.random.default_rng(0).random((3, 5, 4)) < 0.4
    replicas[:, :, 0] |= ~replicas.any(axis=2)
    original = Placement(replicas, {"objective": np.float64(0.25), "loads": np.array([1, 2]), "seeds": (1, 2)})
    original.save(tmp_path / "p.json")
    back = Placement.load(tmp_path / "p.json")
    assert np.array_equal(back.replicas, replicas)
    assert back.info == original.info == {"objective": 0.25, "loads": [1, 2], "seeds": [1, 2]}
    assert [f.name for f in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize(("text", "message"), [
    ("{", "not JSON"),
    ("[]", "not a placement file: the key moesim_placement must be 1"),
    ('{"moesim_placement": 2}', "not a placement file"),
    ('{"moesim_placement": 1, "n_devices": 0, "devices": [[0]]}', "n_devices must be a number above 0"),
    ('{"moesim_placement": 1, "n_devices": 2, "devices": [[0], [0, 1]]}', "a list of layers, each a list"),
    ('{"moesim_placement": 1, "n_devices": 2, "devices": [[0, [1, 2]]]}', "layer 0, expert 1: device 2, but"),
    ('{"moesim_placement": 1, "n_devices": 2, "devices": [[0, "1"]]}', "layer 0, expert 1: device '1', but"),
    ('{"moesim_placement": 1, "n_devices": 2, "devices": [[0, []]]}', "layer 0, expert 1: on no device"),
])
def test_corrupt_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(text)
    with pytest.raises(PlacementError, match=message) as caught:
        Placement.load(file)
    assert str(caught.value).startswith(str(file))
    with pytest.raises(PlacementError, match="No such file"):
        Placement.load(tmp_path / "none.json")


def test_half_a_file_is_never_seen(tmp_path: Path) -> None:
    placement = Placement.from_device_of([[0, 1]], 2, note="first")
    placement.save(tmp_path / "p.json")
    broken = placement.with_info(note=object())
    with pytest.raises(TypeError):
        broken.save(tmp_path / "p.json")
    assert Placement.load(tmp_path / "p.json").info == {"note": "first"}


def test_distance_is_a_tree() -> None:
    problem = Problem(n_experts=8, n_devices=4, devices_per_node=2, inter_node_weight=4.0)
    assert problem.distance.tolist() == [[0, 0.25, 1, 1], [0.25, 0, 1, 1], [1, 1, 0, 0.25], [1, 1, 0.25, 0]]
    assert (Problem(n_experts=8, n_devices=3).distance == 1 - np.eye(3)).all()


def test_nodes_matter_to_affinity_solvers() -> None:
    trace = make_trace(layers=4, experts=8, top_k=1, tokens=2000)
    for name in ("affinity_sweep", "joint"):
        plain, aware = solve(trace, 4, name), solve(trace, 4, name, devices_per_node=2, inter_node_weight=20.0)
        crossing = [evaluate(answer, trace, 2)["cross_node_top1"] for answer in (plain, aware)]
        assert crossing[1] < crossing[0], name


def test_public_names() -> None:
    assert {"solve", "evaluate", "Placement"} <= set(placing.__all__)
