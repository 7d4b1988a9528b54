"""Resident experts before others among a token's best candidates, its very best ones always (max rank).

The max-rank rule of Mixture of Cache-Conditional Experts (arXiv 2412.00099, Algorithm 1): the *keep* best candidates
are used in any case; the other places go to the best *window* candidates, resident ones first, each by rank. What the
paper reports of its other rule (a bonus on the logits of resident experts) needs logits of all experts.

>>> import numpy as np
>>> from moesim.memory import replay
>>> from moesim.trace import RoutingTrace
>>> ranked = np.array([[0, 1, 2], [0, 2, 1]])[:, None]  # top-2 and one candidate more: the second token uses 0 and 1
>>> trace = RoutingTrace.from_arrays(ranked, 3, 2, phase=1, probs=np.full((2, 1, 3), 0.3))
>>> stats = replay(trace, "lru", 2, reroute={"name": "cache_conditional", "keep": 1})
>>> stats.hits, stats.misses, stats.swapped_share
(2, 2, 0.25)
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moesim.memory.swapping import Swap, pick
from moesim.memory.terms import CacheError
from moesim.registry import part


@pick
def _resident_first(ranked, probs, there, p, out):  # type: ignore[no-untyped-def]
    keep, n = int(p[0]), 0
    for resident in (1, 0):
        for rank in range(len(ranked)):
            if n < len(out) and (resident if rank < keep else there[ranked[rank]] == resident):
                out[n] = rank
                n += 1


@part
class CacheConditional:
    """Use the *keep* (1: assumed) best always, resident ones of the best *window* first; None: all that are ranked."""

    keep: Annotated[int, Field(ge=0)] = 1
    window: Annotated[int, Field(ge=1)] | None = None

    def swap(self, top_k: int) -> Swap:
        """Return the swap. Raises ``CacheError`` if more are kept than used, or fewer are looked at."""
        if self.keep > top_k:
            raise CacheError(f"cache_conditional: keep is {self.keep}, but a token uses {top_k} experts; give 0 to "
                             f"{top_k}")
        if self.window is not None and self.window < top_k:
            raise CacheError(f"cache_conditional: window is {self.window}, but a token uses {top_k} experts; give "
                             f"{top_k} at least")
        return Swap(_resident_first, (float(self.keep),), self.window)
