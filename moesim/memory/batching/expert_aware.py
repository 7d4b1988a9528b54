"""Tokens that want the same expert run together: the longest queue of an expert first (Read-ME).

arXiv 2410.19123, Algorithm 1, for gates whose choice is known before the first layer and is the same in all of them. Of
other traces the first choice of the first layer counts. Tokens of rare experts may wait long; the paper has no bound.

>>> import numpy as np
>>> from moesim.trace import RoutingTrace
>>> trace = RoutingTrace.from_arrays(np.array([0, 1, 1, 1, 0, 1])[:, None, None], 2, 1, request=range(6), phase=1)
>>> passes = ExpertAware(size=2, waiting=6).passes(trace, seed=0)
>>> [rows.tolist() for rows in np.split(passes.rows, passes.starts[1:-1])]  # 1 1 | 0 0 or 1 1 | ...
[[1, 2], [0, 4], [3, 5]]
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.memory.batching._turns import Turns
from moesim.memory.events import Passes
from moesim.registry import part
from moesim.trace import RoutingTrace


@part
class ExpertAware:
    """Fill passes of *size* tokens from *waiting* requests, the next token of each, by expert.

    The expert with the most waiting tokens is taken whole if there is room for them, then the next; of the first for
    which there is not, the part that fits, those that came first. With ``by_expert`` false tokens run in the order in
    which they came: what the paper compares with.
    """

    size: Annotated[int, Field(ge=1)] = 8
    waiting: Annotated[int, Field(ge=1)] = 32
    by_expert: bool = True

    def passes(self, trace: RoutingTrace, seed: int) -> Passes:
        """Return the passes; *seed* plays no part."""
        turns = Turns.of(trace, "tokens", None)
        first = np.concatenate([[0], np.cumsum(turns.lengths)])
        wanted = trace.chosen[turns.rows, 0, 0].tolist()
        ends, begins = first[1:].tolist(), first[:-1].tolist()
        queue, coming = begins[:self.waiting], iter(begins[self.waiting:])
        end_of = dict(zip(range(len(ends)), ends, strict=True))
        request = turns.request.tolist()
        order: list[int] = []
        starts = [0]
        while queue:
            taken = self._take([wanted[at] for at in queue])
            order += [queue[i] for i in taken]
            starts.append(len(order))
            gone = set(taken)
            later = [at + 1 for i, at in enumerate(queue) if i in gone and at + 1 < end_of[request[at]]]
            queue = [at for i, at in enumerate(queue) if i not in gone] + later
            queue += [at for _, at in zip(range(self.waiting - len(queue)), coming, strict=False)]
        begun = np.add.reduceat(turns.turn[order] > 0, starts[:-1]) == 0
        return Passes(turns.rows[order], np.array(starts), begun.astype(np.uint8))

    def _take(self, wanted: list[int]) -> list[int]:
        """Return which of the waiting tokens, in the order in which they came, run next."""
        if not self.by_expert:
            return list(range(min(self.size, len(wanted))))
        queues: dict[int, list[int]] = {}
        for i, expert in enumerate(wanted):
            queues.setdefault(expert, []).append(i)
        taken: list[int] = []
        for tokens in sorted(queues.values(), key=lambda q: -len(q)):
            taken += tokens[:self.size - len(taken)]
            if len(taken) == self.size:
                break
        return sorted(taken)
