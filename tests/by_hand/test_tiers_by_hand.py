"""Tiers of memory on paper: copy engines, chains, what is placed where, and wrong input.

Engines move 10 bytes a second where nothing else is said, so every time is a whole number or a simple fraction.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from moesim import config
from moesim.hardware import HardwareSpec, Tier
from moesim.memory import CacheError
from moesim.memory.allocation import Symbol, allocate, offsets_of, peak_bytes
from moesim.memory.chain import Chain
from moesim.memory.dma import Copy, Engine, Traffic, fair_rates, run


def tier(name: str, capacity: int, bandwidth: int = 1000, **link: object) -> Tier:
    text = {"bandwidth": "10 B/s", **link} if link or name != "sram" else None
    return Tier.model_validate({"name": name, "capacity": f"{capacity} B", "bandwidth": f"{bandwidth} B/s",
                                **({"link": text} if text else {})})


def node(*, host_bandwidth: int = 1000, **link: object) -> Chain:
    return Chain((tier("sram", 10), tier("hbm", 100, bandwidth=1000), tier("host", 5000, host_bandwidth, **link)), 2, 2)


def test_a_demand_goes_before_a_prefetch_at_the_next_chunk() -> None:
    """A chunk takes 1 s and its bytes. The demand comes at 1 s, while chunk 0 of the prefetch runs (0 to 3 s)."""
    prefetch, demand, second = Copy(40, ("e",), 0, 1, 20), Copy(10, ("e",), 1, 0), Copy(10, ("e",), 2, 1)
    found = run([prefetch, demand, second], {"e": Engine(10, setup_s=1)})
    assert found.chunks[["copy", "chunk", "start_s", "finish_s", "bytes"]].to_numpy().tolist() == [
        [0, 0, 0, 3, 20], [1, 0, 3, 5, 10], [0, 1, 5, 8, 20], [2, 0, 8, 10, 10]]
    assert found.copies.to_numpy().tolist() == [[0, 8], [3, 5], [8, 10]]


def test_a_copy_without_chunks_is_not_interrupted() -> None:
    found = run([Copy(40, ("e",), 0, 1), Copy(10, ("e",), 1, 0)], {"e": Engine(10, setup_s=1)})
    assert found.copies.to_numpy().tolist() == [[0, 5], [5, 7]]


@pytest.mark.parametrize(("chunk", "finish"), [(20, 5), (math.inf, 6), (15, 5)])
def test_chunks_of_a_longer_chain_follow_one_another(chunk: float, finish: float) -> None:
    """NVMe at 10, DDR at 20 bytes a second, 40 bytes. 15, 15, 10: the last leaves NVMe at 4 s, DDR takes 0.5 s."""
    found = run([Copy(40, ("nvme>ddr", "ddr>hbm"), chunk_bytes=chunk)], {"nvme>ddr": Engine(10), "ddr>hbm": Engine(20)})
    assert found.copies["finish_s"].item() == (4.5 if chunk == 15 else finish)


def test_one_chunk_in_flight_does_not_reach_the_bandwidth() -> None:
    """100 x n / (n + 1): one has 50, two have 33.3 each. From 1 s on two: A ends at 2.5 s, B has 50 bytes left then."""
    engine = Engine(100, lanes=2, half=1)
    found = run([Copy(100, ("e",)), Copy(100, ("e",), ready_s=1)], {"e": engine})
    assert found.copies["finish_s"].tolist() == pytest.approx([2.5, 3.5])


def test_copies_and_computing_share_a_tier() -> None:
    """100 bytes/s of HBM: 50 each until the copy ends at 2 s; the processor's 200 bytes, alone 2 s, take 3."""
    found = run([Copy(100, ("e",))], {"e": Engine(60, ("hbm",))}, {"hbm": 100}, [Traffic(200, "hbm")])
    assert found.copies["finish_s"].item() == pytest.approx(2) and found.traffic["finish_s"].item() == pytest.approx(3)
    slow = run([Copy(90, ("e",))], {"e": Engine(30, ("hbm",))}, {"hbm": 100}, [Traffic(140, "hbm", ready_s=1)])
    assert slow.copies["finish_s"].item() == pytest.approx(3) and slow.traffic["finish_s"].item() == pytest.approx(3)


