"""Collectives that meet on links: the closed form and the flows agree, nothing is lost, strangers do not matter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_laws import DENSE_LAYERS, TINY, TWO_NODES, VARIANTS, _digest, ran, tiny

import moesim
from moesim.network import Constants, LeafSpine, Messages, Network
from moesim.placement.placement import Placement
from moesim.result import timeline
from moesim.sim.cost import GROUP, LOCAL, PHASES, SYNC, StepCost
from moesim.sim.crowd import Crowd
from moesim.sim.engine import Engine
from moesim.sim.inputs import prepare
from moesim.sim.links import Launch, Links
from moesim.sim.traffic import NamedAct, of_exchange, of_gather, of_reduction

HALVES = ("detail=events", "overlap=two_batch")
RNG = np.random.default_rng(0)
CONSTANTS = Constants(bandwidth=4e9, efficiency=0.8, startup=3e-6, ramp=2e-6, message=1e-7,
                      of={"2dh": Constants(efficiency=0.5, startup=1e-6)})
FABRIC = LeafSpine(leaves=4, spines=2, hosts_per_leaf=2, link="1 GB/s", latency="100 ns")


def network(balancing: str = "spray") -> Network:
    """Return four nodes of two devices, 4:2 between leaves."""
    return Network(8, 2, CONSTANTS, FABRIC, CONSTANTS, balancing)


def as_flows(crowd: Crowd, acts: list[NamedAct], begin_s: float = 0.0) -> float:
    """Return when *acts* from *begin_s* end, as flows with the network to themselves."""
    alone, now, carried = crowd.empty(), begin_s, np.zeros(2)
    for act in acts:
        alone.advance(now)
        alone.begin(0, act, now, carried)
        now = alone.ends()[0]
    return now


@pytest.mark.parametrize("balancing", ["spray", "split", "ecmp"])
@pytest.mark.parametrize("part", ["flat", "pairwise", "2dh", "pxn", "node_limited", "deepep_ll"])
@pytest.mark.parametrize("reverse", [False, True])
def test_uniform_traffic_takes_the_closed_form(balancing: str, part: str, reverse: bool) -> None:
    net = network(balancing)
    messages = Messages(np.full((1, 8, 8), 10, np.int32), np.full((1, 8, 4), 15, np.int32), 16)
    closed = net.exchange(part, messages, 1e4, reverse)
    traffic = of_exchange(net, part, messages, 1e4, reverse, (np.array([3]), closed.loads))
    assert as_flows(Crowd(net), traffic.acts(3, 0), 1.0) - 1.0 == pytest.approx(closed.time_s[0], rel=1e-9)
    assert (traffic.loads(3, 0) == closed.loads[0]).all()


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("reduction", ["ring", "hierarchical_ring", "halving_doubling", "direct", "tree", "nvls"])
def test_all_reduces_take_the_closed_form(width: int, reduction: str) -> None:
    """One group at a time; a round that repeats is one long round."""
    net = Network(8, 2, CONSTANTS, FABRIC, CONSTANTS, reduction=reduction)
    for group in range(8 // width):
        size = np.where(np.arange(8 // width) == group, 3e6, 0.0)
        closed = net.all_reduce(size, width)
        traffic = of_reduction(net, size, width, closed.loads)
        assert as_flows(Crowd(net), traffic.acts(0, group * width)) == pytest.approx(closed.time_s[group], rel=1e-9)


@pytest.mark.parametrize("even", [True, False])
def test_all_gathers_send_the_bytes_of_the_closed_form(even: bool) -> None:
    net = network()
    sent = np.full(8, 1e6) if even else RNG.random(8) * 1e6
    closed = net.all_gather(sent)
    acts = of_gather(net, sent, closed.loads).acts(0, 0)
    loads, crowd = np.zeros(net.n_links), Crowd(net)
    for _, act in acts:
        act, flow, pieces = crowd._paths.of(act)
        loads += pieces.rows.loads(act.size[flow] * pieces.left, net.n_links)
    np.testing.assert_allclose(loads, closed.loads, rtol=1e-12)
    assert as_flows(crowd, acts) == pytest.approx(closed.time_s, rel=1e-9 if even else 0.02)


def differences(scenario: moesim.Scenario, steps: int) -> list[float]:
    """Return flows over closed form - 1 of every collective of some steps of *scenario*."""
    engine, found = Engine(prepare(scenario)), []
    costs = engine._islands[0].costs
    crowd, tp, once = Crowd(costs.network), scenario.parallelism.tp, costs.step

    def watched(batch: Any, half: int = 0) -> StepCost:
        cost = once(batch, half)
        for layer, phase in np.argwhere(cost.present & (SYNC != LOCAL)):
            for first in range(0, scenario.hardware.n_devices, tp if SYNC[phase] == GROUP else 10**6):
                if closed := cost.seconds[layer, phase, first]:
                    acts = [act for t in cost.traffic[PHASES[phase]] for act in t.acts(layer, first)]
                    found.append(as_flows(crowd, acts) / closed - 1)
        return cost

    costs.step = watched  # type: ignore[method-assign]
    while len(engine.steps()) < steps:
        engine.advance()
    return found


MEETING = {name: VARIANTS[name] for name in ("plain", "coherent", "coherent, hidden", "tensor parallel", "mixed steps",
                                             "mixed, coherent", "two nodes, ecmp", "node limited", "in rounds")}


@pytest.mark.parametrize("variant", MEETING)
def test_routed_traffic_takes_the_closed_form(variant: str) -> None:
    """Routed bytes differ from pair to pair, and so do the flows' shares: they are in proportion."""
    assert np.abs(differences(tiny(*MEETING[variant]), 4)).max() < 1e-9


