"""The expert whose next use is furthest goes: an oracle, the best that any eviction can do.

With ``bypass`` no policy has fewer misses (experts of one size): what was missed and comes back late is not even
admitted. Forced to admit, it says what part of its lead is admission. A window is what a queue of routed requests lets
one see.

>>> from moesim.memory import replay
>>> events = [{1}, {2}, {3}, {1}, {2}, {3}, {1}, {2}]
>>> [replay(events, policy, 2).hits for policy in ("belady", {"name": "belady", "bypass": False}, "lru")]
[4, 3, 0]
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.memory.job import Job
from moesim.memory.terms import LAYERS, NEXT, START, Rule, score
from moesim.registry import part


@score
def _nearness(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    end = now[START] + p[0] * now[LAYERS]
    for c in range(n):
        due = of[keys[c], NEXT]
        out[c] = -due if due < end else -np.inf


@part
class Belady:
    """Evict by the time of the next use.

    bypass  what was missed competes too; else it is admitted
    window  passes that are seen, the present one included; 0: all. What none of them needs goes first, drawn
    """

    bypass: bool = True
    window: Annotated[int, Field(ge=0)] = 0

    def rule(self, job: Job) -> Rule:
        """Return the rule, an oracle."""
        return Rule(_nearness, (float(self.window or np.inf),), bypass=self.bypass, nexts=True, oracle=True)
