"""One bit per use says whether the expert is needed in the next phase (MARK&PREDICT): robust against wrong bits.

"Paging with Succinct Predictions" (ICML 2023, arXiv 2210.02775), phase bits: the events are cut into the longest runs
with at most k distinct experts; 1 where the next run does not use it. A marking algorithm that prefers to evict those.

>>> from moesim.memory import replay
>>> events = [{1}, {2}, {3}, {1}, {2}, {3}, {1}, {2}]
>>> best = replay(events, {"name": "belady", "bypass": False}, 2).misses
>>> best <= replay(events, "mark_predict", 2).misses <= 2 * best
True
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moesim.memory.bits import flipped, phase_bits
from moesim.memory.job import Job
from moesim.memory.terms import FLAG, MARK, PHASE, Rule, score
from moesim.registry import part

Share = Annotated[float, Field(ge=0, le=1)]


@score
def _marks(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    for c in range(n):
        out[c] = 2.0 * (of[keys[c], MARK] >= now[PHASE]) - of[keys[c], FLAG]


@part
class MarkPredict:
    """Evict what is not marked, of that what the bits say is not needed soon; *missed*, *spurious* as in ``mark0``."""

    missed: Share = 0.0
    spurious: Share = 0.0

    def rule(self, job: Job) -> Rule:
        """Return the rule."""
        return Rule(_marks, flags=flipped(phase_bits(job), self.missed, self.spurious, job.seed), oracle=True)
