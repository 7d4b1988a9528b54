"""Two MoE layers, four experts, two devices, four tokens, top-2: every number of ``evaluate`` worked on paper.

    token   layer 0 -> devices     layer 1 -> devices     top-1 step   pairs that cross   (with the replica)
    0       0, 1 -> 0, 0           0, 2 -> 0, 0           0 -> 0       0 of 4             0
    1       0, 2 -> 0, 1           1, 0 -> 1, 0           0 -> 1       2 of 4             1
    2       3, 2 -> 1, 1           3, 0 -> 1, 0           1 -> 1       2 of 4             0
    3       1, 3 -> 0, 1           2, 3 -> 0, 1           0 -> 0       2 of 4             2

The replica is a second copy of expert 0 of layer 1 on device 1: token 2 comes from device 1 and uses it there,
so its second choice is on device 1 too; token 1 comes from device 0 and keeps using the first copy, but its
second choice of layer 0 is on device 1, and from there expert 0 is at hand.
"""

from __future__ import annotations

import numpy as np
import pytest

from moesim import registry
from moesim.placement import CapacityError, Placement, Problem, Profile, evaluate, evaluate_layers, solve
from moesim.placement.solvers.eplb import balance
from moesim.trace import RoutingTrace

TOKENS = [[[0, 1], [0, 2]],
          [[0, 2], [1, 0]],
          [[3, 2], [3, 0]],
          [[1, 3], [2, 3]]]
DEVICE_OF = [[0, 0, 1, 1],
             [0, 1, 0, 1]]


@pytest.fixture
def trace() -> RoutingTrace:
    return RoutingTrace.from_arrays(np.array(TOKENS), n_experts=4, top_k=2)


@pytest.fixture
def replicated() -> Placement:
    replicas = Placement.from_device_of(DEVICE_OF, 2).replicas.copy()
    replicas[1, 0, 1] = True
    return Placement(replicas)


def test_the_four_numbers(trace: RoutingTrace) -> None:
    values = evaluate(Placement.from_device_of(DEVICE_OF, 2), trace)
    assert values.to_dict() == {
        "cross_top1": 1 / 4,                     # token 1
        "cross_all": 6 / 16,                     # 0 + 2 + 2 + 2
        "fanout": (6 + 7) / 8,                   # layer 0: 1 2 1 2, layer 1: 1 2 2 2
        "load_max_over_mean": (1 + 5 / 4) / 2,   # layer 0: 4 and 4 uses, layer 1: 5 and 3
    }


def test_the_four_numbers_with_a_replica(trace: RoutingTrace, replicated: Placement) -> None:
    values = evaluate(replicated, trace)
    assert values.to_dict() == {
        "cross_top1": 1 / 4,
        "cross_all": 3 / 16,                      # 0 + 1 + 0 + 2
        "fanout": (6 + 6) / 8,                    # layer 1: 1 2 1 2
        "load_max_over_mean": (1 + 4.5 / 4) / 2,  # the 3 uses of expert 0 split evenly: 2 + 1.5 and 3 + 1.5
    }


def test_layer_by_layer(trace: RoutingTrace) -> None:
    table = evaluate_layers(Placement.from_device_of(DEVICE_OF, 2), trace)
    assert table["cross_top1"][0] == 1 / 4 and np.isnan(table["cross_top1"][1])
    assert table["fanout"].tolist() == [6 / 4, 7 / 4]
    assert table["load_max_over_mean"].tolist() == [1, 5 / 4]


def test_nodes_of_one_device_are_the_devices_and_one_node_holds_all(trace: RoutingTrace) -> None:
    placement = Placement.from_device_of(DEVICE_OF, 2)
    alone, together = evaluate(placement, trace, 1), evaluate(placement, trace, 2)
    assert (alone["cross_node_top1"], alone["node_fanout"]) == (1 / 4, 13 / 8)
    assert (together["cross_node_top1"], together["node_fanout"]) == (0, 1)


def test_two_nodes_of_two_devices() -> None:
    """Three tokens, top-1: stay; change the device inside node 0; change the node."""
    trace = RoutingTrace.from_arrays(np.array([[[0], [0]], [[0], [1]], [[1], [2]]]), n_experts=4, top_k=1)
    values = evaluate(Placement.from_device_of([[0, 1, 2, 3]] * 2, 4), trace, devices_per_node=2)
    assert values["cross_top1"] == 2 / 3 and values["cross_node_top1"] == 1 / 3
    weighted = solve(trace, 4, "linear", devices_per_node=2, inter_node_weight=4.0)
    assert weighted.device_of.tolist() == [[0, 1, 2, 3]] * 2