@pytest.mark.parametrize("balancing, most", [("spray", 1e-9), ("ecmp", 1e-9), ("split", 0.05)])
@pytest.mark.parametrize("requests", [8, 96])
def test_routed_traffic_on_sixteen_devices(requests: int, balancing: str, most: float) -> None:
    """Two nodes of eight behind an oversubscribed fabric; a prompt on every other device, or six on each.

    ``split`` deals the flows there are, the closed form the pairs that there may be: found 3.2 % apart at most.
    """
    wide = ("hardware.nodes=2", "hardware.devices_per_node=8", "hardware.scale_out={efficiency: 0.9, startup: 20 us, "
            "ramp: 1 us}", "hardware.fabric={name: leaf_spine, leaves: 2, spines: 4, hosts_per_leaf: 8, "
            "link: 10 Gbit/s}", "scheduler.max_tokens=4096", f"balancing={balancing}",
            *(f"{where}.{what}" for where in ("model.moe", "trace.synthetic") for what in ("experts=32", "top_k=4")),
            *(f"{key}={requests}" for key in ("requests.concurrency", "requests.count", "scheduler.max_batch")))
    found = np.abs(differences(tiny(*wide), 4))
    assert len(found) >= 16 and found.max() < most


@given(seed=st.integers(0, 10_000), late=st.floats(0.0, 1.5), balancing=st.sampled_from(["spray", "split", "adaptive"]))
@settings(max_examples=25, deadline=None)
def test_sharing_takes_longer_and_no_longer_than_one_after_the_other(seed: int, late: float, balancing: str) -> None:
    """Two uniform all-to-alls, the second some time later: each at least its own time, together at most the sum."""
    net = network(balancing)
    sizes = np.random.default_rng(seed).random(2) * 1e6 + 1e5
    env, ends, alone = simpy.Environment(), [0.0, 0.0], [0.0, 0.0]
    room = Links(env, net)

    def run(i: int) -> simpy.events.ProcessGenerator:
        messages = Messages(np.full((1, 8, 8), sizes[i]))
        closed = net.exchange("flat", messages)
        traffic = of_exchange(net, "flat", messages, 1.0, False, (np.array([0]), closed.loads))
        alone[i] = closed.time_s[0]
        yield env.timeout(i * late * alone[0])
        yield room.start(Launch(alone[i], np.flatnonzero(closed.loads[0]), lambda: traffic.acts(0, 0)))
        ends[i] = env.now

    for i in (0, 1):
        env.process(run(i))
    env.run()
    begin = late * alone[0]
    assert ends[0] >= alone[0] * (1 - 1e-9) and ends[1] - begin >= alone[1] * (1 - 1e-9)
    if late >= 1:
        assert ends == [alone[0], begin + alone[1]]  # not together: the closed form, to the last digit
    assert max(ends) <= max(begin, alone[0]) + alone[1] + alone[0] * 1e-9


