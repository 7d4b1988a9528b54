"""Laws of expert caches in the engine: their hits are those of a replay, and what costs nothing changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moesim
from moesim import registry
from moesim.memory import CacheError, Events, events_of, replay
from moesim.memory.events import Passes, of_choices
from moesim.memory.live import LiveCache
from moesim.memory.setup import Options, job_of
from moesim.sim import offload
from moesim.sim.cost import Batch, StepCost
from moesim.sim.engine import Engine
from moesim.sim.inputs import prepare

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
HOST = ("hardware.host=[{{name: host, capacity: 1 GB, bandwidth: 1e12 PB/s, "
        "link: {{bandwidth: {bandwidth}, per: {per}}}}}]")
WIDE = ("model.moe.experts=12", "trace.synthetic.experts=12", "model.moe.top_k=3", "trace.synthetic.top_k=3")
LOOK_BACK = ["lru", "lfu", "{name: lfu, counts: sequence}", "lfru", "least_stale", "fld", "random", "plec", "static",
             "{name: hobbit, weights: [0.4, 0.4, 0.0, 0.2]}"]


def tiny(*overrides: str, bandwidth: str = "10 GB/s", per: str = "device") -> moesim.Scenario:
    return moesim.load(TINY, (HOST.format(bandwidth=bandwidth, per=per), "span_steps=-1", *WIDE, *overrides))


HALF = "{name: rpp, recall: 0.5, horizon: 2}"


class Asked:
    """Run *scenario* and write down the trace rows and the experts in use of every step."""

    def __init__(self, scenario: moesim.Scenario, monkeypatch: pytest.MonkeyPatch):
        self.rows, self.fresh, self.used, put = [], [], [], offload.Offload.put

        def noting(here: offload.Offload, cost: StepCost, batch: Batch, now: float) -> None:
            self.rows.append(batch.rows)
            self.fresh.append(len(batch.decode) == 0 and not batch.prefill_past.any())
            self.used.append(cost.expert_tokens > 0)  # [M, D, slots]
            put(here, cost, batch, now)

        self.inputs = prepare(scenario)
        with monkeypatch.context() as patched:
            patched.setattr(offload.Offload, "put", noting)
            self.result = Engine(self.inputs).run()

    @property
    def passes(self) -> Passes:
        starts = np.append(0, np.cumsum([len(rows) for rows in self.rows]))
        return Passes(np.concatenate(self.rows), starts, np.array(self.fresh, np.uint8))


@pytest.mark.parametrize(("capacity", "scope", "policy"), [
    ("50%", "layer", "lru"), (9, "global", "lru"), ("100 kB", "layer", "lru"),
    *[case for policy in LOOK_BACK for case in ((3, "layer", policy), ("100 kB", "global", policy))]])
def test_the_engine_hits_what_a_replay_hits(capacity: int | str, scope: str, policy: str,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """One device: the steps of the run, replayed as passes of the trace, hit and miss the same, step by step."""
    scenario = tiny("hardware.devices_per_node=1", "trace.profile_fraction=0.4", "scheduler.prefill=mixed", (
        f"cache={{capacity: {capacity}, scope: {scope}, policy: {policy}, overflow: stream}}"))
    ran = Asked(scenario, monkeypatch)
    trace, profile = ran.inputs.trace, ran.inputs.profile
    events = of_choices(trace, trace.chosen, ran.passes)
    fit = {"fit": events_of(profile)} if policy == "static" else {}
    setup = {"scope": scope, "overflow": "stream", "expert_bytes": scenario.model.expert_bytes} | fit
    found = replay(events, scenario.cache.policy, capacity, seed=scenario.seed, **setup)
    job, steps = job_of(events, "event", capacity, Options(**setup), scenario.seed), ran.result.steps
    missed = job.play(scenario.cache.policy.rule(job), hits=True).hit == 0
    of_step = np.repeat(events.step, np.diff(events.starts))
    assert steps["expert_misses"].tolist() == np.bincount(of_step[missed], minlength=len(steps)).tolist()
    assert (steps["expert_hits"].sum(), steps["expert_misses"].sum()) == (found.hits, found.misses)
    assert found.hits > 0 and found.misses > 24  # more than first loads
    assert steps["fetched_bytes"].sum() == found.moved_bytes == ran.result.memory["fetched_bytes"].sum()


@given(seed=st.integers(0, 100), capacity=st.integers(1, 6), policy=st.sampled_from(["lru", "lfu", "random", "fld"]),
       scope=st.sampled_from(["layer", "global"]), tp=st.sampled_from([1, 2]), replicated=st.booleans())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_so_does_every_device(seed: int, capacity: int, policy: str, scope: str, tp: int, replicated: bool) -> None:
    """Two devices with experts of their own: what each is asked, replayed alone, hits as often."""
    scenario = tiny(f"seed={seed}", f"parallelism.tp={tp}", f"trace.synthetic.seed={seed}",
                    f"parallelism.dispatch={'replicated' if replicated else 'all_to_all'}",
                    f"cache={{capacity: {capacity}, scope: {scope}, policy: {policy}, overflow: stream}}")
    with pytest.MonkeyPatch.context() as patched:
        ran = Asked(scenario, patched)
    misses = 0
    for device, placed in enumerate(ran.inputs.placement.counts().T):
        used = np.stack([step[:, device] for step in ran.used])  # [S, M, slots]
        step, layer, slot = np.nonzero(used)
        n, layers = used.shape[:2]
        events = Events(np.append(0, used.sum(axis=2).ravel().cumsum()),
                        ((placed.cumsum() - placed)[layer] + slot).astype(np.int32), np.ones(len(step), np.int32),
                        np.zeros(0, np.float32), np.repeat(np.arange(n), layers), np.tile(np.arange(layers), n),
                        np.arange(n * layers, dtype=np.float64), np.repeat(np.arange(layers), placed),
                        np.array(ran.fresh, np.uint8))
        found = replay(events, policy, capacity, seed=seed, scope=scope, overflow="stream")
        misses += found.misses
        assert ran.result.memory["fetched_bytes"][device] == found.misses * scenario.model.expert_bytes
    assert ran.result.steps["expert_misses"].sum() == misses


@pytest.mark.parametrize("policy", ["lru", "static"])
def test_a_link_of_no_time_costs_no_time(policy: str) -> None:
    cache = f"cache={{capacity: 2, policy: {policy}, overflow: stream}}"
    cached = moesim.simulate(tiny(cache, bandwidth="1e12 PB/s", per="node"))
    free = moesim.simulate(tiny())
    times = ["first_token_s", "finish_s"]
    pd.testing.assert_frame_equal(cached.requests[times], free.requests[times], rtol=1e-9)
    assert cached.steps["expert_misses"].sum() > 0


def test_room_for_all_pays_first_loads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ran, free = Asked(tiny("cache.capacity=100%"), monkeypatch), moesim.simulate(tiny())
    first = int(np.any(ran.used, axis=0).sum())
    steps = ran.result.steps
    assert steps["expert_misses"].sum() == first
    pd.testing.assert_series_equal(ran.result.memory["kv_capacity_bytes"], free.memory["kv_capacity_bytes"])
    later = steps["fetch_s"] == 0
    assert later.any() and not later.iloc[0]
    length = lambda t: (t["end_s"] - t["start_s"])[later]  # noqa: E731
    pd.testing.assert_series_equal(length(steps), length(free.steps), rtol=1e-9)


@given(seed=st.integers(0, 100), prefetcher=st.sampled_from(["none", "next_layer_gate", "oracle", HALF]),
       nodes=st.sampled_from([1, 2]), per=st.sampled_from(["device", "node"]))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_engines_agree(seed: int, prefetcher: str, nodes: int, per: str) -> None:
    more = () if nodes == 1 else ("hardware.nodes=2", "hardware.scale_out={efficiency: 0.9, startup: 20 us, ramp: 0 s}",
                                  "hardware.fabric={name: leaf_spine, leaves: 2, spines: 3, hosts_per_leaf: 2, "
                                  "link: 10 Gbit/s}")
    cache = f"cache={{capacity: 2, overflow: stream, prefetcher: {prefetcher}}}"
    steps, events = (moesim.simulate(tiny(f"seed={seed}", f"detail={d}", cache, *more, bandwidth="1 GB/s", per=per))
                     for d in ("steps", "events"))
    for table in ("requests", "steps", "spans", "memory"):
        pd.testing.assert_frame_equal(getattr(steps, table), getattr(events, table), rtol=1e-9, obj=table)


def test_policies_that_look_back_alone_run_in_the_engine() -> None:
    ran, placed = [], np.array([3, 3])
    fit = replace(events_of([{(0, 0), (0, 1), (0, 2)}, {(1, 0), (1, 1), (1, 2)}]), names=())
    for name in registry.names("cache_policy"):
        try:
            LiveCache(registry.make("cache_policy", name), placed, placed - 1, fit=fit)
            ran.append(name)
        except CacheError as error:
            assert "use one that needs only what has happened" in str(error)
    assert ran == ["fld", "least_stale", "lfru", "lfu", "lru", "plec", "random", "static"]
