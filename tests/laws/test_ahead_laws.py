"""Laws of what the engine fetches ahead of use: hits are those of a replay with the same forecasts; time only waits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_offload_laws import Asked, tiny

import moesim
from moesim import registry
from moesim.memory import events_of
from moesim.memory.events import of_choices
from moesim.memory.foresight import Foresight
from moesim.memory.job import Forecast
from moesim.memory.setup import Options, job_of

ONE = ("hardware.devices_per_node=1", "trace.profile_fraction=0.4", "scheduler.prefill=mixed")
PARTS = ["oracle", "{name: next_layer_gate, recall: 0.7, precision: 0.5}", "{name: rpp, recall: 0.6, horizon: 2}",
         "{name: rpp, recall: 1.0}"]


@pytest.mark.parametrize(("part", "scope", "policy"), [
    (PARTS[0], "layer", "lru"), (PARTS[1], "global", "lru"), (PARTS[1], "layer", "random"),
    (PARTS[2], "global", "plec"), (PARTS[3], "global", "least_stale")])
def test_the_engine_hits_what_a_replay_hits_with_the_same_forecasts(
        part: str, scope: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One device: what was expected of every step, in a replay of these steps, loads and hits the same."""
    told: list[Forecast] = []
    of = Foresight.of
    monkeypatch.setattr(Foresight, "of", lambda *args: told.extend(found := of(*args)) or found)
    capacity = 4 if scope == "layer" else 9
    scenario = tiny(*ONE, f"cache={{capacity: {capacity}, scope: {scope}, policy: {policy}, overflow: stream, "
                          f"prefetcher: {part}}}")
    ran = Asked(scenario, monkeypatch)
    events = of_choices(ran.inputs.trace, ran.inputs.trace.chosen, ran.passes)
    job = job_of(events, "event", capacity, Options(scope=scope, overflow="stream"), scenario.seed)
    ends = np.cumsum([len(one.keys) for one in told])
    starts = np.concatenate([[0], *(one.starts[1:] + end - len(one.keys) for one, end in zip(told, ends, strict=True))])
    expected = Forecast(starts, np.concatenate([one.keys for one in told]), told[0].horizon)
    job = replace(job, forecast=expected)
    found, steps = job.play(scenario.cache.policy.rule(job), hits=True), ran.result.steps
    of_step = np.repeat(events.step, np.diff(events.starts))
    assert steps["expert_misses"].tolist() == np.bincount(of_step[found.hit == 0], minlength=len(steps)).tolist()
    size = scenario.model.expert_bytes
    assert steps["prefetched_bytes"].sum() == found.counts[:, 2].sum() * size
    assert steps["unused_ahead"].sum() == found.counts[:, 4].sum()
    assert steps["fetched_bytes"].sum() == found.counts[:, 1:3].sum() * size == ran.result.memory["fetched_bytes"].sum()


@pytest.mark.parametrize("seed", range(2))
def test_exact_forecasts_never_make_a_step_longer(seed: int) -> None:
    """One device, caches of layers that hold what a step uses, one layer ahead: the same copies, asked for earlier.

    They begin before what they would begin with, none is wrong, and a byte costs its link more than the memory.
    """
    cache = "cache={{capacity: 9, prefetcher: {}}}"
    more = (*ONE, f"seed={seed}", "requests.concurrency=2", "requests.prompt_tokens={low: 2, high: 3}")
    late, ahead, whole = (
        moesim.simulate(tiny(*more, cache.format(part), bandwidth="5 GB/s")).steps
        for part in ("none", "{name: next_layer_gate, recall: 1.0}", "{name: rpp, recall: 1.0, horizon: 2}"))
    assert late["fetched_bytes"].tolist() == ahead["fetched_bytes"].tolist()
    assert (ahead["fetch_s"] <= late["fetch_s"] * (1 + 1e-12)).all()
    assert whole["fetch_s"].sum() < ahead["fetch_s"].sum() < 0.95 * late["fetch_s"].sum()  # of whole, other ties go


def test_wrong_guesses_are_drawn_anew_in_each_pass_and_known_from_other_requests() -> None:
    """Expert 0 is used; the profile knows 5 alone. Half of the passes expect 0, the others 5 in its place."""
    fit = events_of(moesim.RoutingTrace.from_arrays(np.full((3, 1, 1), 5), 8, 1))
    tokens, part = np.eye(8, dtype=np.int64)[0], registry.make("prefetcher", {"name": "rpp", "recall": 0.5})

    def guesses(seed: int) -> list[list[int]]:
        foresight = Foresight(part, np.ones((1, 1, 8)), None, fit, seed)
        return [foresight.of(tokens, np.zeros(0, np.int64))[0].keys.tolist() for _ in range(200)]

    drawn = guesses(0)
    assert {tuple(one) for one in drawn} == {(0,), (5,)} and 70 < drawn.count([0]) < 130
    assert drawn == guesses(0) != guesses(1)


@pytest.mark.parametrize("miss", ["fetch", "low_precision"])
@pytest.mark.parametrize(("link", "more"), [
    ("per: device", ()), ("per: node, setup: 3 us", ()), ("lanes: 3, half: 2.0", ()),
    ("per: node, half: 1.0", ("parallelism.dispatch=replicated", "parallelism.tp=2", "parallelism.expert_tp=2"))])
