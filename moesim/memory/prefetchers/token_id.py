"""What other requests' tokens of the same id used, layer by layer: a table that is read before the first layer.

Works as well as experts depend on the token alone ("context-independent specialisation", OpenMoE, arXiv 2402.01739);
exact for gates frozen to token ids (StableMoE). It sees no future.

>>> import numpy as np
>>> from moesim.memory import replay
>>> from moesim.trace import RoutingTrace
>>> ids = np.array([5, 6, 7, 5, 6, 7])
>>> trace = RoutingTrace.from_arrays((ids % 3)[:, None, None], 3, 1, phase=1, token_id=ids)
>>> replay(trace, "lru", 1, prefetcher="token_id", fit=trace).hits, replay(trace, "lru", 1).hits
(6, 0)
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numba import njit
from pydantic import Field

from moesim.memory.events import Events, of_choices
from moesim.memory.job import Forecast, Job
from moesim.memory.terms import CacheError
from moesim.registry import part
from moesim.trace import RoutingTrace


@part
class TokenId:
    """Expect the top-k experts that tokens of this id used most in ``fit``; nothing for ids that it does not have.

    horizon  layers that are loaded ahead, the coming one included
    """

    horizon: Annotated[int, Field(ge=1)] = 1

    def forecast(self, job: Job) -> Forecast:
        """Return the expectations. Raises ``CacheError`` without other requests, or without token ids."""
        fit, asked = job.fitted("token_id"), job.whole.trace
        if fit.trace is None or asked is None or job.whole.passes is None:
            raise CacheError("token_id needs the ids of tokens; give a routing trace, not sets of keys")
        expected = of_choices(asked, _expected(fit, asked), job.whole.passes)
        return job.expecting(expected.starts, expected.keys, self.horizon)


def _expected(fit: Events, asked: RoutingTrace) -> np.ndarray:
    """Return what the ids of the tokens *asked* for used most in *fit*, int32 [T, L, K], -1 where nothing is known."""
    learnt, mark = fit.trace, ("token_id", id(asked))
    assert learnt is not None, "asked only of events of a trace"
    if mark not in fit.memo:
        ids, asked_ids = _ids(learnt, "fit"), _ids(asked, "the trace")
        known, slot = np.unique(ids, return_inverse=True)
        order = np.argsort(slot, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(slot))])
        table = _most_used(learnt.chosen, order, starts, learnt.n_experts)
        found = np.searchsorted(known, asked_ids).clip(max=len(known) - 1)
        fit.memo[mark] = np.where((known[found] == asked_ids)[:, None, None], table[found], -1)
    return fit.memo[mark]


def _ids(trace: RoutingTrace, what: str) -> np.ndarray:
    ids = trace.tokens["token_id"].to_numpy()
    if (ids < 0).any():
        raise CacheError(f"token_id: {what} has no token id in row {int((ids < 0).argmax())}; capture one with token "
                         "ids, or use another prefetcher")
    return ids


@njit(cache=True, nogil=True)
def _most_used(chosen: np.ndarray, rows: np.ndarray, starts: np.ndarray, n_experts: int) -> np.ndarray:
    """Return the experts that each id used most, int32 [ids, L, K], -1 where there are fewer."""
    n_layers, top_k = chosen.shape[1:]
    best = np.full((len(starts) - 1, n_layers, top_k), -1, np.int32)
    for i in range(len(starts) - 1):
        for layer in range(n_layers):
            counts = np.zeros(n_experts, np.int64)
            for r in rows[starts[i]:starts[i + 1]]:
                for m in range(top_k):
                    counts[chosen[r, layer, m]] += 1
            for m in range(top_k):
                e = counts.argmax()
                if counts[e] > 0:
                    best[i, layer, m] = e
                    counts[e] = 0
    return best