def test_traffic_below_its_share_leaves_the_rest() -> None:
    assert fair_rates([("a",), ("a", "b"), ("b",)], {"a": 30, "b": 100}) == [15, 15, 85]
    assert fair_rates([("a",), ("free",)], {"a": 30}) == [30, math.inf] and fair_rates([], {"a": 30}) == []


@pytest.mark.parametrize(("link", "bandwidth", "finish"), [
    ({"per": "device"}, 1000, [1, 1]), ({"per": "node"}, 1000, [1, 2]), ({"per": "device"}, 10, [2, 2]),
    ({"per": "device", "efficiency": 0.5}, 1000, [2, 2])])
def test_links_of_devices_and_of_the_node(link: dict[str, object], bandwidth: int, finish: list[float]) -> None:
    """10 bytes to each of two devices: two links, one link in turn, two links out of a memory as slow as one."""
    chain = node(host_bandwidth=bandwidth, **link)
    copies = [Copy(10, chain.route("host", "hbm", device)) for device in (0, 1)]
    assert run(copies, chain.engines(), chain.bandwidth()).copies["finish_s"].tolist() == pytest.approx(finish)


def test_a_device_bounds_what_comes_to_it() -> None:
    """HBM takes 4 bytes/s; the link could 10, the host's memory 1000."""
    slow = Tier.model_validate({"name": "hbm", "capacity": "9 B", "bandwidth": "4 B/s"})
    chain = Chain((slow, tier("host", 500)), devices=2, shared=1)
    copies = [Copy(8, chain.route("host", "hbm", device)) for device in (0, 1)]
    assert run(copies, chain.engines(), chain.bandwidth()).copies["finish_s"].tolist() == pytest.approx([2, 2])


def test_a_chain_names_its_engines_in_turn_both_ways() -> None:
    chain = node(back="5 B/s")
    assert chain.route("host", "sram", 1) == ("host>hbm 1", "hbm>sram 1")
    assert chain.route("sram", "host", 1) == ("sram>hbm 1", "hbm>host 1")
    assert [chain.engines()[name].bandwidth for name in ("host>hbm 0", "hbm>host 0")] == [10, 5]
    assert [chain.room(name) for name in chain.names] == [20, 200, 5000]


def test_what_moves_least_goes_down() -> None:
    """100 bytes of HBM: of 120, ``once`` (30 bytes moved) goes; DDR has 25, so it goes on to NVMe."""
    symbols = [Symbol("weights", 60, 600), Symbol("once", 30, 30), Symbol("kv", 30, 300)]
    found = allocate(symbols, {"hbm": 100, "ddr": 25, "nvme": 100})
    assert found["tier"].tolist() == ["hbm", "nvme", "hbm"] and found["offset_bytes"].tolist() == [0, 0, 60]


def test_of_equals_the_larger_goes_and_nothing_goes_without_need() -> None:
    found = allocate([Symbol("a", 10, 50), Symbol("b", 20, 50)], {"hbm": 20, "ddr": 20})
    assert found["tier"].tolist() == ["hbm", "ddr"]
    assert set(allocate([Symbol("a", 10, 0), Symbol("b", 20, 0)], {"hbm": 30, "ddr": 1})["tier"]) == {"hbm"}


def test_lives_that_do_not_meet_share_a_place() -> None:
    """a lives in steps 0 and 1, b in 2, c in 1 to 2: c lies above a, b where a was."""
    symbols = [Symbol("a", 40, 1, (0, 1)), Symbol("b", 30, 1, (2, 2)), Symbol("c", 20, 1, (1, 2))]
    assert offsets_of(symbols) == [0, 0, 40] and peak_bytes(symbols) == 60


