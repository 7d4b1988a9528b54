"""Pipelines: what holds for any model, machine and load."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moesim
from moesim import metrics
from moesim.sim import fleet
from moesim.sim.engine import Engine
from moesim.sim.inputs import prepare
from moesim.sim.pipeline import Pipeline

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
SIX = ("model.layers=6", "trace.synthetic.layers=6", "hardware.devices_per_node=4")
DENSE_LAYERS = ("model.layers=6", "model.moe.layers=1,3", "model.dense_ffn=96", "hardware.devices_per_node=4",
                "model.moe.shared_ffn=64")
NODES = ("hardware.devices_per_node=2", "hardware.nodes=4",
         "hardware.scale_out={efficiency: 0.9, startup: 20 us, ramp: 1 us}",
         "hardware.fabric={name: leaf_spine, leaves: 4, spines: 3, hosts_per_leaf: 2, link: 10 Gbit/s}")
VARIANTS = {
    "plain": SIX,
    "tensor parallel": (*SIX, "parallelism.tp=2"),
    "dense layers, shared experts": DENSE_LAYERS,
    "all-gather": (*SIX, "parallelism.dispatch=all_gather"),
    "stages of whole nodes": (*SIX, *NODES),
    "stages of whole nodes, all-gather, tp": (*SIX, *NODES, "parallelism.dispatch=all_gather", "parallelism.tp=2"),
    "several pipelines": (*SIX, *NODES, "parallelism.ep=2"),
    "balanced routing": (*SIX, "trace={balanced: true}"),
    "graphs, host": (*SIX, "engine.graphs=16", "engine.eager=50 us", "engine.step=20 us"),
}
MANY = ("requests.concurrency=12", "requests.count=24", "scheduler={name: vllm, max_tokens: 12}")


@cache
def run(*overrides: str) -> moesim.Result:
    return moesim.simulate(moesim.load(TINY, overrides))


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_engines_agree(variant: str) -> None:
    fast, slow = (run(*VARIANTS[variant], *MANY, "parallelism.pp=2", "span_steps=-1", f"detail={d}")
                  for d in ("steps", "events"))
    for table in ("requests", "steps", "spans", "links", "memory"):
        pd.testing.assert_frame_equal(getattr(fast, table), getattr(slow, table), rtol=1e-9)


@pytest.mark.parametrize(("variant", "pp"), [*((variant, 2) for variant in VARIANTS), ("plain", 4),
                                             ("dense layers, shared experts", 4), ("stages of whole nodes", 4)])
def test_stages_take_batches_one_by_one_and_in_order(variant: str, pp: int) -> None:
    """A batch begins in a stage when it has been sent there and the stage is done with the one before it."""
    result = run(*VARIANTS[variant], *MANY, f"parallelism.pp={pp}", "span_steps=-1")
    sends = result.spans[result.spans["phase"] == "send"].groupby(["step", "layer"])["end_s"].max()
    all_steps = result.steps.assign(island=result.steps.get("island", 0))
    for island, steps in all_steps.groupby("island"):
        steps = steps.sort_values("step")
        came = steps["start_s"].to_numpy()
        for stage in range(pp):
            begin, end = (steps[f"{what}_s_stage_{stage}"].to_numpy() for what in ("begin", "end"))
            free = np.concatenate([[0.0], end[:-1]])
            np.testing.assert_allclose(begin, np.maximum(came, free), rtol=1e-12)
            if stage + 1 < pp and all_steps["island"].nunique() == 1:
                came = sends.xs(sends.index.unique("layer")[stage], level="layer").to_numpy()
                assert (came > end).all() and len(came) == len(steps), island
            elif stage + 1 < pp:
                came = steps[f"begin_s_stage_{stage + 1}"].to_numpy()
        np.testing.assert_allclose(steps["end_s"], steps[f"end_s_stage_{pp - 1}"], rtol=1e-12)
        started = steps["start_s"].to_numpy()
        assert (started[pp:] >= steps["end_s"].to_numpy()[:-pp] * (1 - 1e-12)).all(), "at most pp batches under way"


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_are_their_phases_and_waiting(variant: str) -> None:
    steps = run(*VARIANTS[variant], *MANY, "parallelism.pp=2", "span_steps=-1").steps
    phases = [c for c in steps if c.endswith("_s") and c not in ("start_s", "end_s")]
    np.testing.assert_allclose(steps[phases].sum(axis=1), steps["end_s"] - steps["start_s"], rtol=1e-9)
    assert metrics.breakdown(steps).sum() == pytest.approx(1)


@pytest.mark.parametrize("variant", ["plain", "tensor parallel", "dense layers, shared experts", "all-gather"])
def test_one_user_pays_the_sends_and_gains_nothing(variant: str) -> None:
    """Stages of two devices: each step takes what it takes on two devices alone, and the sends."""
    alone, none = ("requests.concurrency=1", "requests.count=3"), "hardware.devices_per_node=2"
    staged, whole = run(*VARIANTS[variant], *alone, "parallelism.pp=2"), run(*VARIANTS[variant], *alone, none)
    assert len(staged.steps) == len(whole.steps)
    length = [(r.steps["end_s"] - r.steps["start_s"]).to_numpy() for r in (staged, whole)]
    np.testing.assert_allclose(length[0], length[1] + staged.steps["send_s"], rtol=1e-9)
    assert (staged.steps["send_s"] > 0).all() and staged.summary()["ttft_p50_s"] > whole.summary()["ttft_p50_s"]
    for phase in {c for c in whole.links if c.endswith("_bytes")} - {"bytes"}:  # on other links, as many in all
        assert staged.links[phase].sum() == pytest.approx(whole.links[phase].sum())
    sent = staged.steps[["prefill_tokens", "decode_tokens"]].sum().sum() * 2 * 64 * 2  # two tensors, hidden 64, bf16
    gathered = sent if variant == "tensor parallel" else 0  # by two: each gets the other's half
    assert staged.links["send_bytes"].sum() == pytest.approx(2 * (sent + gathered))  # out of a device and into one


def test_bytes_of_a_stage_are_on_its_links() -> None:
    """Stages of two nodes: what stage 1 sends between nodes leaves by the ports of its own devices, over its leaves."""
    result = run(*SIX, *NODES, *MANY, "parallelism.pp=2", "placement.solver=random")
    links = result.links.set_index("name")
    for phase in ("dispatch", "combine"):
        port = [links.loc[f"host{d}->leaf{d // 2}", f"{phase}_bytes"] for d in range(8)]
        assert min(port) > 0
        ups = [sum(links.loc[f"leaf{leaf}->spine{s}", f"{phase}_bytes"] for s in range(3)) for leaf in range(4)]
        assert ups == pytest.approx([port[d] + port[d + 1] for d in (0, 2, 4, 6)])
    assert [links.loc[f"host{d}->leaf{d // 2}", "send_bytes"] > 0 for d in range(8)] == [True] * 4 + [False] * 4
    assert [links.loc[f"leaf{d // 2}->host{d}", "send_bytes"] > 0 for d in range(8)] == [False] * 4 + [True] * 4


def test_many_users_get_the_rate_of_the_slowest_stage() -> None:
    """Throughput grows with the number of batches until the slowest stage is never idle."""
    requests = ("requests.count=16", "requests.output_tokens=8", "requests.prompt_tokens=1", "span_steps=0")
    rates, idle = [], []
    for users in (1, 2, 4, 8):  # a batch has one token: as many batches as users, four stages
        result = run(*SIX, *requests, f"requests.concurrency={users}", "parallelism.pp=4", "parallelism.ep=1",
                     "scheduler={name: vllm, max_tokens: 1}")
        rates.append(result.summary()["throughput_tok_per_s"])
        idle.append(metrics.stages(result.steps, result.summary()["makespan_s"])["idle_share"].min())
    assert rates[1] > 1.7 * rates[0] and rates[2] > 2.5 * rates[0] and rates[3] == pytest.approx(rates[2], rel=0.05)
    assert idle[0] > 0.6 and idle[-1] < 0.06


def test_one_stage_is_no_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of pipelines with a single stage gives what engines without stages give, column by column."""
    scenario = moesim.load(TINY, (*SIX, *MANY, "kv={block: 4, blocks: 9}"))
    plain = moesim.simulate(scenario)
    monkeypatch.setattr(fleet, "Island", Pipeline)
    staged = moesim.simulate(scenario)
    assert "end_s_stage_0" in staged.steps and plain.requests["preemptions"].sum() > 0
    for table in ("requests", "spans", "links", "memory"):
        pd.testing.assert_frame_equal(getattr(plain, table), getattr(staged, table), check_exact=True)
    pd.testing.assert_frame_equal(plain.steps, staged.steps[list(plain.steps)], check_exact=True)


