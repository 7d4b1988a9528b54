"""Placement files against what the engines document, character by character, on one placement small enough to draw.

Four experts, two MoE layers, three devices with two slots each (as in the example of vLLM's eplb_state.py):

    layer 0   device 0: 0 1   device 1: 2 3   device 2: 0 1
    layer 1   device 0: 0 2   device 1: 0 1   device 2: 0 3
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moesim.placement import Placement, PlacementError, read_placement, write_placement

DEVICES_OF = [[[0, 2], [0, 2], [1], [1]], [[0, 1, 2], [1], [0], [2]]]  # by layer and expert
SLOTS = [[0, 1, 2, 3, 0, 1], [0, 2, 0, 1, 0, 3]]
INFO = {"moe_layer_indices": [1, 3]}  # of a model whose layers 0 and 2 are dense


def placement(devices_of: list = DEVICES_OF, n_devices: int = 3, **info: object) -> Placement:
    replicas = [[np.isin(np.arange(n_devices), devices) for devices in layer] for layer in devices_of]
    return Placement(np.array(replicas), info or INFO)


def test_sglang_has_one_key_and_a_row_for_every_layer_of_the_model(tmp_path: Path) -> None:
    # expert_location.py: json.loads(...)["physical_to_logical_map"], and every key is an argument of init_by_mapping;
    # num_layers is num_hidden_layers, so dense layers have rows, here those of init_trivial: arange(slots) % experts.
    path = tmp_path / "p.json"
    write_placement(placement(), path, {"name": "sglang", "hidden_layers": 5})
    trivial = [0, 1, 2, 3, 0, 1]
    assert json.loads(path.read_text()) == {"physical_to_logical_map": [trivial, SLOTS[0], trivial, SLOTS[1], trivial]}
    again = read_placement(path, 3, {"name": "sglang", "layers": [1, 3]})
    assert np.array_equal(again.replicas, placement().replicas) and again.info == INFO
    assert read_placement(path, 3).n_layers == 5, "the file does not say which layers are dense"
    write_placement(placement(), path, "sglang")
    assert len(json.loads(path.read_text())["physical_to_logical_map"]) == 4, "up to the last layer with experts"


def test_trtllm_is_what_its_readme_shows(tmp_path: Path) -> None:
    # examples/ep_load_balancer/README.md: keys are layer numbers of the model, slots rank by rank, updates 0 is offline
    path = tmp_path / "p.yaml"
    write_placement(placement(), path)
    assert path.read_text() == """\
initial_global_assignments:
  1: [0, 1, 2, 3, 0, 1]
  3: [0, 2, 0, 1, 0, 3]