@pytest.mark.parametrize("variant", VARIANTS)
def test_halves_conserve(variant: str) -> None:
    """The tokens, and without replicas and tensor parallelism the bytes of every link, of the run without overlap."""
    whole, cut = (ran(*more, *VARIANTS[variant]) for more in (("detail=events",), HALVES))
    assert cut.spans["half"].max() == 1
    assert cut.requests["finish_s"].notna().all()
    assert cut.steps["decode_tokens"].sum() == whole.steps["decode_tokens"].sum()
    if variant not in ("tensor parallel", "poisson"):  # homes take turns inside a half; other arrivals, other batches
        for column in (c for c in whole.links if c.endswith("_bytes")):
            np.testing.assert_allclose(cut.links[column], whole.links[column], rtol=1e-12, err_msg=column)


@pytest.mark.parametrize("variant", VARIANTS)
def test_halves_share_a_processor_and_stay_in_order(variant: str) -> None:
    result = ran(*HALVES, *VARIANTS[variant])
    spans, steps = result.spans, result.steps
    busy = spans[spans["server"] == "processor"].sort_values(["device", "start_s", "end_s"])
    for _, mine in busy.groupby("device"):
        assert (mine["start_s"].to_numpy()[1:] >= mine["end_s"].to_numpy()[:-1] - 1e-15).all()
    for _, mine in spans.groupby(["step", "half", "device"]):  # in order of layer and phase: the last layer is -1
        assert (np.diff(mine["start_s"]) >= -1e-15).all()
    assert (spans["end_s"] <= spans["step"].map(steps["end_s"]) + 1e-15).all()
    phases = [c for c in steps if c.endswith("_s") and c not in ("start_s", "end_s")]
    assert (steps[phases].sum(axis=1) >= (steps["end_s"] - steps["start_s"]) * (1 - 1e-9)).all()
    assert (steps["wait_s"] >= 0).all()


def test_one_request_is_not_cut() -> None:
    one = ("requests.concurrency=1", *TWO_NODES)
    whole, cut = (moesim.simulate(tiny(*one, *more)) for more in (("detail=events",), HALVES))
    assert _digest(whole) == _digest(cut)


def test_communication_hides_behind_compute() -> None:
    """Kernels bound by FLOP/s cost as much in halves as whole: where the exchange takes as long, halves are faster."""
    heavy = ("kernels=roofline", "hardware.device.processor.bandwidth=1000 TB/s", *TWO_NODES,
             "hardware.device.processor.peak.bf16=1 GFLOP/s", "requests.prompt_tokens=16", "requests.output_tokens=1",
             "hardware.scale_out.startup=0 s", "hardware.fabric.link=10 Mbit/s")
    whole, cut = (moesim.simulate(tiny(*heavy, *more)).summary()["makespan_s"] for more in (("detail=events",), HALVES))
    assert cut < 0.95 * whole


def others(folder: Path, rows: list[tuple[int, int, float, float]], period: str) -> str:
    """Write a table of background flows (src, dst, bytes, start_s); return the override that runs them."""
    pd.DataFrame(rows, columns=["src", "dst", "bytes", "start_s"]).to_csv(folder / "others.csv", index=False)
    return f"background={{flows: {folder / 'others.csv'}, period: {period}}}"


@pytest.fixture
def at_home(tmp_path: Path) -> tuple[str, ...]:
    """Return the overrides of two nodes, each of which holds all experts: the job never uses a port."""
    replicas = np.zeros((2, 4, 4), bool)
    replicas[:, :, [0, 2]] = np.array([1, 1, 0, 0], bool)[:, None]
    replicas[:, :, [1, 3]] = np.array([0, 0, 1, 1], bool)[:, None]
    Placement(replicas, {}).save(tmp_path / "home.parquet")
    return (*TWO_NODES, "detail=events", f"placement={{path: {tmp_path / 'home.parquet'}}}")


