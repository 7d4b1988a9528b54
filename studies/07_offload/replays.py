"""Which experts should be on the GPUs: what a few ways to choose them find, replayed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import setting

from moesim.memory import CacheStats, replay


def residency() -> pd.DataFrame:
    """Return the share of expert uses that are on the GPUs by the share of experts there, beside the published gain.

    random     any experts: on average the share itself
    frequency  those that other requests used most
    dynamic    for each request those that its own first tokens used most; what they did not use comes in any order
    """
    trace = setting.qwen_next()
    asked, fit = trace.evaluation(), trace.profile()
    rows = []
    alone = [asked.of_requests([r]) for r in asked.requests]
    for i, share in enumerate(np.arange(11) / 10):
        room = f"{share:.0%}"
        for policy, published in setting.RESIDENCY.items():
            if policy == "random" or not i:
                found = share
            elif policy == "frequency":
                found = _on_gpu(replay(asked.phase("decode"), "static", room, fit=fit, overflow="stream"))
            else:
                found = float(np.mean([_on_gpu(replay(r.phase("decode"), "static", room, fit=r.phase("prefill"),
                                                      overflow="stream")) for r in alone]))
            rows.append({"policy": policy, "share": share, "on_gpu": found, "published": saved(published)[i]})
    return pd.DataFrame(rows)


def saved(tokens_per_s: tuple[float, ...]) -> np.ndarray:
    """Return of the seconds per token between none and all experts on the GPUs the part that each share saves."""
    seconds = 1 / np.array(tokens_per_s)
    return (seconds[0] - seconds) / (seconds[0] - seconds[-1])


def _on_gpu(stats: CacheStats) -> float:
    return 1 - stats.miss_fraction
