"""Groups of requests run until the last of the group has finished: batches shrink, then the next group begins.

>>> import numpy as np
>>> from moesim.trace import RoutingTrace
>>> trace = RoutingTrace.from_arrays(np.arange(6)[:, None, None] % 4, 4, 1, request=[0, 1, 1, 1, 2, 2], phase=1)
>>> passes = Static(size=2).passes(trace, seed=0)
>>> [rows.tolist() for rows in np.split(passes.rows, passes.starts[1:-1])]  # request 2 waits for request 1
[[0, 1], [2], [3], [4], [5]]
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.memory.batching._turns import Prompts, Turns
from moesim.memory.events import Passes
from moesim.registry import part
from moesim.trace import RoutingTrace


@part
class Static:
    """Run groups of *size* requests, one token of each per pass; *prompts*, *shuffled* as in ``continuous``."""

    size: Annotated[int, Field(ge=1)] = 1
    prompts: Prompts = "tokens"
    shuffled: bool = False

    def passes(self, trace: RoutingTrace, seed: int) -> Passes:
        """Return the passes: a group begins after the longest request of the one before."""
        turns = Turns.of(trace, self.prompts, np.random.default_rng(seed) if self.shuffled else None)
        group = np.arange(len(turns.lengths)) // self.size
        longest = np.maximum.reduceat(turns.lengths, np.arange(0, len(turns.lengths), self.size))
        return turns.passes(np.concatenate([[0], np.cumsum(longest)[:-1]])[group])
