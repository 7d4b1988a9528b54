"""The least frequently used expert goes; of several, the least recently used.

>>> from moesim.memory import replay
>>> events = [{1}, {1}, {1}, {2}, {3}, {1}]  # 1 was used most often, but not lately
>>> replay(events, "lfu", 2).hits, replay(events, "lru", 2).hits
(3, 2)
"""

from __future__ import annotations

from typing import Literal

from moesim.memory.job import Job
from moesim.memory.terms import COUNT, SEEN, Rule, score
from moesim.registry import part


@score
def _frequency(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    for c in range(n):
        out[c] = of[keys[c], COUNT] * 2.0**27 + of[keys[c], SEEN]


@part
class Lfu:
    """Evict by the number of uses.

    counts  ``all`` uses since the beginning, or those of this ``sequence``: counts begin anew with a pass in which
            every request is new (each request, if they run one at a time)
    """

    counts: Literal["all", "sequence"] = "all"

    def rule(self, job: Job) -> Rule:
        """Return the rule."""
        return Rule(_frequency, resets=self.counts == "sequence")
