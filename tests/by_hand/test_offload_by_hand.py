"""Expert caches in the engine, worked on paper (machine: ``serving_machine``): hits, misses, and what waiting costs.

An expert has 3 x 2 values: 12 bytes. The link to the host moves 0.5 bytes/s and needs 1 s for every expert: 25 s.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving_machine import dense, scenario

import moesim
from moesim.config import ConfigError
from moesim.hardware import TierLink
from moesim.memory import dma
from moesim.sim.copying import Copies, copy_s

HOST = "hardware.host=[{{name: host, capacity: {capacity}, bandwidth: 100 B/s, link: {{{link}}}}}]"
# Layer 0 asks for 0, 1, 2, 1, 0: of two places, 2 takes that of 0. Layer 1 asks for 2, 2, 0, 1, 1.
CHOSEN = {"prompt": [[[0], [2]]], "decode": [[[1], [2]], [[2], [0]], [[1], [1]], [[0], [1]]], "devices": [[0, 1, 2]]}
TOGETHER = {"prompt": [[[0], [2]], [[1], [2]]], "decode": [[[0], [0]]], "devices": [[0, 1, 2]]}


def host(link: str = "bandwidth: 0.5 B/s, setup: 1 s", capacity: str = "1 kB") -> str:
    return HOST.format(link=link, capacity=capacity)


def run(folder: Path, *overrides: str) -> moesim.Result:
    """Return the run of one request on one device: a prompt of one token and four decodes, two layers."""
    return moesim.simulate(scenario(folder, [(0, 1, 5)], CHOSEN, *overrides))


def test_every_miss_is_waited_for(tmp_path: Path) -> None:
    result, free = run(tmp_path, host(), "cache.capacity=2"), run(tmp_path)
    steps, memory = result.steps, result.memory
    assert steps["expert_misses"].tolist() == [2, 1, 2, 1, 1]
    assert steps["expert_hits"].tolist() == [0, 1, 0, 1, 1]
    assert steps["fetched_bytes"].tolist() == [24, 12, 24, 12, 12]
    assert steps["fetch_s"].tolist() == [50, 25, 50, 25, 25]
    assert (steps["end_s"] - free.steps["end_s"]).tolist() == [50, 75, 125, 150, 175]
    assert (memory["expert_bytes"].tolist(), memory["fetched_bytes"].tolist()) == ([2 * 2 * 12], [84])
    assert free.memory["expert_bytes"].tolist() == [2 * 3 * 12] and "fetched_bytes" not in free.memory
    assert memory["kv_capacity_bytes"][0] - free.memory["kv_capacity_bytes"][0] == 24  # what is not kept is free
    assert moesim.metrics.expert_cache(steps).to_dict() == {"hit_ratio": 0.3, "fetched_bytes": 84}


def test_a_layer_waits_between_gate_and_experts(tmp_path: Path) -> None:
    spans = run(tmp_path, host(), "cache.capacity=2", "detail=events").spans.query("step == 1 and layer == 0")
    order = spans.set_index("phase")
    assert order.index.tolist() == ["attention", "gate", "fetch", "experts"]
    assert order.loc["fetch", "server"] == "links"
    assert order.loc["fetch", "start_s"] == order.loc["gate", "end_s"]
    assert order.loc["experts", "start_s"] == order.loc["fetch", "end_s"] == order.loc["gate", "end_s"] + 25


def test_one_cache_for_all_layers(tmp_path: Path) -> None:
    """Asked in turn: 0a 2b | 1a 2b | 2a 0b | 1a 1b | 0a 1b. Three places: 2b and 1b are hit; 1a leaves for 0b's sake.

    0a 2b 1a; hit 2b; 2a for 0a, 0b for 1a; 1a for 2b, 1b for 2a; 0a for 0b; hit 1b.
    """
    steps = run(tmp_path, host(), "cache={capacity: 3, scope: global}").steps
    assert steps["expert_misses"].tolist() == [2, 1, 2, 2, 1]
    assert run(tmp_path, host(), "cache={capacity: 36 B, scope: global}").steps.equals(steps)  # three experts
    assert run(tmp_path, host(), "cache={capacity: 50%, scope: global}").steps.equals(steps)


def test_experts_known_a_layer_ahead_come_meanwhile(tmp_path: Path) -> None:
    """201 s an expert. Between both waits of a step: experts 12 + 8, attention 88 + 8 per step, gate 16 + 30.

    That is 154, then 170 and 178 where layer 1 misses again. Nothing is known ahead of the first layer. What comes
    meanwhile slows kernels by 12 s, in which it comes as well.
    """
    slow, gate = host("bandwidth: 0.06 B/s, setup: 1 s"), "{name: next_layer_gate, recall: 1.0}"
    late, ahead = (run(tmp_path, slow, f"cache={{capacity: 2, prefetcher: {part}}}").steps for part in ("none", gate))
    assert late["fetch_s"].tolist() == pytest.approx([402, 201, 402, 201, 201])
    assert ahead["fetch_s"].tolist() == pytest.approx([201 + 47, 201, 201 + 31, 23, 201])
    assert ahead["expert_misses"].tolist() == [1, 1, 1, 0, 1] and ahead["late_ahead"].tolist() == [1, 0, 1, 1, 0]
    assert ahead["prefetched_bytes"].tolist() == [12, 0, 12, 12, 0]
    assert ahead["fetched_bytes"].tolist() == late["fetched_bytes"].tolist() and "late_ahead" not in late


@pytest.mark.parametrize(("per", "mean_s"), [("device", (25 + 50) / 2), ("node", (50 + 75) / 2)])
def test_devices_of_a_node_take_turns_at_a_link(tmp_path: Path, per: str, mean_s: float) -> None:
    """Device 0 misses one expert, device 1 two: in turns 0, 1, 1; the first is told so only when the link is shared.

    Taking turns, the expert of device 0 comes second at the latest, those of device 1 are the last.
    """
    chosen = {"prompt": [[[0, 2, 3]]], "decode": [[[0, 2, 3]]], "devices": [[0, 1], [2, 3]]}
    made = scenario(tmp_path, [(0, 1, 1)], chosen, host(f"bandwidth: 0.5 B/s, setup: 1 s, per: {per}"),
                    "cache.capacity=2")
    result = moesim.simulate(made)
    assert result.steps["fetch_s"].tolist() == [mean_s]
    assert result.memory["fetched_bytes"].tolist() == [12, 24]


@pytest.mark.parametrize("link", [
    {"setup": 0.5}, {"lanes": 3, "half": 2.0, "setup": 0.25}, {"lanes": 2, "efficiency": 0.5}], ids=str)
def test_copies_take_what_the_copy_engine_says(link: dict) -> None:
    """The closed form, and chunks one by one on the engine of ``moesim.memory.dma``."""
    made = TierLink.model_validate({"bandwidth": "4 B/s"} | {k: f"{v} s" if k == "setup" else v
                                                            for k, v in link.items()})
    engine = dma.Engine(made.bandwidth * made.efficiency, lanes=made.lanes, half=made.half, setup_s=made.setup)
    for n in range(1, 8):
        played = dma.run([dma.Copy(12.0 * n, ("link",), chunk_bytes=12.0)], {"link": engine}).copies["finish_s"][0]
        assert copy_s(made, 12.0, np.array([n]))[0] == pytest.approx(played, rel=1e-12)


def test_memories_bound_copies(tmp_path: Path) -> None:
    """A host that gives 3 bytes/s to two devices, links of 100: both have one expert of 12 bytes after 8 s."""
    made = scenario(tmp_path, [(0, 1, 1)], {"prompt": [[[0, 1]]], "decode": [[[0, 1]]], "devices": [[0], [1]]},
                    host("bandwidth: 100 B/s").replace("bandwidth: 100 B/s, link", "bandwidth: 3 B/s, link"))
    assert Copies(made.hardware, 12.0).seconds(np.array([[1, 1], [2, 0]])).tolist() == [[8, 8], [8, 0]]


def test_static_experts_are_there_from_the_beginning(tmp_path: Path) -> None:
    """The profile is a request of the same routing. Layer 0: 0 and 1 twice each; layer 1: 1 and 2. No other is kept."""
    steps = run(tmp_path, host(), "cache={capacity: 2, policy: static}").steps
    assert steps["expert_misses"].tolist() == [0, 0, 2, 0, 0]


WRONG = {
    "no memory below": ([], "capacity: 2", "cache: devices has no memory below hbm to fetch experts from; add"),
    "no room": ([host()], "capacity: 0", "cache.capacity: capacity is 0; give a number of experts from 1"),
    "share of nothing": ([host()], "capacity: 10%", "cache.capacity: capacity is 10%, 0 of 3 experts; give a share"),
    "a small size": ([host()], "capacity: 20 B", "cache.capacity: capacity is 20 B for 2 caches, but one expert takes"),
    "context": ([host(), "parallelism.mode=context_coherent"], "capacity: 2",
                "parallelism.mode: does not go with a cache of experts; leave it out, or cache"),
    "online": ([host(), "placement.online={every: 1, solver: lpt}"], "capacity: 2",
               "placement.online: does not go with a cache of experts"),
    "oracle": ([host()], "capacity: 2, policy: belady",
               "cache.policy: belady looks at what has not happened yet; use one that needs"),
    "needs a trace": ([host()], "capacity: 2, policy: eam", "cache.policy: eam cannot decide while a run goes on"),
    "small host": ([host(capacity="71 B")], "capacity: 2",
                   "cache: the experts need 72 B of host, which has 71 B (a node): all of them stay there; give it"),
    "a step needs more": ([host()], "capacity: 1",
                          "cache.capacity: a step uses 2 experts of layer 0 at once on device 0, whose cache holds 1; "
                          "give at least that, run fewer tokens at a time (scheduler), or cache.overflow: stream"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(tmp_path: Path, case: str) -> None:
    overrides, cache, message = WRONG[case]
    with pytest.raises(ConfigError) as error:
        moesim.simulate(scenario(tmp_path, [(0, 2, 1)], TOGETHER, *overrides, f"cache={{{cache}}}"))
    assert message in str(error.value)


def test_more_than_fits_passes_through(tmp_path: Path) -> None:
    """Two of layer 0 at once through one place, one of layer 1: all are misses, and all are waited for."""
    made = scenario(tmp_path, [(0, 2, 1)], TOGETHER, host(), "cache={capacity: 1, overflow: stream}")
    assert moesim.simulate(made).steps["fetch_s"].tolist() == [75]


def test_a_model_without_experts_has_no_cache(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cache: model hand has no experts; remove it"):
        dense(tmp_path, [(0, 1, 1)], 1, host(), "cache={capacity: 1}")


CPU = "hardware.host_processor={kind: cpu, peak: {bf16: 1 TFLOP/s}, bandwidth: 0.5 B/s, multiprocessors: 1}"


def test_the_host_computes_what_it_has(tmp_path: Path) -> None:
    """Expert 0 stays (the first of three with two uses each). One token at an expert: 20 s, 40 at the host.

    A token of 4 bytes goes over the link and back at 2 bytes/s: 4 s. The device waits 44 s, or 24 beyond its own 20.
    """
    chosen = {"prompt": [[[0, 1]]], "decode": [[[0, 2]], [[1, 2]]], "devices": [[0, 1, 2]]}
    overrides = host("bandwidth: 2 B/s"), CPU, "cache={capacity: 1, policy: static, miss: host}"
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 3)], chosen, *overrides))
    steps = result.steps
    assert steps["expert_hits"].tolist() == [1, 1, 0] and steps["expert_misses"].tolist() == [1, 1, 2]
    assert steps["experts_s"].tolist() == [20, 20, 0]
    assert steps["fetch_s"].tolist() == [24, 24, 2 * 40 + 2 * 4]  # two experts at the host, one token at each
    assert result.memory["fetched_bytes"].tolist() == [0]
    assert moesim.metrics.expert_cache(steps)["fetched_bytes"] == 0


@pytest.mark.parametrize(("overrides", "cache", "message"), [
    ([host()], "capacity: 2, policy: static, miss: host", "cache.miss: host needs experts in the memory of a host"),
    ([host(), CPU], "capacity: 2, miss: host", "cache.policy: with miss: host nothing moves, so nothing can take a"),
    ([host(), CPU], "capacity: 2, policy: static, miss: host, prefetcher: oracle",
     "cache.prefetcher: does not go with miss: host, which fetches nothing; leave"),
])
def test_what_a_host_cannot_do(tmp_path: Path, overrides: list[str], cache: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        scenario(tmp_path, [(0, 2, 1)], TOGETHER, *overrides, f"cache={{{cache}}}")
    assert message in str(error.value)
