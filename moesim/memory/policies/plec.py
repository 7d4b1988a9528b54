"""What the prefetcher expects soonest stays, what it does not expect goes (ExpertFlow's PLEC).

Predictive locality-aware expert caching of arXiv 2410.17954: slots go to the experts that a predictor expects, layer by
layer in the order of execution. Needs a prefetcher, as a rule ``rpp``; without one it is ``lru``.

>>> from moesim.memory import replay
>>> events = [{(layer, (turn + layer) % 3)} for turn in range(8) for layer in (0, 1)]
>>> replay(events, "plec", 1, prefetcher={"name": "rpp", "recall": 1.0}).hits, replay(events, "lru", 1).hits
(16, 0)
"""

from __future__ import annotations

from moesim.memory.job import Job
from moesim.memory.terms import DUE, SEEN, TIME, Rule, score
from moesim.registry import part


@score
def _expectation(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    for c in range(n):
        due = of[keys[c], DUE]
        out[c] = now[TIME] - due if due > now[TIME] else of[keys[c], SEEN] - 2.0**40


@part
class Plec:
    """Evict what is not expected, the least recently used first, then what is expected last."""

    def rule(self, job: Job) -> Rule:
        """Return the rule; nothing of *job* plays a part."""
        return Rule(_expectation)
