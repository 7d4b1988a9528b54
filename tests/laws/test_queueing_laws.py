"""Laws of whole runs with queues: conservation, causality, Little's law, and the wait that queueing theory knows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine_laws import TWO_NODES, tiny

import moesim
from moesim import registry

DENSE = ("trace=null", "placement=null", "model.moe=null", "model.dense_ffn=64")
VLLM = "scheduler={name: vllm, max_batch: 3, max_tokens: 16}"
SCARCE = "kv={block: 2, blocks: 18}"  # the longest request of tiny needs 14
POISSON = "requests={kind: poisson, rate: 6000 /s, count: 14, prompt_tokens: {low: 1, high: 24}, output_tokens: 5}"
USERS = "requests={kind: closed_loop, concurrency: 5, count: 14, prompt_tokens: {low: 1, high: 24}, output_tokens: 5}"
MACHINES = {
    "one island": (), "two islands": ("parallelism.ep=1",),
    "two nodes, each an island": (*TWO_NODES, "parallelism.ep=2", "kv.blocks=14"),
    "dense": DENSE, "dense, tensor parallel": (*DENSE, "parallelism.tp=2", *TWO_NODES),
    "coherent": ("parallelism.mode=context_coherent",)}


def obeys(result: moesim.Result, concurrency: int | None = None) -> None:
    """Assert what holds in every run."""
    requests, steps = result.requests, result.steps
    assert (requests["scheduled_s"] >= requests["arrival_s"]).all(), "nobody runs before it comes"
    for earlier, later in (("scheduled_s", "first_token_s"), ("first_token_s", "finish_s")):
        assert (requests[later] >= requests[earlier]).all()
    assert requests["arrival_s"].is_monotonic_increasing
    islands = steps.groupby(steps["island"] if "island" in steps else np.zeros(len(steps)))
    for _, mine in islands:
        assert (mine["start_s"].to_numpy()[1:] >= mine["end_s"].to_numpy()[:-1]).all()
    # every token of a prompt or an answer is computed once, but the last of an answer, which nobody reads; preempted
    # requests compute at least the first again, and all that they had at most
    once = (requests["prompt_tokens"] + requests["output_tokens"] - 1).sum()
    more = steps[["prefill_tokens", "decode_tokens"]].to_numpy().sum() - once
    stored = requests["prompt_tokens"] + requests["output_tokens"] - 1
    assert requests["preemptions"].sum() <= more + 1e-9 and more <= (requests["preemptions"] * stored).sum()
    assert (result.memory["kv_peak_bytes"] <= result.memory["kv_capacity_bytes"]).all()
    if concurrency is not None:
        begin, end = requests["arrival_s"].to_numpy(), requests["finish_s"].to_numpy()
        at = [((begin <= t) & (t < end)).sum() for t in begin]
        assert max(at) <= concurrency


@pytest.mark.parametrize("router", registry.names("request_router"))
@pytest.mark.parametrize("scheduler", registry.names("scheduler"))
def test_every_scheduler_with_every_router(scheduler: str, router: str) -> None:
    """On two engines with little memory; requests of users, and at random times."""
    made = f"scheduler={{name: {scheduler}, max_batch: 3, max_tokens: 16}}"
    knows = getattr(registry.find("scheduler", scheduler), "knows_experts", False)
    machine = (*(MACHINES["two islands"] if knows else DENSE), made, SCARCE, f"request_router={router}", "span_steps=0")
    for requests, users in ((USERS.replace("14", "9"), 5), (POISSON.replace("14", "9"), None)):
        obeys(moesim.simulate(tiny(*machine, requests)), users)


@pytest.mark.parametrize("machine", MACHINES)
def test_both_clocks_agree_on_chunks_and_preemption(machine: str) -> None:
    runs = [moesim.simulate(tiny(VLLM, SCARCE, POISSON, *MACHINES[machine], f"detail={detail}"))
            for detail in ("steps", "events")]
    obeys(runs[0])
    assert runs[0].requests["preemptions"].sum() > 0 or "coherent" in machine
    assert (runs[0].steps["prefill_tokens"] > 0)[1:].any()
    for table in ("requests", "steps", "spans", "links", "memory"):
        pd.testing.assert_frame_equal(*(getattr(run, table) for run in runs), rtol=1e-9, obj=table)


@given(seed=st.integers(0, 10_000), machine=st.sampled_from(sorted(MACHINES)), rate=st.sampled_from([4000, 40_000]),
       batch=st.integers(1, 4), tokens=st.integers(2, 40), blocks=st.integers(14, 40), ahead=st.booleans())
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
def test_random_runs(seed: int, machine: str, rate: int, batch: int, tokens: int, blocks: int, ahead: bool) -> None:
    poisson = (f"requests={{kind: poisson, rate: {rate} /s, count: 8, prompt_tokens: {{low: 1, high: 24}}, "
               "output_tokens: {low: 1, high: 5}}")
    scheduler = f"scheduler={{name: vllm, max_batch: {batch}, max_tokens: {tokens}}}"
    obeys(moesim.simulate(tiny(*MACHINES[machine], f"seed={seed}", "span_steps=0", scheduler, poisson,
                               f"engine.asynchronous={ahead}", f"kv={{block: 2, blocks: {blocks}}}")))


@pytest.mark.parametrize("scheduler", ["prefill_first", "static", "decode_first"])
def test_room_for_all_of_it_means_no_preemption(scheduler: str) -> None:
    made = f"scheduler={{name: {scheduler}, max_batch: 3, max_tokens: 16}}"
    assert moesim.simulate(tiny(made, SCARCE, POISSON)).requests["preemptions"].sum() == 0


def test_memory_for_all_who_run_means_no_preemption() -> None:
    """More memory may preempt more (test_vllm_by_hand), but not where the ``max_batch`` longest fit: 3 x 14 blocks."""
    counts = [int(moesim.simulate(tiny(VLLM, POISSON, f"kv={{block: 2, blocks: {n}}}")).requests["preemptions"].sum())
              for n in (14, 18, 42, 60)]
    assert counts[1] > 0 and counts[2:] == [0, 0]


def test_littles_law() -> None:
    """Six users: requests in the engine are throughput times the time that each spends there.

    Users have one request each all the time, but in the last of 40 rounds; and steps record as many as requests say.
    """
    loop = ("requests={kind: closed_loop, concurrency: 6, count: 240, prompt_tokens: {low: 1, high: 24}, "
            "output_tokens: 4}")
    result = moesim.simulate(tiny(*DENSE, "hardware.devices_per_node=1", VLLM, SCARCE, loop, "span_steps=0"))
    requests, steps, makespan = result.requests, result.steps, result.summary()["makespan_s"]
    assert requests["preemptions"].sum() > 0
    spent = requests["e2e_s"].mean()
    assert len(requests) / makespan * spent == pytest.approx(6, rel=0.02)
    present = ((steps["running"] + steps["waiting"]) * (steps["end_s"] - steps["start_s"])).sum()
    assert present == pytest.approx(requests["e2e_s"].sum(), rel=1e-9)  # they come as a step ends
    # the same of the queue alone: users wait for memory and for their turn
    waited = requests["scheduled_s"] - requests["arrival_s"]
    assert waited.sum() <= (steps["waiting"] * (steps["end_s"] - steps["start_s"])).sum() + 1e-9


@pytest.mark.parametrize(("scheduler", "load"), [("vllm", 0.5), ("static", 0.7)])
def test_one_at_a_time_waits_as_long_as_queueing_theory_says(scheduler: str, load: float) -> None:
    """M/D/1: requests at random times, each S seconds alone; the mean wait is load / (1 - load) S / 2.

    Batches of 100 requests are nearly independent; the mean of all lies within four of their standard errors.
    """
    one = (*DENSE, "hardware.devices_per_node=1", f"scheduler={{name: {scheduler}, max_batch: 1}}", "span_steps=0")
    lengths = "prompt_tokens: 8, output_tokens: 1"
    alone = moesim.simulate(tiny(*one, f"requests={{kind: closed_loop, concurrency: 1, count: 1, {lengths}}}"))
    seconds = alone.summary()["makespan_s"]
    count = 1200
    requests = moesim.simulate(tiny(*one, f"requests={{kind: poisson, rate: {load / seconds} /s, count: {count}, "
                                          f"{lengths}}}")).requests
    assert (requests["finish_s"] - requests["scheduled_s"]).to_numpy() == pytest.approx(seconds)
    waits = (requests["scheduled_s"] - requests["arrival_s"]).to_numpy()
    expected = load / (1 - load) * seconds / 2
    error = waits.reshape(-1, 100).mean(axis=1).std(ddof=1) / np.sqrt(count / 100)
    assert error < 0.2 * expected and abs(waits.mean() - expected) < 4 * error
    busy = count * seconds / requests["finish_s"].max()
    assert busy == pytest.approx(load, rel=0.1)
    assert (waits > 0).mean() == pytest.approx(load, abs=0.07)  # who comes at random finds it busy as often as it is
