"""One bit per use says whether the expert can be dropped (MARK0): with exact bits as good as the best.

"Paging with Succinct Predictions" (ICML 2023, arXiv 2210.02775), discard bits:
1 where Belady, forced to admit, evicts before the next use. Those go first, then what no request has used in this
phase, drawn; a fault when all have been used begins the next phase. The bits are an oracle's, with errors on demand.

>>> from moesim.memory import replay
>>> events = [{1}, {2}, {3}, {1}, {2}, {3}, {1}, {2}]
>>> [replay(events, {"name": name} | options, 2).misses
...  for name, options in (("mark0", {}), ("belady", {"bypass": False}), ("mark0", {"missed": 1.0}))]
[5, 5, 6]
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moesim.memory.bits import discard_bits, flipped
from moesim.memory.job import Job
from moesim.memory.terms import FLAG, MARK, NEVER, Rule, score
from moesim.registry import part

Share = Annotated[float, Field(ge=0, le=1)]


@score
def _marks(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    for c in range(n):
        out[c] = 2.0 * NEVER if of[keys[c], FLAG] else of[keys[c], MARK]


@part
class Mark0:
    """Evict by discard bits, then by marks.

    missed    share of the ones that are told as zeros: costs up to k - 1 faults each
    spurious  share of the zeros that are told as ones: costs one fault each
    """

    missed: Share = 0.0
    spurious: Share = 0.0

    def rule(self, job: Job) -> Rule:
        """Return the rule; finding the bits is a replay of its own."""
        return Rule(_marks, flags=flipped(discard_bits(job), self.missed, self.spurious, job.seed), oracle=True)
