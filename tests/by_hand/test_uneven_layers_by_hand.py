"""Layers with different numbers of experts: two, four and three of them, top-1, two devices; worked on paper.

    token   experts        sweep of a placement that keeps everything together
    0-2     0, 0, 0        layer 0: 0 | 1      layer 1: 0 1 | 2 3      layer 2: 0 1 | 2
    3-5     1, 3, 2
    6       0, 1, 1        nothing crosses; loads 4 | 3 in each layer: max/mean 4 / 3.5
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moesim
from moesim import registry
from moesim.placement import (
    CapacityError,
    Placement,
    PlacementError,
    Problem,
    Profile,
    evaluate,
    read_placement,
    solve,
    write_placement,
)
from moesim.placement.bounds import lower_bound
from moesim.placement.solvers._chain import Chain
from moesim.trace import RoutingTrace, TraceError, read_trace
from moesim.transforms.relabel_experts import RelabelExperts

SIZES = [2, 4, 3]
TOKENS = [[0, 0, 0]] * 3 + [[1, 3, 2]] * 3 + [[0, 1, 1]]
TOGETHER = [[0, 1, -1, -1], [0, 0, 1, 1], [0, 0, 1, -1]]


@pytest.fixture
def trace() -> RoutingTrace:
    return RoutingTrace.from_arrays(np.array(TOKENS)[:, :, None], 4, 1, request=np.arange(7), experts_per_layer=SIZES)


@pytest.fixture
def together() -> Placement:
    return Placement.from_device_of(TOGETHER, 2, SIZES)


def test_what_it_is_worth(trace: RoutingTrace, together: Placement) -> None:
    assert evaluate(together, trace).to_dict() == {"cross_top1": 0, "cross_all": 0, "fanout": 1,
                                                   "load_max_over_mean": pytest.approx(4 / 3.5)}
    assert together.device_of.tolist() == TOGETHER
    assert together.counts().tolist() == [[1, 1], [2, 2], [2, 1]]
    assert together.device_bytes([1.0, 10.0, 100.0]).tolist() == [1 + 20 + 200, 1 + 20 + 100]
    assert (evaluate(solve(trace, 2, "linear"), trace).round(9) == evaluate(together, trace).round(9)).all()


@pytest.mark.parametrize("solver", [s for s in registry.names("solver") if s != "topology_flow"])
def test_every_solver_places_them(solver: str, trace: RoutingTrace) -> None:
    answer = solve(trace, 2, solver)
    assert answer.sizes.tolist() == SIZES
    assert answer.counts().tolist() in ([[1, 1], [2, 2], [2, 1]], [[1, 1], [2, 2], [1, 2]])
    if solver in ("joint", "affinity_sweep", "exflow_ilp"):
        assert evaluate(answer, trace)["cross_top1"] == 0


def test_room_is_per_layer(trace: RoutingTrace) -> None:
    problem = Problem(4, 2)
    assert problem.rooms(trace.sizes).tolist() == [1, 2, 2]
    assert Problem(4, 2, capacity=3).rooms(trace.sizes).tolist() == [2, 3, 3]
    # One of each layer takes 111, two of each 222, three 2 + 30 + 300, four 2 + 40 + 300.
    for room, counts in ((223.0, 2), (331.9, 2), (332.0, 3), (1e9, 4)):
        assert solve(trace, 2, capacity_bytes=room, expert_bytes=[1.0, 10.0, 100.0]).info["capacity"] == counts
    with pytest.raises(CapacityError, match="one of every layer takes 111 B"):
        solve(trace, 2, capacity_bytes=110.0, expert_bytes=[1.0, 10.0, 100.0])


def test_redundant_experts_fill_the_devices_of_every_layer() -> None:
    tokens = np.array([[0, 0], [0, 0], [0, 1], [1, 2], [2, 3]])[:, :, None]  # two more copies of 0, or of 0 and of 1
    uneven = RoutingTrace.from_arrays(tokens, 4, 1, request=np.arange(5), experts_per_layer=[3, 4])
    answer = solve(uneven, 7, {"name": "eplb", "redundant": 0})
    assert answer.sizes.tolist() == [3, 4] and answer.replicas.sum(axis=(1, 2)).tolist() == [3, 4]
    with pytest.raises(PlacementError, match="3 experts and 2 redundant ones do not fill 2 devices"):
        solve(RoutingTrace.from_arrays(np.array(TOKENS)[:, :, None], 4, 1, request=np.arange(7),
                                       experts_per_layer=SIZES), 2, {"name": "eplb", "redundant": 2})


def test_files(tmp_path: Path, trace: RoutingTrace, together: Placement) -> None:
    write_placement(together, tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["devices"] == [[0, 1], [0, 0, 1, 1], [0, 0, 1]]
    assert json.loads((tmp_path / "p.json").read_text())["experts_per_layer"] == SIZES
    back = read_placement(tmp_path / "p.json")
    assert (back.replicas == together.replicas).all() and back.sizes.tolist() == SIZES
    trace.write(tmp_path / "t.parquet")
    assert read_trace(tmp_path / "t.parquet").sizes.tolist() == SIZES
    for name in ("sglang", "trtllm", "vllm", "eplb", "exflow"):
        layers = {"layers": (0, 1, 2)} if name in ("sglang", "trtllm") else {}
        part = registry.make("placement_format", {"name": name} | layers)
        with pytest.raises(PlacementError, match="layer 1: has 4 experts, layer 0 has 2"):
            part.write(together, tmp_path / f"p{part.suffixes[0]}")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["p.json", "t.parquet"]


def test_relabelling_keeps_to_the_experts_of_the_layer(trace: RoutingTrace) -> None:
    other = RelabelExperts().apply(trace, seed=1)
    assert (other.experts.max(axis=(0, 2)) < SIZES).all()
    assert [sorted(row[row > 0]) for row in other.counts()] == [sorted(row[row > 0]) for row in trace.counts()]


@pytest.mark.parametrize(("sizes", "message"), [
    ([2, 4], "one number above 0 for each of 3 layers"),
    ([2, 3, 3], "the largest n_experts = 4"),
    ([1, 4, 3], "token row 3, layer 0: expert 1, but experts_per_layer says that this layer has 1")])
def test_a_trace_checks_the_list(sizes: list[int], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        RoutingTrace.from_arrays(np.array(TOKENS)[:, :, None], 4, 1, request=0, experts_per_layer=sizes)


def test_a_placement_checks_its_sizes(trace: RoutingTrace, together: Placement) -> None:
    with pytest.raises(PlacementError, match="layer 0, expert 1: on device -1"):
        Placement.from_device_of([[0, -1]], 2)
    with pytest.raises(PlacementError, match="layer 0, expert 1: is on a device, but this layer has 1 experts"):
        Placement.from_device_of([[0, 0], [0, 1]], 2, [1, 2])
    with pytest.raises(PlacementError, match=r"sizes is \[1, 3\]"):
        Placement.from_device_of([[0, -1], [0, 1]], 2, [1, 3])
    with pytest.raises(PlacementError, match="has 3 layers of 4 experts but the trace has 3 layers of 2 to 4"):
        evaluate(Placement.from_device_of([[0, 0, 1, 1]] * 3, 2), trace)
    with pytest.raises(PlacementError, match="different numbers of experts, which topology_flow cannot place"):
        solve(trace, 2, "topology_flow")


@settings(max_examples=15)
@given(st.lists(st.integers(2, 4), min_size=2, max_size=2), st.sampled_from([0, 3]), st.sampled_from([0, 5]),
       st.integers(0, 2**32 - 1))
def test_no_placement_is_below_the_bound(sizes: list[int], capacity: int, rounds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = np.stack([rng.integers(0, size, 12) for size in sizes], axis=1)[:, :, None]
    profile = Profile.of(RoutingTrace.from_arrays(tokens, max(sizes), 1, experts_per_layer=sizes))
    problem = Problem(max(sizes), 2, capacity=capacity)
    rooms = problem.rooms(profile.sizes)
    ways = [[np.pad(way, (0, max(sizes) - size), constant_values=-1) for way in product((0, 1), repeat=size)
             if np.bincount(way, minlength=2).max() <= room] for size, room in zip(sizes, rooms, strict=True)]
    for spec in ("transitions", "load", "fanout"):
        costs = registry.make("objective", spec).costs(profile, problem)
        chain = Chain(costs, profile, problem)
        least = min(float(chain.all_terms(np.stack(choice)).sum()) for choice in product(*ways))
        assert lower_bound(costs, profile, problem, rounds) <= least + 1e-9
        quick = {"name": "joint", "objectives": [spec], "balance": 0, "perturbations": 60, "bound_rounds": 0}
        assert solve(profile, 2, quick, capacity=capacity).info["objective"] == pytest.approx(least)


def test_a_model_with_uneven_layers_runs(tmp_path: Path, repo: Path) -> None:
    rng = np.random.default_rng(0)
    sizes, request = [4, 6], np.repeat(np.arange(12), 24)
    tokens = np.stack([np.stack([rng.permutation(size)[:2] for size in sizes]) for _ in request])
    RoutingTrace.from_arrays(tokens, 6, 2, request=request, phase=np.tile(np.arange(24) >= 16, 12).astype(int),
                             model="tiny", experts_per_layer=sizes).write(tmp_path / "t.parquet")
    changes = ["model.moe.experts=[4, 6]", f"trace={{path: {tmp_path / 't.parquet'}}}", "placement={solver: joint}"]
    scenario = moesim.load(repo / "tests/data/tiny.yaml", changes)
    result = moesim.simulate(scenario)
    events = moesim.simulate(moesim.load(repo / "tests/data/tiny.yaml", [*changes, "detail=events"]))
    np.testing.assert_allclose(result.requests["finish_s"], events.requests["finish_s"], rtol=1e-9)
    experts = result.memory["expert_bytes"]
    assert experts.tolist() == [(4 + 6) / 2 * scenario.model.expert_bytes] * 2
    with pytest.raises(moesim.ConfigError, match=r"the trace has \[4, 6\] experts, model tiny has 4"):
        moesim.simulate(moesim.load(repo / "tests/data/tiny.yaml", changes[1:]))
