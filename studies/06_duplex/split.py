"""Figure 16: Mixtral with prompts on two devices and answers on two others, against all four for both: whole runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import setting

import moesim

BATCH, LENGTH, COUNT = 128, 1024, 288
SHARED = "{tp: 2, dispatch: replicated, expert_tp: 2}"
APART = {"parallelism": SHARED, "disaggregation": f"{{devices: 2, parallelism: {SHARED}}}"}
SYSTEMS: dict[str, dict[str, Any]] = {"Duplex+PE+ET": {}, "Duplex-Split": APART}


def tasks() -> list[tuple[str]]:
    """Return the system of every run."""
    return [(system,) for system in SYSTEMS]


def row(system: str) -> dict[str, Any]:
    """Return throughput and percentiles of the time between tokens, of the middle half of a run.

    128 users send one request after the other; the lengths of answers differ, so that they do not end together.
    """
    result = moesim.simulate(setting.scenario(
        "Mixtral", setting.SYSTEMS["Duplex+PE+ET"], scheduler__max_batch=BATCH, scheduler__max_tokens=LENGTH,
        requests=f"{{kind: closed_loop, concurrency: {BATCH}, count: {COUNT}, prompt_tokens: {LENGTH}, "
                 f"output_tokens: {{low: {LENGTH // 2}, high: {LENGTH * 3 // 2}}}}}", **SYSTEMS[system]))
    end = float(result.steps["end_s"].max())
    steps = result.steps[result.steps["start_s"].between(0.25 * end, 0.75 * end) & (result.steps["decode_tokens"] > 0)]
    length, weight = (steps["end_s"] - steps["start_s"]).to_numpy(), steps["decode_tokens"].to_numpy()
    tbt = np.repeat(length, weight)
    return {"system": system, "batch": float(weight.mean()), "tok_per_s": float(weight.sum() / (0.5 * end)),
            **{f"tbt_p{p}_s": float(np.percentile(tbt, p)) for p in (50, 90, 99)}}
