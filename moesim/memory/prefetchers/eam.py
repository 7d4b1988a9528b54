"""What requests like the running ones used in this layer is loaded before it (MoE-Infinity's activation matrices).

It learns from requests that have finished, and from those of ``fit``; it sees no future.

>>> import numpy as np
>>> from moesim.memory import replay
>>> from moesim.trace import RoutingTrace
>>> used = np.tile([[0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]], (6, 1))  # two kinds of requests
>>> trace = RoutingTrace.from_arrays(used.reshape(-1, 1, 1), 6, 1, request=np.arange(12).repeat(6), phase=1)
>>> replay(trace, "lru", 3, prefetcher={"name": "eam", "most": 3}).hits > replay(trace, "lru", 3).hits
True
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.memory.activation import PLACES, expected_shares
from moesim.memory.job import Forecast, Job
from moesim.memory.terms import CacheError
from moesim.registry import part


@part
class EamPrefetcher:
    """Expect the experts of each layer with the largest shares.

    most     experts of a layer that are expected; 0: as many as events use on average, rounded up
    places   matrices in the collection
    horizon  layers that are loaded ahead, the coming one included
    """

    most: Annotated[int, Field(ge=0)] = 0
    places: Annotated[int, Field(ge=1)] = PLACES
    horizon: Annotated[int, Field(ge=1)] = 1

    def forecast(self, job: Job) -> Forecast:
        """Return the expectations. Raises ``CacheError`` for events that are not of a trace, or of a run that goes on.
        """
        if job.live:
            raise CacheError("eam compares whole requests, which only a replay has; use token_id or next_layer_gate")
        shares = expected_shares(job, "eam", self.places)
        layers = job.whole.n_layers
        per_layer = shares.reshape(len(shares) * layers, -1)
        most = min(self.most or -(-len(job.whole.keys) // len(per_layer)), per_layer.shape[1])
        best = np.argsort(-per_layer, axis=1, kind="stable")[:, :most]
        known = np.take_along_axis(per_layer, best, axis=1) > 0
        keys = best + (np.arange(len(per_layer)) % layers)[:, None] * per_layer.shape[1]
        starts = np.concatenate([[0], np.cumsum(known.sum(axis=1))])
        return job.expecting(starts, keys[known], self.horizon)
