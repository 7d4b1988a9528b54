"""What holds wherever experts have devices of their own: bytes are copies, tokens are conserved, events are steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moesim
from moesim.network import Network
from moesim.sim.cost import INDEX, Batch
from moesim.sim.expert_devices import ExpertDevices
from moesim.sim.inputs import Inputs, prepare

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
TWO_NODES = ("hardware.nodes=2", "hardware.scale_out={efficiency: 0.9, startup: 20 us, ramp: 1 us}",
             "hardware.fabric={name: leaf_spine, leaves: 2, spines: 3, hosts_per_leaf: 2, link: 10 Gbit/s}")
MACHINES = {
    "three and one": ("hardware.devices_per_node=4", "parallelism.expert_devices=1"),
    "two and two": ("hardware.devices_per_node=4", "parallelism.expert_devices=2", "parallelism.tp=2"),
    "a node each": ("parallelism.expert_devices=2", "parallelism.tp=2", *TWO_NODES),
    "one of two nodes": ("parallelism.expert_devices=1", *TWO_NODES),
    "dense layers, shared experts": (
        "hardware.devices_per_node=4", "parallelism.expert_devices=2", "model.layers=4", "model.moe.layers=1,3",
        "model.dense_ffn=96", "model.moe.shared_ffn=64"),
}


@cache
def made(*overrides: str) -> tuple[Inputs, ExpertDevices, Network]:
    """Return the tiny scenario's inputs and costs, and the network of its machine."""
    inputs = prepare(moesim.load(TINY, overrides))
    network = Network.of(inputs.scenario.hardware)
    return inputs, ExpertDevices(inputs, network), network


def decodes(rows: np.ndarray, group: np.ndarray) -> Batch:
    """Return a step of decoding requests alone."""
    none = np.empty(0, np.int64)
    return Batch(none, none, none, none.astype(bool), none, none, np.arange(len(rows)), np.full(len(rows), 7), group,
                 rows, none, none)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(MACHINES)), st.booleans(), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_bytes_are_copies_and_tokens_are_conserved(machine: str, deduplicate: bool, n: int, seed: int) -> None:
    given_, costs, network = made(*MACHINES[machine], f"parallelism.deduplicate={str(deduplicate).lower()}")
    scenario, rng = given_.scenario, np.random.default_rng(seed)
    first = network.n_devices - scenario.parallelism.expert_devices
    rows = rng.integers(0, given_.trace.n_tokens, n)
    cost = costs.step(decodes(rows, np.sort(rng.integers(0, scenario.n_groups, n))))
    copies = 0
    for layer in range(given_.trace.n_layers):
        home = given_.placement.replicas[layer].argmax(axis=1)  # one replica of each
        assert cost.expert_tokens[layer, :first].sum() == 0
        assert cost.expert_tokens[layer, first:].sum() == n * given_.trace.top_k
        held = [home[experts].tolist() for experts in given_.trace.chosen[rows, layer]]
        copies += sum(len(set(devices)) if deduplicate else len(devices) for devices in held)
    sent = copies * scenario.model.activation_bytes_per_token
    names = network.links()["name"].str.split("->")  # a device's own link, and that of its host to other nodes
    source, sink = (names.str[i].str.extract(r"(?:device|host)(\d+)")[0].astype(float) for i in (0, 1))
    for phase, leaves, enters in (("dispatch", source < first, sink >= first),
                                  ("combine", source >= first, sink < first)):
        loads = cost.link_bytes[phase]
        assert loads[leaves].sum() == loads[source.notna()].sum() == pytest.approx(sent)
        assert loads[enters].sum() == loads[sink.notna()].sum() == pytest.approx(sent)
    for phase in ("attention", "gate", "shared", "dense", "head"):
        assert not cost.seconds[:, INDEX[phase], first:].any()
    assert not cost.seconds[:, INDEX["experts"], :first].any() and cost.seconds[:, INDEX["experts"], first:].any()


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_events_are_steps(machine: str) -> None:
    both = [moesim.simulate(moesim.load(TINY, [*MACHINES[machine], f"detail={detail}"])) for detail in
            ("steps", "events")]
    pd.testing.assert_frame_equal(both[0].steps, both[1].steps, rtol=1e-9)
    pd.testing.assert_frame_equal(both[0].requests, both[1].requests, rtol=1e-9)
    pd.testing.assert_frame_equal(both[0].links, both[1].links, rtol=1e-9)
    requests = both[0].requests
    assert both[0].steps["decode_tokens"].sum() == (requests["output_tokens"] - 1).sum()


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_all_weights_are_somewhere(machine: str) -> None:
    """Each group has the weights outside experts, the last devices together each expert once."""
    result, scenario = moesim.simulate(moesim.load(TINY, MACHINES[machine])), moesim.load(TINY, MACHINES[machine])
    memory, model, tp = result.memory, scenario.model, scenario.parallelism.tp
    first = scenario.hardware.n_devices - scenario.parallelism.expert_devices
    assert memory["expert_bytes"].sum() == model.total_bytes - model.non_expert_bytes()
    assert (memory["expert_bytes"][:first] == 0).all() and (memory["non_expert_bytes"][first:] == 0).all()
    assert memory["non_expert_bytes"][:first].tolist() == [model.non_expert_bytes(tp)] * first
    assert (memory["kv_peak_bytes"] <= memory["kv_capacity_bytes"]).all() and memory["kv_peak_bytes"][0] > 0
