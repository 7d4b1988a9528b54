"""ExpertFlow's published numbers, and hit ratios of a trace like its own: one function for each table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moesim.memory import replay
from moesim.synthetic import GateParameters, SyntheticTrace
from moesim.trace import RoutingTrace

# ExpertFlow (arXiv 2410.17954), Fig. 10, Switch-32: (slots of a layer, batch) -> hit ratio in %
EXPERT_FLOW = {("lru", 16, 4): 76.61, ("lru", 16, 16): 58.37, ("lru", 8, 16): 36.22,
               ("plec", 16, 4): 91.90, ("plec", 16, 16): 85.91, ("plec", 8, 16): 71.89}
SETTINGS = ((16, 4), (16, 16), (8, 16))
RECALL = 0.9  # the same: its predictor in the domain that it was trained on finds more than this
RECALLS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
POPULARITY = (0.0, 0.5, 1.0)


def switch(popularity: float = 0.0) -> RoutingTrace:
    """Return a top-1 trace like Switch-32's: 12 layers, 64 requests, nearly all with favourites of their own.

    The spread of the favourites is chosen for LRU's hits with 16 slots, batch 4; *popularity*: how much more all
    requests like some experts than others (0: as a balanced gate would have it). The trace is labelled synthetic.
    """
    gate = GateParameters(sigma_b=popularity, a=0.0, s=0.0, sigma_d=2.0, domains=64)
    return SyntheticTrace(parameters=gate, requests=64, prompt_tokens=0, output_tokens=64, layers=12, experts=32,
                          top_k=1).generate()


def _hit_percent(trace: RoutingTrace, policy: str, slots: int, batch: int, recall: float) -> float:
    ahead: Any = {"name": "rpp", "recall": recall} if policy == "plec" else "none"
    return 100 * replay(trace, policy, slots, batch=batch, prefetcher=ahead, overflow="stream").hit_ratio


def hits() -> pd.DataFrame:
    """Return hit ratios in % of LRU, and of PLEC by the recall of its predictor."""
    trace = switch()
    runs = [("lru", np.nan), *(("plec", recall) for recall in RECALLS)]
    return pd.DataFrame([{"policy": policy, "recall": recall, "slots": slots, "batch": batch,
                          "hit_percent": _hit_percent(trace, policy, slots, batch, recall)}
                         for slots, batch in SETTINGS for policy, recall in runs])


def popularity() -> pd.DataFrame:
    """Return the same hit ratios if some experts are popular with all requests: what the rows not met would need."""
    return pd.DataFrame([{"popularity": spread, "policy": policy, "slots": slots, "batch": batch,
                          "hit_percent": _hit_percent(trace, policy, slots, batch, RECALL)}
                         for spread in POPULARITY for trace in [switch(spread)] for policy in ("lru", "plec")
                         for slots, batch in SETTINGS])
