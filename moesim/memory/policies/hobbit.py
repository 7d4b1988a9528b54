"""Recency, frequency, use in high precision and distance of the layer, weighed (HOBBIT's multidimensional caching).

arXiv 2411.01433: keep what has the largest w1 R/T + w2 F/T + w3 H/T + w4 (1 - D/L): R the token of the last use, F
uses, H uses with a large weight (which it loads in high precision), T tokens of this sequence so far, D layers until
its layer runs again. The paper fits the weights to what a miss costs; they are not published.

>>> from moesim.memory import replay
>>> events = [{1, 2}, {0, 1}, {1, 2}, {0, 1}, {1, 2}]
>>> replay(events, {"name": "hobbit", "weights": [1.0, 0.0, 0.0, 0.0]}, 2).hits == replay(events, "lru", 2).hits
True
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.memory.job import Job
from moesim.memory.terms import COUNT, FLAGS, HERE, LAST, LAYER, LAYERS, SINCE, TIME, CacheError, Rule, score
from moesim.registry import part

Weight = Annotated[float, Field(ge=0)]


@score
def _priority(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    tokens = now[SINCE]
    for c in range(n):
        k = keys[c]
        recency = max(tokens - (now[TIME] - of[k, LAST]) / now[LAYERS], 0.0)
        ahead = (of[k, LAYER] - now[HERE] - 1.0) % now[LAYERS]
        out[c] = ((p[0] * recency + p[1] * of[k, COUNT] + p[2] * of[k, FLAGS]) / tokens
                  + p[3] * (1.0 - ahead / now[LAYERS]))


@part
class Hobbit:
    """Evict by the weighted sum; counts begin anew with a pass in which every request is new.

    weights  of recency, frequency, high precision and layer (equal ones are assumed)
    high     share of a token's chosen probability from which a use is in high precision (assumed)
    """

    weights: tuple[Weight, Weight, Weight, Weight] = (0.25, 0.25, 0.25, 0.25)
    high: Annotated[float, Field(gt=0, le=1)] = 0.4

    def rule(self, job: Job) -> Rule:
        """Return the rule. Raises ``CacheError`` if uses in high precision count and probabilities are not known."""
        flags = None
        if self.weights[2]:
            if not len(job.events.weights):
                raise CacheError("hobbit counts uses with a large gate weight, but the trace has no probabilities; "
                                 "capture one with them, or give the third of weights as 0")
            flags = (job.events.weights >= self.high).astype(np.uint8)
        return Rule(_priority, self.weights, flags=flags, resets=True)
