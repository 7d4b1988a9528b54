"""The experts that other requests used most are loaded once and stay; all others pass through.

>>> from moesim.memory import replay
>>> stats = replay([{1, 2}, {1, 3}, {2, 3}], "static", 2, fit=[{1, 2}, {1, 2}, {1, 3}])
>>> stats.hits, stats.misses, stats.loaded_before  # 1 and 2 are there from the beginning
(4, 2, 2)
"""

from __future__ import annotations

import numpy as np

from moesim.memory.job import Job
from moesim.memory.terms import VALUE, Rule, score
from moesim.registry import part


@score
def _rank(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    for c in range(n):
        out[c] = of[keys[c], VALUE]


@part
class Static:
    """Hold the most popular experts of ``fit``; what it takes to load them is counted apart."""

    def rule(self, job: Job) -> Rule:
        """Return the rule. Raises ``CacheError`` without other requests to learn from."""
        fit = job.fitted("static")
        uses = np.bincount(fit.keys, minlength=len(job.cache_of))
        order = np.argsort(-uses, kind="stable")  # the most used first; no two ranks are equal
        left, held = job.rooms.copy(), []
        for k in order.tolist():
            if job.size[k] <= left[job.cache_of[k]]:
                left[job.cache_of[k]] -= job.size[k]
                held.append(k)
        values = np.zeros((1, len(order)), np.float32)
        values[0, order] = -np.arange(len(order))
        values[0, held] += len(order)
        return Rule(_rank, bypass=True, values=values, held=np.array(held, np.int32))
