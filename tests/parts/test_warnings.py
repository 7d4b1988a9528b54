"""What a result warns of: synthetic routing, scaled models, kernel shapes that nobody measured."""

from __future__ import annotations

from pathlib import Path

import pytest

import moesim
from moesim.network import Constants, Network, Switch, validity

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"


def warnings(*overrides: str) -> list[str]:
    return moesim.simulate(moesim.load(TINY, overrides)).meta["warnings"]


def test_synthetic_and_scaled_routing_are_said() -> None:
    found = warnings()
    assert "the routing is synthetic" in found
    assert any("on the sizes of tiny (a what-if)" in w for w in found)


def test_shapes_outside_the_measured_domain_are_named_with_the_largest_of_a_run() -> None:
    found = warnings("requests.prompt_tokens=24", "requests.concurrency=1", "requests.count=1")
    moe = next(w for w in found if w.startswith("kernel times extrapolated: moe"))
    assert "on 2 experts, hidden 64, inter 32" in moe, "the tables begin at 8 experts and hidden 2048"
    # One prompt of 24 tokens chooses 48 experts; the busiest of two devices has at least half of them in some layer.
    assert 24 <= int(moe.split("(")[1].split(" tokens")[0]) <= 48


def test_constants_of_another_device_or_dtype_are_said_to_be_carried_over() -> None:
    found = warnings("model.dtype.experts=fp8")
    assert ("kernel times extrapolated: constants fitted on H200 are used on small, with its own peak rates") in found
    assert "kernel times extrapolated: fp8: constants were fitted with bf16, fp16, mxfp4" in found


def test_a_short_trace_is_said_to_repeat_itself() -> None:
    """Six evaluated requests of 8 decode rows each; 48 users decode at once: tokens share rows."""
    many = ("requests.concurrency=48", "requests.count=48", "scheduler.max_batch=48", "requests.output_tokens=9")
    short = next(w for w in warnings(*many) if w.startswith("the trace is short for this load"))
    assert "use a trace of more requests" in short
    assert not any(w.startswith("the trace is short") for w in warnings())
    only_prompts = warnings("requests.output_tokens=1")  # nothing is decoded, so nothing is repeated
    assert not any(w.startswith("the trace is short") for w in only_prompts)


def test_a_roofline_says_that_nothing_was_measured() -> None:
    assert "kernel times extrapolated: gemm: not fitted to measurements" in warnings("kernels=roofline")


TWO_NODES = ("hardware.nodes=2", "hardware.devices_per_node=1", "hardware.scale_up.startup=1 us")
FABRIC = "hardware.fabric={name: leaf_spine, leaves: 2, spines: 2, hosts_per_leaf: 1, link: 10 GB/s}"
OUT = "hardware.scale_out={efficiency: 0.9, startup: 2 us, ramp: 0 s, transport: %s}"


def test_regimes_of_the_network_that_the_model_is_not_valid_for() -> None:
    said = {transport: [w for w in warnings(*TWO_NODES, FABRIC, OUT % transport, "balancing=ecmp", "seed=2")
                        if w.startswith("network: ")] for transport in ("paced", "pfc_only", "sender_window")}
    assert said["paced"] == said["sender_window"] == []  # one sender per port
    assert len(said["pfc_only"]) == 1 and "flows collide" in said["pfc_only"][0]  # one pair, one of two spines
    even = [w for w in warnings(*TWO_NODES, FABRIC, OUT % "pfc_only", "balancing=spray") if w.startswith("network: ")]
    assert even == []


def test_many_senders_without_pacing() -> None:
    network = Network(64, 1, Constants(), Switch(64), Constants())
    assert validity.senders(network, "flat") == 63 and validity.senders(network, "pairwise") == 1
    found = validity.notes("sender_window", network.links().assign(load_bytes=1.0), validity.senders(network, "flat"))
    assert len(found) == 1 and found[0].startswith("network: 63 senders to one port at a time")
    with pytest.raises(ValueError, match="transport is 'tcp'; choose one of paced"):
        validity.notes("tcp", network.links().assign(load_bytes=1.0), 1)