def test_expecting_nothing_is_fetching_on_demand(link: str, more: tuple[str, ...], miss: str) -> None:
    """The recurrence, with nothing ahead of use, against the closed form of ``moesim.sim.copying``."""
    host = ("hardware.host=[{name: host, capacity: 1 GB, bandwidth: 1.5 GB/s, "
            f"link: {{bandwidth: 1 GB/s, {link}}}}}]")
    cache = f"capacity: 2, overflow: stream, miss: {miss}"
    some, none = (moesim.simulate(tiny(host, f"cache={{{cache}, prefetcher: {part}}}", *more)).steps
                  for part in ("{name: rpp, recall: 0.0}", "none"))
    pd.testing.assert_frame_equal(some[none.columns], none, rtol=1e-9)
    assert none["fetch_s"].min() > 0 and some["prefetched_bytes"].max() == 0


def test_a_link_of_no_time_waits_for_nothing() -> None:
    fast = ("hardware.device.memory=[{name: hbm, capacity: 1 GB, bandwidth: 1e12 PB/s}]",)
    for part in ("oracle", "{name: rpp, recall: 0.5}"):
        steps = moesim.simulate(tiny(f"cache={{capacity: 2, overflow: stream, prefetcher: {part}}}", *fast,
                                     bandwidth="1e12 PB/s")).steps
        assert steps["fetch_s"].max() < 1e-12 and steps["prefetched_bytes"].sum() > 0


NVME = ("hardware.host=[{{name: host, capacity: 1 GB, bandwidth: 1 TB/s, link: {{bandwidth: 2 GB/s}}}}, "
        "{{name: nvme, capacity: 1 GB, bandwidth: {nvme}, link: {{bandwidth: {nvme}, per: node}}}}]")


@pytest.mark.parametrize("part", ["none", "{name: next_layer_gate, recall: 0.8}"])
def test_a_host_with_room_for_all_is_as_one_tier_once_it_has_all(part: str) -> None:
    two = tiny(NVME.format(nvme="1 GB/s"), f"cache={{capacity: 2, overflow: stream, prefetcher: {part}, "
                                           "below: {capacity: 100%}}")
    one = tiny(NVME.format(nvme="1 GB/s"), f"cache={{capacity: 2, overflow: stream, prefetcher: {part}}}")
    both, alone = moesim.simulate(two).steps, moesim.simulate(one).steps
    assert both["expert_misses"].tolist() == alone["expert_misses"].tolist()
    warm = both["host_misses"] == 0
    assert warm.any() and not warm.all() and both["host_misses"].sum() <= 24
    if part == "none":
        assert both["fetch_s"][warm].tolist() == pytest.approx(alone["fetch_s"][warm].tolist())
    assert (both["fetch_s"][~warm] > alone["fetch_s"][~warm]).all()


@pytest.mark.parametrize("part", ["none", "{name: rpp, recall: 0.5, horizon: 2}, prefetch_chunk: 1 kB"])
def test_both_engines_agree_on_lower_tiers(part: str) -> None:
    steps, events = (moesim.simulate(tiny(
        NVME.format(nvme="0.2 GB/s"), f"detail={d}", f"cache={{capacity: 2, overflow: stream, prefetcher: {part}, "
        "below: {capacity: 6}}")) for d in ("steps", "events"))
    for table in ("requests", "steps", "spans", "memory"):
        pd.testing.assert_frame_equal(getattr(steps, table), getattr(events, table), rtol=1e-9, obj=table)


def test_what_a_node_has_in_common_is_said() -> None:
    def said(*more: str) -> list[str]:
        notes = moesim.simulate(tiny("cache={capacity: 2, overflow: stream}", *more)).meta["warnings"]
        return [note for note in notes if "to themselves" in note]

    assert not said()
    assert len(said("parallelism.ep=1")) == 1 and "islands of a node" in said("parallelism.ep=1")[0]
    apart = said("disaggregation={devices: 1}", "scheduler={name: vllm, max_batch: 4, max_tokens: 64}")
    assert len(apart) == 1 and "devices that prefill and those that decode are in one node" in apart[0]


def test_an_expert_that_devices_share_is_late_once() -> None:
    """Two devices have half of each expert, and both wait for it."""
    shared = ("parallelism.tp=2", "parallelism.dispatch=replicated", "parallelism.expert_tp=2")
    steps = moesim.simulate(tiny("cache={capacity: 100%, prefetcher: {name: rpp, recall: 1.0}}", *shared,
                                 bandwidth="0.1 GB/s")).steps
    assert steps["late_ahead"].sum() > 0 and (steps["late_ahead"] <= steps["expert_hits"]).all()


def test_islands_without_requests_have_caches_too() -> None:
    """One request at a time: the second island's devices never step."""
    cache = "cache={capacity: 2, overflow: stream, below: {capacity: 6}}"
    ran = moesim.simulate(tiny(NVME.format(nvme="1 GB/s"), cache, "parallelism.ep=1", "requests.concurrency=1",
                               "requests.count=1"))
    assert (ran.memory["from_nvme_bytes"] > 0).tolist() == [True, False]
