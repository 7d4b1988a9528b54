"""Laws of what the engine fetches ahead of use: hits are those of a replay with the same forecasts; time only waits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_offload_laws import Asked, tiny

from moesim.memory.events import of_choices
from moesim.memory.foresight import Foresight
from moesim.memory.job import Forecast
from moesim.memory.setup import Options, job_of

ONE = ("hardware.devices_per_node=1", "trace.profile_fraction=0.4", "scheduler.prefill=mixed")
PARTS = ["oracle", "{name: next_layer_gate, recall: 0.7, precision: 0.5}", "{name: rpp, recall: 0.6, horizon: 2}",
         "{name: rpp, recall: 1.0}"]


@pytest.mark.parametrize(("scope", "policy"), [("layer", "lru"), ("global", "lru"), ("layer", "random"),
                                               ("global", "plec"), ("global", "least_stale")])
@pytest.mark.parametrize("part", PARTS)
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
