"""What requests like the running ones used least goes, late layers first (MoE-Infinity's activation matrices).

arXiv 2401.14361: least (expected share + eps) x (1 - layer / layers). It learns from requests that have finished.

>>> import numpy as np
>>> from moesim.memory import replay
>>> from moesim.trace import RoutingTrace
>>> used = np.tile([[0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]], (6, 1))  # two kinds of requests
>>> trace = RoutingTrace.from_arrays(used.reshape(-1, 1, 1), 6, 1, request=np.arange(12).repeat(6), phase=1)
>>> replay(trace, "eam", 3).hits > replay(trace, "lfu", 3).hits
True
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.memory.activation import PLACES, expected_shares
from moesim.memory.job import Job
from moesim.memory.terms import VALUE, Rule, score
from moesim.registry import part


@score
def _share(keys, n, of, now, p, out):  # type: ignore[no-untyped-def]
    for c in range(n):
        out[c] = of[keys[c], VALUE]


@part
class Eam:
    """Evict by expected activation.

    places  matrices in the collection
    eps     added to every share, so that the layer counts where nothing is expected (assumed)
    """

    places: Annotated[int, Field(ge=1)] = PLACES
    eps: Annotated[float, Field(gt=0)] = 1e-6

    def rule(self, job: Job) -> Rule:
        """Return the rule. Raises ``CacheError`` for events that are not of a trace."""
        shares = expected_shares(job, "eam", self.places)
        near = 1 - job.events.layer_of / job.events.n_layers
        return Rule(_share, values=(shares + np.float32(self.eps)) * near.astype(np.float32))
