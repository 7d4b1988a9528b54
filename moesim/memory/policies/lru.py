"""The least recently used expert goes.

>>> from moesim.memory import replay
>>> stats = replay([{1, 2}, {0, 1}, {1, 2}, {0, 1}, {1, 2}], "lru", 2)
>>> stats.hits, stats.misses
(4, 6)
"""

from __future__ import annotations

from moesim.memory.job import Job
from moesim.memory.terms import SEEN, Rule, score
from moesim.registry import part


@score
def _recency(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    for c in range(n):
        out[c] = of[keys[c], SEEN]


@part
class Lru:
    """Evict by the time of the last use; a load ahead of use counts as one."""

    def rule(self, job: Job) -> Rule:
        """Return the rule; nothing of *job* plays a part."""
        return Rule(_recency)
