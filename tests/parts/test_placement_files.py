"""Wrong placement files and wrong wishes: what is wrong, where, and what to do; and never half a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim import registry
from moesim.placement import Placement, PlacementError, read_placement, solve, write_placement
from moesim.trace import RoutingTrace

ONE = Placement.from_device_of([[0, 1, 1, 0]], 2, moe_layer_indices=[0])
TRT = "initial_global_assignments: {0: [0, 1]}\nnum_slots: 2\n"
GOOD = {"phy2log": np.array([[0, 1, 0, 2]]), "log2phy": np.array([[[0, 2], [1, -1], [3, -1]]]),
        "logcnt": np.array([[2, 1, 1]])}


@pytest.mark.parametrize(("name", "text", "message"), [
    ("p.json", "[[0, 1, 1", "not JSON, or cut short"),
    ("p.json", "[" * 100_000, "not JSON, or cut short"),
    ("p.json", "7", "no placement formats fit this file; name one with format=... (eplb, exflow, moesim_json, "),
    ("p.json", "{}", "no placement formats fit this file"),
    ("p.json", "[[0, 1], [0]]", "layer 1: has 1 slots, layer 0 has 2; all layers have equally many"),
    ("p.json", "[[0, 1], []]", "the map must be a list of layers, each a list of the experts in its slots"),
    ("p.json", "[[0, 1], [0, true]]", "layer 1: True is no expert; ids are whole numbers from 0"),
    ("p.json", "[[0, 1.5]]", "layer 0: 1.5 is no expert"),
    ("p.json", f"[[0, {10**30}]]", "layer 0: 1000000000"),
    ("p.json", "[[0, -1]]", "layer 0, slot 1: expert -1, but ids go from 0 to 1 (2 slots hold at most as many exp"),
    ("p.json", "[[0, 1], [5, 1]]", "layer 1, slot 0: expert 5, but ids go from 0 to 1"),
    ("p.json", "[[0, 1, 0, 3]]", "layer 0, expert 2: on no device (1 such experts); put every expert on at least one"),
    ("p.json", "[[0, 1, 2]]", "3 slots do not divide over 2 devices; give the number it is for"),
    ("p.json", "[0, 1]", "is one list for all layers and does not say how many there are; write it once"),
    ("p.json", '{"physical_to_logical_map": 3}', "physical_to_logical_map must be a list of rows, one per layer"),
    ("p.json", '{"logical_count": [[1, 2]]}', "holds logical_count, tokens per expert, from which SGLang"),
    ("p.yaml", "initial_global_assignments: {0: [0, 1", "not YAML ("),
    ("p.yaml", "num_slots: 2\n", "has no key initial_global_assignments; give a load balancer file of TensorRT-LLM"),
    ("p.yaml", TRT + "ep_size: 2\n", "has the key 'ep_size', which a load balancer file has not; remove it"),
    ("p.yaml", TRT.replace("0: ", "a: "), "initial_global_assignments must be a mapping of layer numbers to lists"),
    ("p.yaml", TRT.replace("num_slots: 2", ""), "num_slots must be the number of slots of each layer; add it"),
    ("p.yaml", TRT.replace("2", "4"), "layer 0: is no list of num_slots = 4 experts; correct one of them"),
    ("p.csv", "", "begins with '', not with Expert,Node; give what ExFlow's solve_affinity.py writes"),
    ("p.csv", "Expert,Node\n", "has no rows; every expert has one"),
    ("p.csv", "Expert,Node\n0,0\n1,x\n", "line 3: '1,x' is not the number of an expert and of a device"),
    ("p.csv", "Expert,Node\n0,0\n0,1\n", "line 3: expert 0 for the second time; every expert has one row"),
    ("p.csv", "Expert,Node\n0,0\n2,1\n", "line 3: expert 2 but 2 rows number from 0; every expert has one row"),
    ("p.csv", "Expert,Node\n0,0\n1,1\n", "numbers 2 experts through all layers and does not say how many a layer has"),
    ("p.npz", "junk", "not a NumPy file, or cut short ("),
    ("p.npy", "junk", "not a NumPy file, or cut short ("),
    ("p.pt", "junk", "not a zip archive of torch.save"),
    ("p.txt", "", "no placement formats fit this file"),
])
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(PlacementError) as error:
        read_placement(path, 2)
    assert str(error.value).startswith(f"{path}: {message}"), str(error.value)


@pytest.mark.parametrize(("changes", "message"), [
    ({"logcnt": None}, "lacks the tensor logcnt; save phy2log, log2phy and logcnt by these names"),
    ({"logcnt": np.array([2, 1, 1])}, "logcnt has shape [3]; it must be [layers, experts]"),
    ({"logcnt": np.array([[1, 2, 1]])}, "logcnt does not count the experts in phy2log; write both from one result"),
    ({"logcnt": np.array([[2, 1, 1, 0]])}, "layer 0, expert 3: on no device (1 such experts)"),
    ({"phy2log": np.array([[0, 1, 0, 3]])}, "layer 0, slot 3: expert 3, but ids go from 0 to 2 (n_experts is 3)"),
    ({"phy2log": np.array([[0.0, 1.0, 0.0, 2.0]])}, "the map is float64 of shape [1, 4]; it must be whole numbers"),
    ({"log2phy": np.array([[[0, 1], [2, -1], [3, -1]]])}, "log2phy names other slots than phy2log gives the experts"),
    ({"log2phy": np.array([[[0], [1], [3]]])}, "log2phy names other slots than phy2log gives the experts"),
])
def test_tensors_that_contradict_each_other_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, **{name: array for name, array in (GOOD | changes).items() if array is not None})
    with pytest.raises(PlacementError) as error:
        read_placement(path, 2)
    assert str(error.value).startswith(f"{path}: {message}"), str(error.value)


def test_more_columns_than_needed_and_numbers_that_the_file_does_not_say(tmp_path: Path) -> None:
    wide = np.pad(GOOD["log2phy"], ((0, 0), (0, 0), (0, 2)), constant_values=-1)
    np.savez(tmp_path / "p.npz", **(GOOD | {"log2phy": wide}))
    assert read_placement(tmp_path / "p.npz", 2).counts().tolist() == [[2, 2]]
    with pytest.raises(PlacementError, match=r"4 slots but not how many devices share them; give n_devices"):
        read_placement(tmp_path / "p.npz")
    (tmp_path / "p.json").write_text("[[0, 1, 0, 1]]")
    with pytest.raises(PlacementError, match=r"layer 0, expert 2: on no device"):
        read_placement(tmp_path / "p.json", 2, n_experts=3)
    with pytest.raises(PlacementError, match=r"no such file; did you mean 'p.json'"):
        read_placement(tmp_path / "p.jso", 2)
    with pytest.raises(registry.UnknownPart, match="unknown placement format 'vlm'; did you mean 'vllm'"):
        read_placement(tmp_path / "p.json", 2, "vlm")


@pytest.mark.parametrize("name", registry.names("placement_format"))
def test_every_format_is_complete_and_cut_files_are_errors(name: str, tmp_path: Path) -> None:
    part = registry.make("placement_format", name)
    assert part.suffixes and not part.matches(tmp_path / "something.else")
    for suffix in part.suffixes:
        path = tmp_path / f"p{suffix}"
        part.write(ONE, path)
        assert part.matches(path)
        whole = path.read_bytes()
        for length in range(0, len(whole) - 3, max(1, len(whole) // 60)):
            path.write_bytes(whole[:length])
            with pytest.raises(PlacementError, match=f"p{suffix}"):
                part.read(path, 2, 4)
    with pytest.raises(PlacementError, match="ends in .*; rename it"):
        part.write(ONE, tmp_path / "p.txt")
    with pytest.raises(PlacementError, match="cannot be read|give a file that"):
        part.read(tmp_path / "absent", 2, 4)


@pytest.mark.parametrize(("form", "placement", "message"), [
    ("sglang", Placement(ONE.replicas), "nothing says which 1 of them have the experts placed here; give them"),
    ("trtllm", Placement(ONE.replicas), "nothing says which 1 of them have the experts"),
    ({"name": "trtllm", "layers": [0, 1]}, ONE, "layers names 2 layers of the model, 1 are placed; name each once"),
    ({"name": "sglang", "layers": [-1]}, ONE, "they must be numbers from 0, ascending, each once"),
    ({"name": "sglang", "layers": [3], "hidden_layers": 3}, ONE, "layer 3 has experts, but hidden_layers is 3"),
    ("exflow", Placement([[[True, True]]]), "layer 0, expert 0: has replicas, which ExFlow's file cannot say"),
])
def test_what_a_file_cannot_say_is_refused_and_the_old_file_stays(tmp_path: Path, form: Any, placement: Placement,
                                                                  message: str) -> None:
    name = form if isinstance(form, str) else form["name"]
    path = tmp_path / f"p{registry.make('placement_format', name).suffixes[0]}"
    path.write_text("old")
    with pytest.raises(PlacementError) as error:
        write_placement(placement, path, form)
    assert message in str(error.value)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_names_of_files_choose_formats(tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match=r"no placement format ends in '.txt'; end it in .csv, .json, .npy, .npz"):
        write_placement(ONE, tmp_path / "p.txt")
    write_placement(ONE, tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["moesim_placement"] == 1
    (tmp_path / "d.json").mkdir()
    with pytest.raises(PlacementError, match="d.json: cannot be written"):
        write_placement(ONE, tmp_path / "d.json", "vllm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.json", "p.json"]
    with pytest.raises(PlacementError, match="cannot be written"):
        write_placement(ONE, tmp_path / "absent/p.npy")


def test_a_solver_passes_on_which_layers_the_trace_is_of(tmp_path: Path) -> None:
    trace = RoutingTrace.from_arrays(np.array([[[0], [1]], [[1], [0]]]), 2, 1, moe_layer_indices=[3, 5])
    placement = solve(trace, 2, "linear")
    write_placement(placement, tmp_path / "p.yaml")
    assert "  3: [0, 1]\n  5: [0, 1]\n" in (tmp_path / "p.yaml").read_text()
