"""Tiers below the host, worked on paper (machine: ``serving_machine``): a host that has two experts of each layer.

An expert has 12 bytes: 24 s over the host's link, and 1 s of setup; 48 s from NVMe to the host. Letters are layers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_machine import scenario
from test_offload_by_hand import CHOSEN

import moesim
from moesim.config import ConfigError

TIERS = ("hardware.host=[{{name: host, capacity: {host}, bandwidth: 100 B/s, "
         "link: {{bandwidth: 0.5 B/s, setup: 1 s}}}}, "
         "{{name: nvme, capacity: {nvme}, bandwidth: 100 B/s, link: {{bandwidth: 0.25 B/s, per: node}}}}]")


def made(folder: Path, cache: str, host: str = "1 kB", nvme: str = "1 kB", tiers: str = TIERS) -> moesim.Scenario:
    return scenario(folder, [(0, 1, 5)], CHOSEN, tiers.format(host=host, nvme=nvme), f"cache={{{cache}}}")


def test_what_the_host_misses_comes_over_both_links(tmp_path: Path) -> None:
    """Asked of the devices: a 0, 1, 2, 1, 0 and b 2, 2, 0, 1, 1; with one place each all miss but b's second 2 and 1.

    The host has two places: a0, a1, a2 for a0; a1 is there; a0 for a2, the least recently used. b2, b0, b1 for b2.
    From NVMe 48 + 25 s, from the host 25 s.
    """
    result = moesim.simulate(made(tmp_path, "capacity: 1, below: {capacity: 2}"))
    steps, memory = result.steps, result.memory
    assert steps["expert_misses"].tolist() == [2, 1, 2, 2, 1]
    assert steps["host_misses"].tolist() == [2, 1, 2, 1, 1] and steps["host_hits"].tolist() == [0, 0, 0, 1, 0]
    assert steps["fetch_s"].tolist() == pytest.approx([146, 73, 146, 98, 73])
    assert (memory["fetched_bytes"].tolist(), memory["from_nvme_bytes"].tolist()) == ([96], [84])


def test_what_is_known_ahead_comes_over_both_links_as_well(tmp_path: Path) -> None:
    """Layer 1 of steps 0, 2 and 3 begins to come as layer 0 asks; it needs 48 s to the host, then 25 s.

    In step 0, layer 0 waits 73 s; NVMe has begun with b2 behind a0's, 48 s after the step's first wait began: at 96 s
    it is in the host, at 121 s on the device, and layer 1 asks 73 + 154 s after layer 0. What comes costs 12 s.
    """
    gate = "prefetcher: {name: next_layer_gate, recall: 1.0}"
    steps = moesim.simulate(made(tmp_path, f"capacity: 1, below: {{capacity: 2}}, {gate}")).steps
    assert steps["host_misses"].tolist() == [2, 1, 2, 1, 1] and steps["late_ahead"].tolist() == [0] * 5
    assert steps["fetch_s"].tolist() == pytest.approx([73 + 12, 73, 73 + 12, 25 + 12, 73])


def test_both_tiers_in_turn(tmp_path: Path) -> None:
    """A third tier below: host one place, memory pool two: a0 again is nowhere near; b as above."""
    one = "{{name: pool, capacity: 1 kB, bandwidth: 100 B/s, link: {{bandwidth: 1 B/s}}}}, "
    pool = TIERS.replace("{{name: nvme", one + "{{name: nvme")
    result = moesim.simulate(made(tmp_path, "capacity: 1, below: {capacity: 1, below: {capacity: 2}}", tiers=pool))
    steps = result.steps
    assert steps["host_misses"].tolist() == [2, 1, 2, 2, 1] and steps["pool_misses"].tolist() == [2, 1, 2, 1, 1]
    assert steps["fetch_s"].tolist() == pytest.approx([170, 85, 170, 37 + 85, 85])  # 25 + 12 of the pool + 48
    assert result.memory["from_pool_bytes"].tolist() == [96] and result.memory["from_nvme_bytes"].tolist() == [84]


def test_the_devices_of_a_node_have_one_host(tmp_path: Path) -> None:
    """Device 0 has experts 0 and 1, device 1 has 2 and 3; a token uses one of each. Two places in the host, not four.

    Asked: 0 and 2, 1 and 3 for them, 0 and 2 again. NVMe's link carries both in turn: 48, then 96 s, and 25 s more.
    """
    chosen = {"prompt": [[[0, 2]]], "decode": [[[1, 3]], [[0, 2]]], "devices": [[0, 1], [2, 3]]}
    steps = moesim.simulate(scenario(tmp_path, [(0, 1, 3)], chosen, TIERS.format(host="1 kB", nvme="1 kB"),
                                     "cache={capacity: 1, below: {capacity: 2}}")).steps
    assert steps["host_misses"].tolist() == [2, 2, 2] and steps["host_hits"].tolist() == [0, 0, 0]
    assert steps["fetch_s"].tolist() == pytest.approx([96 + 25] * 3)  # each may be the second


@pytest.mark.parametrize(("cache", "sizes", "message"), [
    ("capacity: 1, below: {capacity: 1, below: {capacity: 1}}", ("1 kB", "1 kB"),
     "cache.below: makes 2 tiers below hbm caches, but devices has host, nvme, and the last has all experts; add"),
    ("capacity: 1, below: {capacity: 2}", ("47 B", "1 kB"),
     "cache.below.capacity: 4 experts take 48 B of host, which has 47 B; give less"),
    ("capacity: 1, below: {capacity: 2}", ("1 kB", "71 B"), "cache: the experts need 72 B of nvme, which has 71 B"),
    ("capacity: 1, below: {capacity: 0}", ("1 kB", "1 kB"), "cache.below.capacity: capacity is 0; give a number of"),
    ("capacity: 1, below: {capacity: 2, policy: belady}", ("1 kB", "1 kB"),
     "cache.below.policy: belady looks at what has not happened yet"),
])
def test_what_tiers_cannot_be(tmp_path: Path, cache: str, sizes: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        moesim.simulate(made(tmp_path, cache, *sizes))
    assert message in str(error.value)
