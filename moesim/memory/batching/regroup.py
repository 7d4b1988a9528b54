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

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from moesim.memory.batching._turns import Turns
from moesim.memory.batching.continuous import Continuous
from moesim.memory.events import Passes
from moesim.registry import part
from moesim.trace import RoutingTrace


@part
class Regroup:
    """Run 2 x *size* requests as two batches, one token of each request per pass.

    iterations  rounds of the clustering at most (assumed); 0: the halves as they come, to compare with
    deal        ``turn``: the tokens of every turn are dealt, the two batches run in turn; ``request``: requests are
                dealt once, by all that they will use, and one batch runs to its end before the other
    """

    size: Annotated[int, Field(ge=1)] = 8
    iterations: Annotated[int, Field(ge=0)] = 10
    deal: Literal["turn", "request"] = "turn"

    def passes(self, trace: RoutingTrace, seed: int) -> Passes:
        """Return the passes: two for each turn of the requests, the second may be smaller."""
        if self.deal == "request":
            return self._kept(trace)
        both = Continuous(size=2 * self.size).passes(trace, seed)
        rows, starts, fresh = [], [0], []
        for mine, is_fresh in zip(np.split(both.rows, both.starts[1:-1]), both.fresh, strict=True):
            for part_of in self._halves(trace, mine, np.arange(len(mine))):
                if len(part_of):
                    rows.append(mine[np.sort(part_of)])
                    starts.append(starts[-1] + len(part_of))
                    fresh.append(is_fresh)
        return Passes(np.concatenate(rows), np.array(starts), np.array(fresh, np.uint8))

    def _kept(self, trace: RoutingTrace) -> Passes:
        """Return the passes of batches that stay together; the next one begins when its longest request is done."""
        turns = Turns.of(trace, "tokens", None)
        begins, at = np.zeros(len(turns.lengths), np.int64), 0
        for first in range(0, len(begins), 2 * self.size):
            unit = (turns.request >= first) & (turns.request < first + 2 * self.size)
            for half in self._halves(trace, turns.rows[unit], turns.request[unit] - first):
                if len(half):
                    begins[first + half] = at
                    at += int(turns.lengths[first + half].max())
        return turns.passes(begins)

    def _halves(self, trace: RoutingTrace, rows: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the owners (0.. for each of *rows*) in two batches: those like the first medoid, and the others."""
        n = int(owner.max()) + 1
        if not self.iterations:
            return np.arange(min(self.size, n)), np.arange(min(self.size, n), n)
        routes = _routes(trace, rows, owner)
        like = routes @ routes.T  # experts in common: what equal lengths of routes make of the Hamming distance
        a, b = np.unravel_index(int(like.argmin()), like.shape)
        order, half = np.arange(n), -(-n // 2)
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
        return order[:half], order[half:]


def _routes(trace: RoutingTrace, rows: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Return what each owner uses: the share of its tokens by layer and expert, flat."""
    tokens = np.bincount(owner)
    found = np.zeros((len(tokens), trace.n_layers, trace.n_experts), np.float32)
    np.add.at(found, (owner[:, None, None], np.arange(trace.n_layers)[:, None], trace.chosen[rows]), np.float32(1))
    return (found / tokens[:, None, None]).reshape(len(tokens), -1)
