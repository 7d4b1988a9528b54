"""Laws of prefill and decode on different devices: KV that moves is KV that was computed, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moesim
from moesim.network import Network
from moesim.serving.apart import Decoding, Prefilling
from moesim.sim.engine import Engine
from moesim.sim.inputs import prepare

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
NODES = ("hardware.nodes=4", "hardware.scale_out={efficiency: 0.9, startup: 20 us, ramp: 1 us}",
         "hardware.fabric={name: leaf_spine, leaves: 4, spines: 2, hosts_per_leaf: 2, link: 10 Gbit/s, latency: 1 us}")
VARIANTS = {
    "one device each": ("disaggregation={devices: 1}",),
    "four nodes": ("disaggregation={devices: 2}", *NODES),
    "unequal groups": ("disaggregation={devices: 4, parallelism: {tp: 2}}", *NODES),
    "engines alone": ("disaggregation={devices: 4, parallelism: {tp: 2, ep: 2}}", "parallelism.ep=2", *NODES),
    "little memory": ("disaggregation={devices: 1}", "kv={block: 4, blocks: 9}", "scheduler=vllm"),
    "vllm, asynchronous": ("disaggregation={devices: 4}", *NODES, "scheduler={name: vllm, max_tokens: 16}",
                           "engine.asynchronous=true", "kv={block: 4, blocks: 9}", "request_router=fewest_requests"),
    "hashed paths": ("disaggregation={devices: 4}", *NODES, "balancing=ecmp", "request_router=round_robin"),
    "poisson": ("disaggregation={devices: 2, request_router: round_robin}", *NODES,
                "requests={kind: poisson, rate: 3000 /s, count: 9, prompt_tokens: 8, output_tokens: {low: 1, high: 5}}"
                ),
    "layer by layer": ("disaggregation={devices: 4, overlap: layers, parallelism: {tp: 2}}", *NODES,
                       "scheduler={name: vllm, max_tokens: 16}"),
}


def tiny(*overrides: str) -> moesim.Scenario:
    return moesim.load(TINY, ("requests.output_tokens={low: 1, high: 8}", *overrides))


def checked(scenario: moesim.Scenario) -> moesim.Result:
    """Run *scenario* and check what holds of every run."""
    engine = Engine(prepare(scenario))
    result = engine.run()
    for fleet in engine._fleets:  # all memory has come back
        for group in fleet.groups:
            assert isinstance(group, Prefilling | Decoding) and group.n_kept == group.n_waiting == group.promised == 0
            assert group.pool.free == group.pool.capacity and len(group.running) == 0
    table, steps = result.requests, result.steps
    moved = table["output_tokens"] > 1
    assert table["finish_s"].notna().all() and (moved == table["transfer_end_s"].notna()).all()
    for earlier, later in (("arrival_s", "first_token_s"), ("first_token_s", "transfer_end_s"),
                           ("transfer_start_s", "transfer_end_s"), ("transfer_end_s", "finish_s")):
        assert (table.loc[moved, later] >= table.loc[moved, earlier]).all(), later
    front, back = (steps[steps["pool"] == pool] for pool in ("prefill", "decode"))
    assert (front["decode_tokens"] == 0).all()
    if table["preemptions"].sum() == 0:
        assert (back["prefill_tokens"] == 0).all()
        assert front["prefill_tokens"].sum() == table["prompt_tokens"].sum() - table["cached_tokens"].sum()
        assert back["decode_tokens"].sum() == (table["output_tokens"] - 1).sum()
    for _, mine in steps.groupby("island"):
        assert (mine["start_s"].to_numpy()[1:] >= mine["end_s"].to_numpy()[:-1]).all()
    if scenario.disaggregation.overlap == "none":  # type: ignore[union-attr]
        assert (table.loc[moved, "transfer_start_s"] >= table.loc[moved, "first_token_s"]).all()
        # who decodes looks between two steps
        assert set(table.loc[moved, "transfer_start_s"]) <= set(back["end_s"]) | set(table["first_token_s"])
    return result


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_lost_and_both_engines_agree(variant: str) -> None:
    scenario = tiny(*VARIANTS[variant])
    result = checked(scenario)
    events = moesim.simulate(moesim.override(scenario, ("detail=events",)))
    for table in ("requests", "steps", "spans", "links", "memory"):
        pd.testing.assert_frame_equal(getattr(result, table), getattr(events, table), rtol=1e-9, obj=table)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_moves_is_the_kv_of_prompts(variant: str) -> None:
    scenario = tiny(*VARIANTS[variant])
    result = moesim.simulate(scenario)
    bytes_of = result.links.groupby("class")["kv_transfer_bytes"].sum()
    moved = result.requests.loc[result.requests["output_tokens"] > 1, "prompt_tokens"].sum()
    wanted = moved * scenario.model.kv_bytes_per_token  # two KV heads, at most two devices: nothing is kept twice
    out = bytes_of["nic_out"] if scenario.hardware.nodes > 1 else bytes_of["scale_up_out"]
    into = bytes_of["nic_in"] if scenario.hardware.nodes > 1 else bytes_of["scale_up_in"]
    assert out == pytest.approx(wanted, rel=1e-12) and into == pytest.approx(wanted, rel=1e-12)


@given(seed=st.integers(0, 1000), blocks=st.integers(8, 24), scheduler=st.sampled_from(["vllm", "prefill_first"]),
       rate=st.sampled_from([500, 3000, 30000]), devices=st.sampled_from([2, 4, 6]), late=st.booleans())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_laws_hold_of_random_runs(seed: int, blocks: int, scheduler: str, rate: int, devices: int, late: bool) -> None:
    checked(tiny(
        *NODES, f"disaggregation={{devices: {devices}, parallelism: {{ep: 2}}}}", "parallelism.ep=2", f"seed={seed}",
        f"scheduler={{name: {scheduler}, max_batch: 3, max_tokens: 16}}", f"kv={{block: 4, blocks: {blocks}}}",
        f"engine.asynchronous={str(late).lower()}",
        f"requests={{kind: poisson, rate: {rate} /s, count: 14, prompt_tokens: {{low: 2, high: 24}}, "
        f"output_tokens: {{low: 1, high: 8}}}}"))


def test_links_without_delay_take_no_time() -> None:
    free = ("hardware.scale_up.bandwidth=1e30 B/s", "hardware.scale_up.startup=0 s", "hardware.scale_up.ramp=0 s")
    table = moesim.simulate(tiny("disaggregation={devices: 1}", *free)).requests
    took = (table["transfer_end_s"] - table["transfer_start_s"]).dropna()
    assert len(took) and took.max() < 1e-15


def test_an_unloaded_prefill_pool_is_that_pool_alone() -> None:
    """Requests far apart: time to first token is that of the devices that prefill, without any others."""
    apart = "requests={kind: poisson, rate: 1 /s, count: 6, prompt_tokens: {low: 8, high: 24}, output_tokens: 4}"
    both = moesim.simulate(tiny("disaggregation={devices: 4}", *NODES, apart)).requests
    alone = moesim.simulate(tiny(*NODES, "hardware.nodes=2", apart)).requests
    np.testing.assert_allclose(both["ttft_s"], alone["ttft_s"], rtol=1e-9)


def test_the_longer_the_links_the_later_the_second_token_alone() -> None:
    """At one request at a time, the second token is late by what its prompt's KV takes on slower links."""
    apart = ("disaggregation={devices: 1}", "requests.concurrency=1", "requests.output_tokens=3")
    fast, slow = (moesim.simulate(tiny(*apart, f"hardware.scale_up.bandwidth={b}", "hardware.scale_up.ramp=0 s")
                                  ).requests for b in ("10 GB/s", "1 GB/s"))
    more = fast["prompt_tokens"] * tiny(*apart).model.kv_bytes_per_token / (0.8e9) * (1 - 0.1)
    late = (slow["finish_s"] - slow["arrival_s"]) - (fast["finish_s"] - fast["arrival_s"])
    np.testing.assert_allclose(late, more, rtol=1e-6)
    np.testing.assert_allclose(slow["ttft_s"], fast["ttft_s"], rtol=1e-9)


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_transfers_are_flows_that_begin_when_they_did(concurrency: int) -> None:
    """All transfers of a run at once, as flows between devices: they end when they did as the run went along."""
    flat = tuple(f"hardware.{domain}.{what}" for domain, what in (
        ("scale_up", "startup=0 s"), ("scale_up", "ramp=0 s"), ("scale_out", "startup=0 s"), ("scale_out", "ramp=0 s")))
    scenario = tiny("disaggregation={devices: 4, parallelism: {ep: 2}}", "parallelism.ep=2", *NODES, *flat,
                    "hardware.fabric.link=20 Mbit/s", f"requests.concurrency={concurrency}", "requests.count=24")
    table = moesim.simulate(scenario).requests.dropna(subset="transfer_end_s")
    flows = pd.DataFrame({"src": table["prefill_group"], "dst": table["group"], "start_s": table["transfer_start_s"],
                          "bytes": table["prompt_tokens"] * scenario.model.kv_bytes_per_token})
    slow = flows.assign(bytes=flows["bytes"] / 0.9)  # efficiency
    done = moesim.network.run_flows(Network.of(scenario.hardware), slow.reset_index(drop=True), balancing="spray")
    np.testing.assert_allclose(done["finish_s"], table["transfer_end_s"], rtol=1e-9)
    together = sum((table["transfer_start_s"] < end) & (table["transfer_end_s"] > start) for start, end in zip(
        table["transfer_start_s"], table["transfer_end_s"], strict=True))
    assert (together.max() > 1) == (concurrency > 1)


def test_layers_are_there_no_later_than_all_at_once() -> None:
    """One request at a time on slow links: what overlaps is at most all but the last layer."""
    slow = ("disaggregation={devices: 1}", "requests.concurrency=1", "hardware.scale_up.ramp=0 s",
            "hardware.scale_up.bandwidth=100 MB/s")
    scenario = tiny(*slow)
    whole, layers = (moesim.simulate(moesim.override(scenario, (f"disaggregation.overlap={o}",))).requests.dropna()
                     for o in ("none", "layers"))
    saved = whole["e2e_s"] - layers["e2e_s"]
    most = whole["prompt_tokens"] * scenario.model.kv_bytes_per_token / 0.8e8 / scenario.model.layers
    assert len(saved) and (saved > 0).all() and (saved <= most * (1 + 1e-9)).all()


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (moesim.simulate(tiny(*VARIANTS["vllm, asynchronous"])) for _ in range(2))
    pd.testing.assert_frame_equal(first.requests, second.requests, check_exact=True)
    pd.testing.assert_frame_equal(first.links, second.links, check_exact=True)