MACHINE = """name: m
source: a machine of this test
device: {name: d, source: here, processor: {peak: {bf16: 1 TFLOP/s}, bandwidth: 1 TB/s, multiprocessors: 1},
  memory: [{name: hbm, capacity: 1 GB, bandwidth: 1 TB/s}], idle_power: 1 W, busy_power: 2 W}
devices_per_node: 1
nodes: 1
host: [{name: host, capacity: 1 TB, bandwidth: 1 TB/s, link: {bandwidth: 32 GB/s}}]
scale_up: {bandwidth: 1 GB/s, efficiency: 1.0, startup: 0 s, ramp: 0 s}
"""


@pytest.mark.parametrize(("old", "new", "message"), [
    (", link: {bandwidth: 32 GB/s}", "", "host.0: host has no link to hbm; add link: {bandwidth: ...}"),
    ("name: host", "name: hbm", "host.0.name: 'hbm' is the name of a tier above; give another"),
    ("bandwidth: 1 TB/s}], idle", "bandwidth: 1 TB/s, link: {bandwidth: 1 GB/s}}], idle",
     "device.memory.0.link: nothing is above hbm; move the link to the tier below"),
    ("32 GB/s}", "32 GB/s, per: socket}", "host.0.link.per: Input should be 'device' or 'node'"),
    ("32 GB/s}", "32 GB/s, efficiency: 1.2}", "host.0.link.efficiency: Input should be less than or equal to 1"),
    ("32 GB/s}", "0 GB/s}", "host.0.link.bandwidth: '0 GB/s' is zero"),
])
def test_wrong_tiers_of_a_machine(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "machine.yaml"
    file.write_text(MACHINE.replace(old, new))
    with pytest.raises(config.ConfigError) as caught:
        config.load(HardwareSpec, file)
    assert message in str(caught.value)
    file.write_text(MACHINE)
    assert config.load(HardwareSpec, file).host[0].link is not None


E = {"e": Engine(10)}


@pytest.mark.parametrize(("call", "message"), [
    (lambda: run([Copy(0, ("e",))], E), "copies[0].bytes is 0; give a number above 0"),
    (lambda: run([Copy(1, ("f",))], E), "copies[0].route: no engine 'f'"),
    (lambda: run([Copy(1, ())], E), "copies[0].route is empty"),
    (lambda: run([Copy(1, ("e",), chunk_bytes=1e-9)], E), "chunk_bytes is 1e-09, so its 1 bytes are more than 1000000"),
    (lambda: run([Copy(1, ("e",), ready_s=math.nan)], E), "copies[0].ready_s is nan; give a number from 0"),
    (lambda: run([], {"e": Engine(10, lanes=0)}), "engines['e'].lanes is 0"),
    (lambda: run([], {"e": Engine(math.inf)}), "engines['e'].bandwidth is inf and so is that of its tiers"),
    (lambda: run([], {}, {"hbm": 1}, [Traffic(1, "hbn")]), "tier 'hbn' has no bandwidth; did you mean 'hbm'?"),
    (lambda: node().route("hbm", "hbm"), "no copy from hbm to hbm for device 0"),
    (lambda: node().route("nvme", "hbm"), "no tier 'nvme'"),
    (lambda: node().route("host", "hbm", 2), "for device 2: give two tiers of sram, hbm, host, and a device below 2"),
    (lambda: allocate([Symbol("a", 30, 1), Symbol("b", 20, 1)], {"hbm": 10, "ddr": 40}),
     "2 symbols need 50 B of ddr, the last tier, which has 40 B: 10 B too little (the largest is a)"),
    (lambda: allocate([Symbol("a", 1, 1), Symbol("a", 1, 1)], {"hbm": 9}), "symbols[1].name is 'a' a second time"),
    (lambda: allocate([Symbol("a", 0, 1)], {"hbm": 9}), "symbols[0] (a) has 0 bytes"),
    (lambda: allocate([Symbol("a", 1, 1, (2, 1))], {"hbm": 9}), "symbols[0].lives is (2, 1); give the first step"),
    (lambda: allocate([], {}), "rooms is empty"),
])
def test_wrong_copies_and_symbols(call: object, message: str) -> None:
    with pytest.raises(CacheError) as caught:
        call()  # type: ignore[operator]
    assert message in str(caught.value)