def test_one_layer_has_no_transitions() -> None:
    trace = RoutingTrace.from_arrays(np.array([[[0]], [[1]]]), n_experts=2, top_k=1)
    values = evaluate(Placement.from_device_of([[0, 1]], 2), trace)
    assert np.isnan(values["cross_top1"]) and np.isnan(values["cross_all"]) and values["fanout"] == 1


def test_sizes_and_migration(replicated: Placement) -> None:
    plain = Placement.from_device_of(DEVICE_OF, 2)
    assert replicated.counts().tolist() == [[2, 2], [2, 3]]
    assert replicated.device_of.tolist() == DEVICE_OF
    assert replicated.device_bytes(10).tolist() == [40, 50]
    assert replicated.device_bytes([10, 1]).tolist() == [22, 23]  # experts of layer 0 are ten times as large
    assert plain.migration_bytes(replicated, 10) == 10 and replicated.migration_bytes(plain, 10) == 0
    swapped = Placement.from_device_of([[1, 0, 0, 1], DEVICE_OF[1]], 2)  # experts 0 and 2 of layer 0 change places
    assert plain.migration_bytes(swapped, [10, 1]) == 20


def test_capacity_says_demand_bound_gap_and_what_would_help(replicated: Placement) -> None:
    replicated.check_capacity(10, [40, 50])
    with pytest.raises(CapacityError) as caught:
        replicated.check_capacity(10e9, 45e9)
    assert str(caught.value) == ("device 1: its 5 experts need 50 GB, it has 45 GB for them, 5 GB too little (1 of 2 "
                                 "devices are over); spread the experts evenly (they fit then), drop some of the 1 "
                                 "extra replicas, use a smaller dtype, or offload experts")
    with pytest.raises(CapacityError, match="use 5 devices of this kind or more, use a smaller dtype"):
        Placement.from_device_of(DEVICE_OF, 2).check_capacity(10e9, 16e9)  # 8 x 10 GB


def test_every_objective_of_the_example(trace: RoutingTrace) -> None:
    """Distances: one way 2, the other 4. First choices: 0 to 0 twice, 1 to 1 once, 0 to 1 once (token 1)."""
    before = Placement.from_device_of([[0, 1, 1, 1], DEVICE_OF[1]], 2)  # expert 1 of layer 0 was on device 1
    problem = Problem(4, 2, devices_per_node=2, distances=np.array([[0, 2], [4, 0]]), previous=before)
    values = {  # as above where ``evaluate`` has them too; one node: no transition between nodes
        ("transitions", "top1"): 1 / 4, ("transitions", "all"): 6 / 16,
        ("load", None): 9 / 8, ("fanout", "device"): 13 / 8, ("fanout", "node"): 1, ("migration", None): 1 / 8,
        ("link_bytes", "context_coherent"): 2 / 4,
        ("link_bytes", "dispatch_combine"): 3 / 2,  # (0 + 0 + 2 + 4) / 4 to both devices alike
    }
    key = {"transitions": "pairs", "fanout": "per", "link_bytes": "mode"}
    for (name, choice), expected in values.items():
        part = registry.make("objective", {"name": name} | ({key[name]: choice} if choice else {}))
        found = part.value(Placement.from_device_of(DEVICE_OF, 2), Profile.of(trace), problem)
        assert found == pytest.approx(expected), (name, choice)


def test_longest_processing_time_first() -> None:
    """9 -> device 0; 7 -> 1; 6 -> 1 (7 < 9), now full; 5, though 14 > 13, -> 0."""
    profile = Profile(np.array([[5, 9, 6, 7]]), 27, lambda top1: np.zeros((0, 4, 4), dtype=np.int64))
    answer = solve(profile, 2, "lpt")
    assert answer.device_of.tolist() == [[0, 0, 1, 1]]
    assert answer.info["objective"] == 14 / 13.5


# The example in the README of deepseek-ai/EPLB (MIT, d52c72d): 12 experts, 16 slots, 4 groups, 2 nodes, 8 devices
EPLB_TOKENS = [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
               [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
EPLB_SLOTS = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
              [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]


def test_eplb_equals_its_published_example() -> None:
    for tokens, slots in zip(EPLB_TOKENS, EPLB_SLOTS, strict=True):
        expert, device, place = balance(np.array(tokens), slots=16, groups=4, nodes=2, devices=8)
        assert expert[np.lexsort((place, device))].tolist() == slots
    profile = Profile(np.array(EPLB_TOKENS), 100, lambda top1: np.zeros((1, 12, 12), dtype=np.int64))
    answer = solve(profile, 8, {"name": "eplb", "redundant": 4, "groups": 4}, devices_per_node=4)
    for layer, slots in enumerate(EPLB_SLOTS):
        held = {(expert, slot // 2) for slot, expert in enumerate(slots)}
        assert {tuple(pair) for pair in np.argwhere(answer.replicas[layer]).tolist()} == held
