"""What this forward pass has neither used nor loaded nor expects goes first, then the least recently used.

After arXiv 2602.03921. Without a prefetcher it is ``lru``: all that a pass has used is more recent than the rest.

>>> from moesim.memory import replay
>>> events = [{1, 2}, {0, 1}, {1, 2}, {0, 1}, {1, 2}]
>>> replay(events, "least_stale", 2).hits == replay(events, "lru", 2).hits
True
"""

from __future__ import annotations

from moesim.memory.job import Job
from moesim.memory.terms import DUE, SEEN, START, Rule, score
from moesim.registry import part


@score
def _staleness(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    for c in range(n):
        k = keys[c]
        out[c] = of[k, SEEN]
        if of[k, SEEN] >= now[START] or of[k, DUE] >= now[START]:
            out[c] += 2.0**27


@part
class LeastStale:
    """Evict by whether the pass has touched the expert, then by its last use."""

    def rule(self, job: Job) -> Rule:
        """Return the rule; nothing of *job* plays a part."""
        return Rule(_staleness)
