"""Any expert that is not needed now may go: the yardstick without memory.

>>> from moesim.memory import replay
>>> stats = [replay([{1}, {2}, {3}] * 40, "random", 2, seed=seed) for seed in (0, 1)]
>>> stats[0].hits != stats[1].hits
True
"""

from __future__ import annotations

from moesim.memory.job import Job
from moesim.memory.terms import DRAW, Rule, mixed, score
from moesim.registry import part


@score
def _drawn(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    for c in range(n):
        out[c] = mixed(int(now[DRAW]), keys[c])


@part
class Random:
    """Draw the victim."""

    def rule(self, job: Job) -> Rule:
        """Return a rule that draws a number for every candidate of every event."""
        return Rule(_drawn)
