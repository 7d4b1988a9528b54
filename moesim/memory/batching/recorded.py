"""Tokens run together that were recorded in one forward pass: the column ``step`` of the trace.

>>> import numpy as np
>>> from moesim.trace import RoutingTrace
>>> trace = RoutingTrace.from_arrays(np.arange(6)[:, None, None] % 4, 4, 1, request=[0, 0, 0, 1, 1, 1],
...                                  phase=[0, 0, 1, 0, 1, 1])
>>> passes = Recorded().passes(trace, seed=0)
>>> [rows.tolist() for rows in np.split(passes.rows, passes.starts[1:-1])]  # both prompts in step 0
[[0, 1, 3], [4], [2, 5]]
"""

from __future__ import annotations

import numpy as np

from moesim.memory.events import Passes
from moesim.registry import part
from moesim.trace import RoutingTrace


@part
class Recorded:
    """Take the passes from the trace; steps in which no token ran are left out."""

    def passes(self, trace: RoutingTrace, seed: int) -> Passes:
        """Return the passes in the order of their steps; *seed* plays no part."""
        step = trace.tokens["step"].to_numpy()
        rows = np.argsort(step, kind="stable")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(step[rows])) + 1, [len(rows)]])
        _, firsts, request = np.unique(trace.tokens["request"].to_numpy(), return_index=True, return_inverse=True)
        first_step = step == step[firsts][request]
        return Passes(rows, starts, np.minimum.reduceat(first_step[rows], starts[:-1]).astype(np.uint8))
