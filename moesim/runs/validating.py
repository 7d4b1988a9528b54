"""From a measured run and a scenario to their comparison."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from moesim.registry import name_of
from moesim.result import Result
from moesim.runs.compare import Comparison, compare
from moesim.runs.replay import requests_of
from moesim.runs.run import Run, of_requests, tick_s
from moesim.runs.simulated import simulated, token_s
from moesim.scenario import Scenario
from moesim.sim.engine import Engine
from moesim.sim.inputs import prepare


@dataclass(frozen=True, eq=False)
class Validation:
    """A measured run, what the scenario made of the same requests, and the two side by side."""

    run: Run
    scenario: Scenario
    requests: pd.DataFrame  # as replayed
    result: Result
    comparison: Comparison
    notes: list[str]
    seconds: float  # of this machine, that the simulation took


def validate(run: Run, scenario: Scenario) -> Validation:
    """Simulate the requests of the measured *run* in *scenario*, in place of the scenario's own, and compare.

    Raises ``ValueError`` if the workload is not that of the run, or the scenario cannot serve it.
    """
    if scenario.trace is not None and scenario.trace.join == "paired":
        raise scenario.error("trace.join", "paired takes the trace's own requests, not those of the run; use resampled")
    if scenario.disaggregation is not None:
        raise scenario.error("disaggregation", "a measured run is compared with one engine or several alike; remove it")
    requests = requests_of(run, scenario)
    began = time.perf_counter()
    result = Engine(prepare(scenario, requests)).run()
    seconds = time.perf_counter() - began
    measured = run if run.timeline is not None else replace(run, timeline=of_requests(run))
    guess = simulated(result, scenario, _ticks(measured, float(result.requests["finish_s"].max())))
    if "token_s" in run.requests:
        tokens = pd.Series(token_s(result, scenario), dtype=object)
        guess = replace(guess, requests=guess.requests.assign(token_s=tokens))
    notes = [*_notes(run, scenario), *_left_out(guess), *result.meta["warnings"]]
    return Validation(run, scenario, requests, result, compare(measured, guess), notes, seconds)


def _ticks(run: Run, until_s: float) -> np.ndarray:
    """Return the ends of the ticks of *run*'s timeline, and as many more as it takes to *until_s*."""
    assert run.timeline is not None, "made from requests if there was none"
    ends = run.timeline["time_s"].to_numpy()
    tick = tick_s(ends)
    more = int(np.ceil(max(0.0, until_s - ends[-1]) / tick))
    return np.concatenate([ends, ends[-1] + tick * np.arange(1, more + 1)])


def _left_out(guess: Run) -> list[str]:
    """Return what the simulated run does not say of some requests."""
    notes = []
    refused = int(guess.requests["last_token_s"].isna().sum())
    if refused:
        notes.append(f"{refused} requests were refused in the simulation; they are left out of both sides")
    if "token_s" in guess.requests and (unknown := int(guess.requests["token_s"].isna().sum()) - refused):
        notes.append(f"inter-token latencies are simulated without {unknown} requests that were preempted or left out "
                     f"of a step")
    return notes


def _notes(run: Run, scenario: Scenario) -> list[str]:
    """Return how times were joined, and where the engine of *run* had other settings than *scenario*."""
    notes = [run.meta["clock"]] if run.meta["clock"] else []
    engine, scheduler = run.meta["engine"], scenario.scheduler
    model = str(run.meta["model"]).rsplit("/", 1)[-1].lower()
    if model and not (model.startswith(scenario.model.name.lower()) or scenario.model.name.lower() in model):
        notes.append(f"the run is of model {run.meta['model']}, the scenario has {scenario.model.name}")
    pairs: list[tuple[str, Any]] = [
        ("max_num_seqs", getattr(scheduler, "max_batch", None)),
        ("max_num_batched_tokens", getattr(scheduler, "max_tokens", None)),
        ("tensor_parallel_size", scenario.parallelism.tp), ("data_parallel_size", scenario.n_groups),
        ("pipeline_parallel_size", scenario.parallelism.pp)]
    notes += [f"the run had {name} {engine[name]}, the scenario ({name_of(scheduler)}, {scenario.n_groups} groups) has "
              f"{value}" for name, value in pairs if value is not None and engine.get(name) not in (None, value)]
    if run.timeline is None:
        notes.append("the run has no timeline; it is made from its requests, their output tokens evenly spread")
    return notes