@pytest.mark.parametrize("overlap", ["none", "two_batch"])
def test_background_on_other_links_does_not_matter(tmp_path: Path, at_home: tuple[str, ...], overlap: str) -> None:
    far = others(tmp_path, [(0, 2, 3e4, 0.0), (3, 1, 5e4, 1e-5)], "100 us")
    alone, among = (moesim.simulate(tiny(*at_home, f"overlap={overlap}", *more)) for more in ((), (far,)))
    assert alone.links.set_index("class").loc[["nic_out"], "bytes"].sum() == 0
    for table in ("requests", "steps", "spans", "links"):
        pd.testing.assert_frame_equal(getattr(alone, table), getattr(among, table), rtol=1e-9, obj=table)


@pytest.mark.parametrize("variant", MEETING)
def test_background_on_the_same_links_slows_down(tmp_path: Path, variant: str) -> None:
    n = tiny(*MEETING[variant]).hardware.n_devices
    ring = [(d, (d + n // 2) % n, 3e5, 0.0) for d in range(n)]
    runs = (ran("detail=events", *MEETING[variant]),
            *(moesim.simulate(tiny("detail=events", *MEETING[variant], others(tmp_path, ring, period)))
              for period in ("500 us", "300 us")))
    alone, among, often = (run.summary()["makespan_s"] for run in runs)
    assert alone < min(among, often)  # more often is not always slower: what counts is what they meet


def test_between_two_periods_the_closed_form_counts(tmp_path: Path) -> None:
    """Flows that are over before the first collective, and come again after the last, change nothing at all."""
    makespan = moesim.simulate(tiny("detail=events")).summary()["makespan_s"]
    early = others(tmp_path, [(0, 1, 10.0, 0.0)], f"{2 * makespan} s")
    alone, among = (moesim.simulate(tiny("detail=events", *more)) for more in ((), (early,)))
    assert _digest(alone) == _digest(among)


def test_background_catches_up_after_a_pause(tmp_path: Path) -> None:
    """Requests an hour apart: the flows of a billion periods are not run one by one."""
    (tmp_path / "requests.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,8,2\n3600.00001,8,2\n")
    rows = ("requests={kind: replay, path: " + str(tmp_path / "requests.csv") + "}", "detail=events",
            others(tmp_path, [(0, 1, 2e4, 0.0)], "4 us"))
    result = moesim.simulate(tiny(*rows))
    first, second = result.requests["e2e_s"]
    assert second == pytest.approx(first, rel=0.05)


@pytest.mark.slow
def test_the_same_in_every_process(tmp_path: Path, other_hash_seed: str) -> None:
    """Another process, with another hash seed, computes the same bytes: halves, background and routed sharing."""
    flows = others(tmp_path, [(0, 2, 3e4, 0.0), (3, 1, 5e4, 1e-5)], "100 us")
    overrides = [*HALVES, *TWO_NODES, *DENSE_LAYERS, "parallelism.tp=2", flows]
    program = ("import sys; sys.path.insert(0, sys.argv[1]); import moesim; "
               "from test_engine_laws import _digest, tiny; print(_digest(moesim.simulate(tiny(*sys.argv[2:]))))")
    command = [sys.executable, "-c", program, str(TINY.parent.parent / "laws"), *overrides]
    other = subprocess.run(command, capture_output=True, text=True, check=True, cwd=TINY.parent.parent.parent,
                           env={"PYTHONHASHSEED": other_hash_seed, "PATH": ""}).stdout
    assert other == _digest(moesim.simulate(tiny(*overrides))) + "\n"


def test_a_resolved_scenario_with_background_is_the_scenario(tmp_path: Path) -> None:
    scenario = tiny(*HALVES, others(tmp_path, [(0, 1, 1e3, 0.0)], "50 us"))
    first = moesim.simulate(scenario)
    again = moesim.load(first.save(tmp_path / "run") / "scenario.yaml")
    assert again == scenario
    assert _digest(moesim.simulate(again)) == _digest(first)


def test_a_timeline_has_a_row_for_each_half() -> None:
    """Spans of one row do not overlap, so that viewers can draw them."""
    events = [e for e in timeline(moesim.simulate(tiny(*HALVES, *TWO_NODES)).spans)["traceEvents"] if e["ph"] == "X"]
    table = pd.DataFrame(events).sort_values(["pid", "tid", "ts"])
    assert table["tid"].nunique() == 4
    for _, row in table.groupby(["pid", "tid"]):
        assert (row["ts"].to_numpy()[1:] >= (row["ts"] + row["dur"]).to_numpy()[:-1] - 1e-9).all()