layer_updates_per_iter: 0
num_slots: 6
"""
    again = read_placement(path, 3)
    assert np.array_equal(again.replicas, placement().replicas) and again.info == INFO
    write_placement(placement(), path, {"name": "trtllm", "layers": [0, 1], "layer_updates_per_iter": 2})
    assert "  0: [0, 1, 2, 3, 0, 1]\n  1: " in path.read_text() and "per_iter: 2\n" in path.read_text()


def test_trtllm_reads_the_readmes_own_spelling(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("initial_global_assignments:\n  4: [1, 0]\n  3: [0,\n     1]\n"
                                     "num_slots: 2\nlayer_updates_per_iter: 0\n")
    read = read_placement(tmp_path / "p.yaml", 2)
    assert read.device_of.tolist() == [[0, 1], [1, 0]] and read.info == {"moe_layer_indices": [3, 4]}


def test_vllm_is_its_physical_to_logical_map(tmp_path: Path) -> None:
    for name in ("p.json", "p.npy"):  # pull request 49572; EplbState.physical_to_logical_map
        write_placement(placement(), tmp_path / name, "vllm")
        assert np.array_equal(read_placement(tmp_path / name, 3).replicas, placement().replicas)
    assert json.loads((tmp_path / "p.json").read_text()) == SLOTS
    array = np.load(tmp_path / "p.npy")
    assert array.dtype == np.int64 and array.tolist() == SLOTS


def test_eplb_has_the_three_tensors_of_rebalance_experts(tmp_path: Path) -> None:
    write_placement(placement(), tmp_path / "p.npz")
    held = dict(np.load(tmp_path / "p.npz"))
    assert {name: array.tolist() for name, array in held.items()} == {
        "phy2log": SLOTS,
        "log2phy": [[[0, 4, -1], [1, 5, -1], [2, -1, -1], [3, -1, -1]],
                    [[0, 2, 4], [3, -1, -1], [1, -1, -1], [5, -1, -1]]],
        "logcnt": [[2, 2, 1, 1], [3, 1, 1, 1]]}
    assert all(array.dtype == np.int64 for array in held.values())
    assert np.array_equal(read_placement(tmp_path / "p.npz", 3).replicas, placement().replicas)
    held["log2phy"][0, 0] = [4, 0, -1]  # EPLB lists copies in the order in which it made them
    np.savez(tmp_path / "p.npz", **held)
    assert np.array_equal(read_placement(tmp_path / "p.npz", 3).replicas, placement().replicas)


def test_eplb_reads_the_published_example(tmp_path: Path) -> None:
    # README of deepseek-ai/EPLB: 12 experts, 16 replicas, 8 GPUs; its phy2log as torch.save would keep it in an npz
    slots = np.array([[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
                      [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]])
    counts = np.array([np.bincount(row) for row in slots])
    places = np.array([[(np.flatnonzero(row == e).tolist() + [-1])[:2] for e in range(12)] for row in slots])
    np.savez(tmp_path / "p.npz", phy2log=slots, log2phy=places, logcnt=counts)
    read = read_placement(tmp_path / "p.npz", 8)
    assert np.flatnonzero(read.replicas[0, 5]).tolist() == [0, 1]
    assert np.flatnonzero(read.replicas[1, 3]).tolist() == [7]
    write_placement(read, tmp_path / "again.npz")
    assert np.array_equal(read_placement(tmp_path / "again.npz", 8).replicas, read.replicas)


def test_exflow_is_what_its_script_writes(tmp_path: Path) -> None:
    # solve_affinity.py: csv.writer, header Expert,Node; solutions/*.csv: layer * num_expert_per_layer + expert
    single = placement([[[1], [0], [2]], [[2], [2], [0]]])
    write_placement(single, tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_bytes() == b"Expert,Node\r\n0,1\r\n1,0\r\n2,2\r\n3,2\r\n4,2\r\n5,0\r\n"
    assert np.array_equal(read_placement(tmp_path / "p.csv", n_experts=3).replicas, single.replicas)
    (tmp_path / "p.csv").write_text("Expert,Node\n1,0\n0,1\n")  # with bisection the rows come out of order
    assert read_placement(tmp_path / "p.csv", n_experts=2).device_of.tolist() == [[1, 0]]
    assert read_placement(tmp_path / "p.csv", 4, n_experts=2).n_devices == 4, "a device may be empty"


def test_empty_slots_take_copies_of_experts_that_are_nowhere_else(tmp_path: Path) -> None:
    uneven = placement([[[0], [0, 1], [0], [1]]], 2, moe_layer_indices=[0])  # device 0: 0 1 2, device 1: 1 3
    with pytest.raises(PlacementError, match=r"layer 0, device 1: holds 2 experts, others 3, but engines have equally "
                                             r"many slots everywhere; .*fill: true"):
        write_placement(uneven, tmp_path / "p.json", "vllm")
    write_placement(uneven, tmp_path / "p.json", {"name": "vllm", "fill": True})
    assert json.loads((tmp_path / "p.json").read_text()) == [[0, 1, 2, 1, 3, 3]], "1 is on device 0 as well"
    assert np.array_equal(read_placement(tmp_path / "p.json", 2).replicas, uneven.replicas)
    with pytest.raises(PlacementError, match="layer 0, device 1: holds no expert, so there is none to fill its 2"):
        write_placement(placement([[[0], [0]]], 2), tmp_path / "p.json", {"name": "vllm", "fill": True})


def test_the_own_form_keeps_everything(tmp_path: Path) -> None:
    write_placement(placement(), tmp_path / "p.json")
    again = read_placement(tmp_path / "p.json")
    assert np.array_equal(again.replicas, placement().replicas) and again.info == INFO
    assert read_placement(tmp_path / "p.json", 3, "moesim_json", 4).n_devices == 3
    with pytest.raises(PlacementError, match="p.json: is for 3 devices, not 4; leave the number out"):
        read_placement(tmp_path / "p.json", 4)