SCHEDULERS = ("{name: vllm, max_tokens: %d, max_batch: %d}", "{name: vllm, max_tokens: %d, max_batch: %d}",
              "{name: vllm, chunked: false, max_tokens: %d, max_batch: %d}",
              "{name: prefill_first, reserve: false, max_tokens: %d, max_batch: %d}",
              "{name: prefill_first, prefill: mixed, max_tokens: %d, max_batch: %d}",
              "{name: decode_first, max_tokens: %d, max_batch: %d}", "{name: static, max_tokens: %d, max_batch: %d}")


@given(pp=st.sampled_from([2, 3]), scheduler=st.sampled_from(SCHEDULERS), tokens=st.integers(1, 40),
       batch=st.integers(1, 8), blocks=st.integers(7, 30), users=st.integers(1, 10), seed=st.integers(0, 99),
       output=st.integers(1, 9))
@settings(max_examples=12, deadline=None)
def test_everybody_is_served_once_and_nobody_is_in_two_batches(pp: int, scheduler: str, tokens: int, batch: int,
                                                              blocks: int, users: int, seed: int, output: int) -> None:
    """Whoever gets a token of a batch is in no batch behind it; tokens are computed once, but for preemption."""
    scenario = moesim.load(TINY, (
        "model.layers=3", "trace.synthetic.layers=3", "hardware.devices_per_node=6", f"parallelism.pp={pp}",
        f"scheduler={scheduler % (tokens, batch)}", f"kv={{block: 5, blocks: {blocks}}}", f"seed={seed}",
        f"requests.concurrency={users}", "requests.count=10", f"requests.output_tokens={output}", "span_steps=0"))
    run = Engine(prepare(scenario))
    (pipeline,) = run._islands
    while run.advance():
        flights = list(pipeline._flights)
        assert len(flights) <= pp
        for i, flight in enumerate(flights):
            later = [set(r.tolist()) for f in flights[i + 1:] for r, _ in f.planned]
            for stepped in flight.stepped:
                assert not any(set(stepped.tolist()) & others for others in later)
    live, steps = run._live, run.steps()
    assert live.produced.tolist() == live.output.tolist() and np.isfinite(live.finish_s).all()
    assert not pipeline.busy
    for group in pipeline.groups:
        assert group.pool.free == group.pool.capacity and group.promised == group.under_way == 0
    computed = int(steps["prefill_tokens"].sum() + steps["decode_tokens"].sum())
    assert computed >= live.stored.sum() if live.preemptions.any() else computed == live.stored.sum()
    makespan = float(live.finish_s.max())
    busy = metrics.stages(steps, makespan)
    assert busy["busy_s"].max() <= makespan * (1 + 1e-9)
    assert makespan <= (steps["end_s"] - steps["start_s"]).sum() * (1 + 1e-9)
