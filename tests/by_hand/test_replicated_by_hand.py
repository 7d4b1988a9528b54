"""Tokens on all devices of a group, experts shared by them: what is computed and exchanged, on paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving_machine import scenario

import moesim
from moesim.document import ConfigError

HEADS = "model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}"
TWO = {"prompt": [[[0]]], "decode": [[[1]]], "devices": [[0], [1]]}  # experts 0 and 1 on devices 0 and 1


def steps(folder: Path, *overrides: str, chosen: dict[str, list] = TWO) -> object:
    return moesim.simulate(scenario(folder, [(0, 1, 2)], chosen, HEADS, "parallelism.tp=2", *overrides))


def test_experts_stay_whole_on_a_device(tmp_path: Path) -> None:
    """Both devices have the token: no dispatch. Its expert takes 12 + 8 s on one of them, both all-reduces 9 s each."""
    table = steps(tmp_path, "parallelism.dispatch=replicated").steps
    assert "dispatch_s" not in table and "combine_s" not in table
    assert table["experts_s"].tolist() == [10, 10]  # mean of 20 and 0
    assert table["attention_reduce_s"].tolist() == table["dense_reduce_s"].tolist() == [9, 9]
    assert table["gate_s"].tolist() == [38, 38]  # 38 s with one token (test_step_costs_by_hand), on both


def test_experts_shared_by_columns(tmp_path: Path) -> None:
    """Either device has half of the one column... of two: 3 matrices of 2 x 1 values, 12 bytes, and the token, 8."""
    wide = "model.moe.ffn=2"
    whole = steps(tmp_path, "parallelism.dispatch=replicated", wide).steps
    assert whole["experts_s"].tolist() == [(24 + 8) / 2] * 2
    one = tmp_path / "shared"
    one.mkdir()
    chosen = {"prompt": [[[0]]], "decode": [[[1]]], "devices": [[0, 1]]}  # one holder of both: both devices
    shared = steps(one, "parallelism.dispatch=replicated", "parallelism.expert_tp=2", wide,
                   "hardware.devices_per_node=2", chosen=chosen)
    assert shared.steps["experts_s"].tolist() == [12 + 8] * 2
    assert shared.memory["expert_bytes"].tolist() == [24] * 2


def test_tokens_for_another_group_go_in_shares(tmp_path: Path) -> None:
    """Two groups of two; the request is on group 0, expert 1 on group 1. Each device sends half of 4 bytes to its like.

    5 s startup and 2 s there, the same home; the prompt stays on group 0.
    """
    chosen = {"prompt": [[[0]]], "decode": [[[1]]], "devices": [[0], [], [1], []]}
    result = steps(tmp_path, "parallelism.dispatch=replicated", "hardware.devices_per_node=4", chosen=chosen)
    assert result.steps["dispatch_s"].tolist() == result.steps["combine_s"].tolist() == [0, 7]
    links = result.links.set_index("name")["dispatch_bytes"]
    assert [links[f"device{d}->switch0"] for d in range(4)] == [2, 2, 0, 0]
    assert [links[f"switch0->device{d}"] for d in range(4)] == [0, 0, 2, 2]


def test_experts_of_a_group_are_counted_by_holder(tmp_path: Path) -> None:
    """As many tokens as requests meet their experts, wherever they are."""
    chosen = {"prompt": [[[0, 3]]], "decode": [[[1, 2]]], "devices": [[0, 1], [2, 3]]}
    table = steps(tmp_path, "parallelism.dispatch=replicated", chosen=chosen).steps
    assert table["experts_s"].tolist() == [20, 20]  # one expert and one token on either device
    assert np.allclose(table["load_max_over_mean"], 1)


@pytest.mark.parametrize(("overrides", "fact"), [
    (["parallelism.expert_tp=2"], r"parallelism.expert_tp: 2 devices can share an expert only where .* replicated too"),
    (["parallelism.dispatch=replicated", "parallelism.expert_tp=3"], "parallelism.expert_tp: 3 does not divide the 2"),
    (["parallelism.dispatch=replicated", "parallelism.expert_tp=2"], "parallelism.expert_tp: 2 does not divide the 1 "),
    (["parallelism.dispatch=replicated", "overlap=two_batch", "detail=events"],
     "overlap: does not go with parallelism.dispatch replicated; use all_to_all"),
    (["parallelism.dispatch=replicated", "parallelism.deduplicate=false"], "parallelism.deduplicate: does not go with"),
    (["parallelism.dispatch=replicated", "parallelism.mode=context_coherent"], "parallelism.mode: does not go with"),
    (["selection=min_time"], "selection: device has one processor, nothing to select; use a device with processors"),
    (["selection.processor=bank_pim"], "selection.processor: device has no 'bank_pim' beside its own; known: none"),
    (["selection=coprocess_experts"], "selection: coprocess_experts is for experts alone; name it under selection.exp"),
    (["selection=mintime"], "selection: unknown selection 'mintime'; did you mean 'min_time'"),
    (["hardware.device.processors=[{kind: gpu, peak: {bf16: 1 FLOP/s}, bandwidth: 1 B/s, multiprocessors: 1}]"],
     "hardware.device: processor and processors are of the kinds gpu, gpu; name each kind once"),
    (["hardware.device.processor.efficiency=0.5"], "hardware.device: efficiency and power_cap are of processors"),
    (["hardware.device.processor.power_cap=3 W"], "hardware.device.processor: power_cap needs the energy of accesses"),
    (["hardware.device.processors=[{kind: cpu, peak: {bf16: 1 FLOP/s}, bandwidth: 1 B/s, multiprocessors: 1, energy: "
      "{access: 1 J/B, activation: 0 J/B, flop: 1 J}}]"], "hardware.device: some processors have an energy and some"),
    (["hardware.device.processor.energy={access: 3 pJ, activation: 0 J/B, flop: 1 J}"],
     "access: '3 pJ' is not a cost of data; write e.g. '3.5 pJ/bit'")])
def test_bad_input(tmp_path: Path, overrides: list[str], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        steps(tmp_path, *overrides)
