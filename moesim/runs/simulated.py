"""A simulated run in the tables of a measured one, so that both are compared column by column."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moesim.result import Result
from moesim.runs.run import Run, rate, tick_s
from moesim.scenario import Scenario


def simulated(result: Result, scenario: Scenario, ends: np.ndarray) -> Run:
    """Return *result* of *scenario* as a run, its timeline on the ticks that end at *ends* (seconds)."""
    table = result.requests
    requests = pd.DataFrame({
        "request": table["request"], "arrival_s": table["arrival_s"], "queued_s": table["queued_s"],
        "scheduled_s": table["scheduled_s"], "first_token_s": table["first_token_s"], "last_token_s": table["finish_s"],
        "prompt_tokens": table["prompt_tokens"], "output_tokens": table["output_tokens"]})
    return Run(requests, _timeline(result, scenario, ends),
               {"path": "", "model": scenario.model.name, "clock": "", "engine": {}, "workload": None})


def token_s(result: Result, scenario: Scenario) -> list[np.ndarray | None]:
    """Return when each output token of each request came: as steps ended.

    None where steps do not tell: a request that was preempted or left out of a step, or refused.
    """
    table, island = result.requests, _island(result, scenario)
    ends = {i: steps["end_s"].to_numpy() for i, steps in _of_islands(result)}
    found: list[np.ndarray | None] = []
    for i, first, last, count in zip(island, table["first_token_s"], table["finish_s"], table["output_tokens"],
                                     strict=True):
        mine = ends[i] if i >= 0 else np.empty(0)
        times = mine[np.searchsorted(mine, first, "left"):np.searchsorted(mine, last, "right")]
        found.append(times if len(times) == count else None)
    return found


def _timeline(result: Result, scenario: Scenario, ends: np.ndarray) -> pd.DataFrame:
    """Return the timeline; a token that a preempted request produces as it comes back is not in it."""
    requests, steps = result.requests, result.steps
    first = requests["first_token_s"].dropna()
    finished = steps["end_s"].to_numpy()
    order = np.argsort(finished)
    columns = {"time_s": ends,
               "prompt_tok_per_s": rate(first.to_numpy(), requests.loc[first.index, "prompt_tokens"].to_numpy(), ends),
               "output_tok_per_s": rate(first.to_numpy(), np.ones(len(first)), ends)
               + rate(finished[order], steps["decode_tokens"].to_numpy()[order], ends)}
    for name, scale in (("running", 1.0), ("waiting", 1.0), ("kv_tokens", _kv_tokens(result, scenario))):
        columns[name.replace("kv_tokens", "kv_used")] = sum(
            _last(table, name, ends) for _, table in _of_islands(result)) / scale
    return pd.DataFrame(columns)


def _last(steps: pd.DataFrame, column: str, ends: np.ndarray) -> np.ndarray:
    """Return *column* of the last step that ended in each tick, 0 if none did (the engine was idle, or within a step
    that is longer than a tick: then that of the step before).
    """
    finished = steps["end_s"].to_numpy()
    at = np.searchsorted(finished, ends, "right") - 1
    after = np.minimum(at + 1, len(steps) - 1)
    within = (steps["start_s"].to_numpy()[after] < ends) & (at + 1 < len(steps))
    idle = (at < 0) | (~within & (finished[np.maximum(at, 0)] <= ends - tick_s(ends)))
    return np.where(idle, 0.0, steps[column].to_numpy(float)[np.maximum(at, 0)])


def _kv_tokens(result: Result, scenario: Scenario) -> float:
    """Return how many tokens' keys and values all groups have room for."""
    kv, tp = scenario.kv, scenario.parallelism.tp
    if kv.blocks is not None:
        return float(kv.blocks * kv.block * scenario.n_groups)
    per_token = [scenario.model.kv_bytes_per_token_on_device(tp, layers) for layers in scenario.stages]
    room = result.memory["kv_capacity_bytes"].to_numpy().reshape(scenario.n_islands, len(per_token), -1).sum(axis=2)
    return float((room / tp / per_token).min(axis=1).sum())  # the stage with the least room counts


def _island(result: Result, scenario: Scenario) -> np.ndarray:
    """Return the island of each request, -1 if it was refused."""
    group = result.requests["group"].to_numpy()
    return np.where(group < 0, -1, group // scenario.groups_per_island)


def _of_islands(result: Result) -> list[tuple[int, pd.DataFrame]]:
    """Return each island's steps."""
    if "island" not in result.steps:
        return [(0, result.steps)]
    return [(int(str(i)), steps) for i, steps in result.steps.groupby("island")]
