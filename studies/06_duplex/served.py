"""Figure 13: Mixtral under requests that arrive by themselves, at two rates, on three systems: whole runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import setting
from reproduce import SERVED

import moesim

# Rate, requests per second, and requests of a run: few at the lower end of the figure's axis; at the upper end so many
# that the batch (128) fills up.
RATES = {4: 40, 16: 240}


def tasks() -> list[tuple[str, int]]:
    """Return system and rate of every run."""
    return [(system, rate) for rate in RATES for system in ("GPU", "2xGPU", "Duplex+PE+ET")]


def row(system: str, rate: int) -> dict[str, Any]:
    """Return percentiles of the time between tokens and to the first one, and the rate that was served.

    A token that came in a step waited for that step: steps count by the requests that decode in them.
    """
    prompt, output, batch = SERVED
    result = moesim.simulate(setting.scenario(
        "Mixtral", setting.SYSTEMS[system], scheduler__max_batch=batch,
        requests=f"{{kind: poisson, rate: {rate} /s, count: {RATES[rate]}, prompt_tokens: {prompt}, "
                 f"output_tokens: {output}}}"))
    steps, requests = result.steps, result.requests
    length, weight = (steps["end_s"] - steps["start_s"]).to_numpy(), steps["decode_tokens"].to_numpy()
    between = {f"tbt_p{p}_s": float(np.percentile(np.repeat(length, weight), p)) for p in (50, 90, 99)}
    return {"system": system, "rate": rate, **between, "t2ft_p50_s": float(requests["ttft_s"].median()),
            "t2ft_p90_s": float(requests["ttft_s"].quantile(0.9)), "e2e_p50_s": float(requests["e2e_s"].median()),
            "mixed_share": float((steps["prefill_tokens"] > 0).mean())}
