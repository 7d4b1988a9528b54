"""A new request takes the place of one that has finished: as engines batch.

>>> import numpy as np
>>> from moesim.trace import RoutingTrace
>>> trace = RoutingTrace.from_arrays(np.arange(6)[:, None, None] % 4, 4, 1, request=[0, 1, 1, 1, 2, 2], phase=1)
>>> passes = Continuous(size=2).passes(trace, seed=0)
>>> [rows.tolist() for rows in np.split(passes.rows, passes.starts[1:-1])]  # request 2 follows request 0
[[0, 1], [2, 4], [3, 5]]
"""

from __future__ import annotations

import heapq
from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.memory.batching._turns import Prompts, Turns
from moesim.memory.events import Passes
from moesim.registry import part
from moesim.trace import RoutingTrace


@part
class Continuous:
    """Run *size* requests side by side, one token of each per pass.

    prompts   ``tokens``: prompt tokens run one by one, as if they were decoded; ``whole``: a prompt is one pass
    shuffled  take the requests in an order that the seed draws, not in that of their numbers
    """

    size: Annotated[int, Field(ge=1)] = 1
    prompts: Prompts = "tokens"
    shuffled: bool = False

    def passes(self, trace: RoutingTrace, seed: int) -> Passes:
        """Return the passes: a request begins when the first of *size* places is free."""
        turns = Turns.of(trace, self.prompts, np.random.default_rng(seed) if self.shuffled else None)
        free = [0] * self.size
        begins = np.zeros(len(turns.lengths), dtype=np.int64)
        for request, length in enumerate(turns.lengths.tolist()):
            begins[request] = free[0]
            heapq.heapreplace(free, free[0] + length)
        return turns.passes(begins)
