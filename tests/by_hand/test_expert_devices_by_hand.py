"""Attention on some devices and experts on others: times, bytes and memory of a tiny machine, on paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_machine import dense, scenario

import moesim
from moesim.document import ConfigError

HEADS = "model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}"
ONE = {"prompt": [[[0]]], "decode": [[[1]]], "devices": [[0, 1]]}  # one device with both experts
TWO = {"prompt": [[[0, 1]]], "decode": [[[1, 0]]], "devices": [[0], [1]]}
APART = ("hardware.devices_per_node=3", "parallelism.expert_devices=1")


def made(folder: Path, *overrides: str, chosen: dict[str, list] = ONE) -> moesim.Scenario:
    return scenario(folder, [(0, 1, 1), (0, 1, 1)], chosen, *overrides)


@pytest.mark.parametrize("detail", ["steps", "events"])
def test_times_of_two_devices_for_attention_and_one_for_experts(tmp_path: Path, detail: str) -> None:
    """A request on either group: 88 s attention, 38 s gate, 16 s head (test_two_devices), nothing on the third device.

    Both tokens, 4 bytes each, come into the third device by one link: 5 + 8 s, and go home by one. They meet the same
    expert: 12 bytes of weights and 2 x 8 of tokens.
    """
    result = moesim.simulate(made(tmp_path, *APART, f"detail={detail}"))
    (row,) = result.steps.to_dict("records")
    assert row["end_s"] == 88 + 38 + 13 + 28 + 13 + 16
    third = {name: row[f"{name}_s"] * 3 for name in ("attention", "gate", "experts", "head")}
    assert third == pytest.approx({"attention": 2 * 88, "gate": 2 * 38, "experts": 28, "head": 2 * 16})
    assert row["dispatch_s"] == row["combine_s"] == 13
    assert row["load_max_over_mean"] == 1  # of the devices that run experts
    assert row["active_experts"] == 1
    spans = result.spans[result.spans["server"] == "processor"].groupby("device")["phase"].agg(set).to_dict()
    assert spans == {0: {"attention", "gate", "head"}, 1: {"attention", "gate", "head"}, 2: {"experts"}}
    links = result.links.set_index("name")["dispatch_bytes"]
    assert [links[f"device{d}->switch0"] for d in range(3)] == [4, 4, 0]
    assert [links[f"switch0->device{d}"] for d in range(3)] == [0, 0, 8]


def test_memory_of_either_kind(tmp_path: Path) -> None:
    """68 bytes of weights outside experts, 12 of each expert, 8 of KV per token; half of 1 kB may be used."""
    memory = moesim.simulate(made(tmp_path, *APART)).memory
    assert memory["non_expert_bytes"].tolist() == [68, 68, 0]
    assert memory["expert_bytes"].tolist() == [0, 0, 24]
    assert memory["kv_capacity_bytes"].tolist() == [432, 432, 0]
    assert memory["kv_peak_bytes"].tolist() == [8, 8, 0]


def test_groups_of_two_and_two_devices_for_experts(tmp_path: Path) -> None:
    """One group of two has both tokens and deals them out; each goes to both devices for experts.

    All-reduce of two tokens, 8 bytes: 5 + 4 s there and again (9 s with one token: 7 and 2; test_replicated_by_hand).
    Each device sends 2 x 4 bytes out, and gets 2 x 4 in: 5 + 8 s.
    """
    result = moesim.simulate(made(tmp_path, HEADS, "parallelism.tp=2", "hardware.devices_per_node=4",
                                  "parallelism.expert_devices=2", chosen=TWO))
    (row,) = result.steps.to_dict("records")
    assert row["prefill_tokens"] == 2 and row["dispatch_s"] == row["combine_s"] == 13
    assert row["experts_s"] * 4 == 2 * (12 + 16)
    links = result.links.set_index("name")
    assert [links.loc[f"device{d}->switch0", "dispatch_bytes"] for d in range(4)] == [8, 8, 0, 0]
    assert [links.loc[f"device{d}->switch0", "combine_bytes"] for d in range(4)] == [0, 0, 8, 8]
    assert [links.loc[f"device{d}->switch0", "attention_reduce_bytes"] > 0 for d in range(4)] == [1, 1, 0, 0]
    assert result.requests["group"].tolist() == [0, 0]


def test_islands_have_both_kinds(tmp_path: Path) -> None:
    """Two islands of three devices: the same step on either, with a request for every group."""
    four = scenario(tmp_path, [(0, 1, 1)] * 4, ONE, "hardware.devices_per_node=6", "parallelism.expert_devices=1",
                    "parallelism.ep=3")
    result = moesim.simulate(four)
    assert result.steps["end_s"].tolist() == [196, 196]
    assert sorted(result.requests["group"]) == [0, 1, 2, 3]
    assert result.memory["non_expert_bytes"].tolist() == [68, 68, 0] * 2
    assert result.memory["kv_peak_bytes"].tolist() == [8, 8, 0] * 2


@pytest.mark.parametrize(("overrides", "fact"), [
    (["parallelism.expert_devices=3"], "parallelism.expert_devices: 3 of the 3 devices of an island run experts, none"),
    (["parallelism.expert_devices=1", "parallelism.tp=2", "hardware.devices_per_node=4", HEADS],
     r"parallelism.expert_devices: 1 must be a multiple of parallelism.tp \(2\)"),
    (["parallelism.mode=context_coherent"],
     r"parallelism.mode: does not go with parallelism.expert_devices \(1\); use dispatch_combine"),
    (["parallelism.dispatch=all_gather"], "parallelism.dispatch: does not go with .* use all_to_all"),
    (["parallelism.dispatch=replicated"], "parallelism.dispatch: does not go with .* use all_to_all"),
    (["parallelism.pp=3"], "parallelism.pp: does not go with .* set it to 1"),
    (["overlap=two_batch", "detail=events"], "overlap: does not go with parallelism.expert_devices"),
    (["placement.online={every: 4, solver: round_robin}"],
     "placement.online: does not go with parallelism.expert_devices"),
    (["cache={capacity: 1}"], r"cache: does not go with parallelism.expert_devices \(1\); leave it out"),
    (["all_to_all=node_limited"], "all_to_all: does not go with parallelism.expert_devices .* use flat"),
    (["selection={attention: min_time}"], "selection.attention: does not go with .* use gpu_only"),
    (["disaggregation={devices: 1}"], "parallelism.expert_devices: does not go with disaggregation"),
    (["disaggregation={devices: 1, parallelism: {expert_devices: 1}}"],
     "disaggregation.parallelism.expert_devices: does not go with disaggregation"),
    (["hardware.device.memory=[{name: hbm, capacity: 40 B, bandwidth: 1 B/s}]"],
     "hardware: the weights do not fit: each of 2 devices without experts needs 68 B"),
    (["hardware.device.memory=[{name: hbm, capacity: 40 B, bandwidth: 1 B/s}]"],
     r"hardware: the weights do not fit: each of 1 devices for experts needs 24 B .* \(parallelism.expert_devices\)"),
])
def test_bad_input(tmp_path: Path, overrides: list[str], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        made(tmp_path, *APART, *overrides)


def test_a_model_without_experts_has_no_devices_for_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="parallelism.expert_devices: model hand has no experts; set it to 0"):
        dense(tmp_path, [(0, 1, 1)], 2, "parallelism.expert_devices=1")


def test_a_placement_is_of_the_devices_for_experts(tmp_path: Path) -> None:
    """The file says two devices, the machine has one for experts."""
    with pytest.raises(ConfigError, match="placement.path: the placement is for .* 2.*the scenario has .* 1"):
        moesim.simulate(made(tmp_path, *APART, chosen=TWO))


def test_a_device_for_experts_that_is_too_full(tmp_path: Path) -> None:
    """Nine experts: five on a device would be 60 bytes of the 100 that may be used, all nine on one are 108."""
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [list(range(9)), []]}
    tight = "hardware.device.memory=[{name: hbm, capacity: 200 B, bandwidth: 1 B/s}]"
    with pytest.raises(ConfigError, match="placement: device 1 has 8 B too little memory for the experts placed on it"):
        moesim.simulate(scenario(tmp_path, [(0, 1, 1)], chosen, "hardware.devices_per_node=3",
                                 "parallelism.expert_devices=2", tight))
