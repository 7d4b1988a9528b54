"""Two batches are dealt anew so that tokens with like routes run together (ExpertFlow's token scheduler).

arXiv 2410.17954: the tokens of two batches are split into two sets of equal size by balanced clustering around two
medoids, like routes together, so that each half asks for fewer experts. Every token's route must be known before.

>>> import numpy as np
>>> from moesim.trace import RoutingTrace
>>> trace = RoutingTrace.from_arrays(np.array([0, 1, 0, 1])[:, None, None], 2, 1, request=range(4), phase=1)
>>> passes = Regroup(size=2).passes(trace, seed=0)
>>> [rows.tolist() for rows in np.split(passes.rows, passes.starts[1:-1])]
[[0, 2], [1, 3]]
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.memory.batching.continuous import Continuous
from moesim.memory.events import Passes
from moesim.registry import part
from moesim.trace import RoutingTrace


@part
class Regroup:
    """Run 2 x *size* requests side by side, one token of each per turn, as two passes.

    iterations  rounds of the clustering at most (assumed); 0: the halves as they come, to compare with
    """

    size: Annotated[int, Field(ge=1)] = 8
    iterations: Annotated[int, Field(ge=0)] = 10

    def passes(self, trace: RoutingTrace, seed: int) -> Passes:
        """Return the passes: two for each turn of the requests, the second may be smaller."""
        both = Continuous(size=2 * self.size).passes(trace, seed)
        rows, starts, fresh = [], [0], []
        for mine, is_fresh in zip(np.split(both.rows, both.starts[1:-1]), both.fresh, strict=True):
            half = min(self.size, len(mine)) if not self.iterations else -(-len(mine) // 2)
            order = self._likeness_first(trace, mine) if self.iterations else np.arange(len(mine))
            for part_of in (order[:half], order[half:]):
                if len(part_of):
                    rows.append(mine[np.sort(part_of)])
                    starts.append(starts[-1] + len(part_of))
                    fresh.append(is_fresh)
        return Passes(np.concatenate(rows), np.array(starts), np.array(fresh, np.uint8))

    def _likeness_first(self, trace: RoutingTrace, rows: np.ndarray) -> np.ndarray:
        """Return the places of *rows*, those of the first medoid's half before the others."""
        routes = np.zeros((len(rows), trace.n_layers, trace.n_experts), np.float32)
        np.put_along_axis(routes, trace.chosen[rows].astype(np.int64), np.float32(1), axis=2)
        flat = routes.reshape(len(rows), -1)
        like = flat @ flat.T  # experts in common: what equal lengths of routes make of the Hamming distance
        a, b = np.unravel_index(int(like.argmin()), like.shape)
        order, half = np.arange(len(rows)), -(-len(rows) // 2)
        for _ in range(self.iterations):
            order = np.argsort(like[b] - like[a], kind="stable")
            first, second = order[:half], order[half:]
            if not len(second):
                break
            now = (first[like[np.ix_(first, first)].sum(axis=1).argmax()],
                   second[like[np.ix_(second, second)].sum(axis=1).argmax()])
            if now == (a, b):
                break
            a, b = now
        return order
