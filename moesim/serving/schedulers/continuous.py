"""Admit while memory and batch limits allow; decode one token of every running request per step.

>>> import numpy as np
>>> from moesim.serving.routers.least_loaded import LeastLoaded
>>> from moesim.serving.view import QueueView
>>> view = QueueView(waiting=np.array([2]), admitted=np.array([], int), running=np.array([0, 1]),
...                  prompt_tokens=np.array([8, 8, 8]), kv_tokens=np.array([16, 16, 16]),
...                  requests=np.array([2]), pool=np.array([0]), free_tokens=np.array([100]))
>>> Continuous(max_batch=4, prefill="own").plan(view, LeastLoaded()).decode    # the prompt runs first, alone
array([], dtype=int64)
>>> Continuous(max_batch=4, prefill="mixed").plan(view, LeastLoaded()).decode  # prompt and decodes together
array([0, 1])
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from moesim.registry import part
from moesim.serving.view import Plan, QueueView

_NONE = np.empty(0, dtype=np.int64)


@part
class Continuous:
    """Continuous batching, first come first served (Orca, OSDI'22), without chunked prompts and without preemption.

    ``max_batch``: requests running at once on the whole machine. ``max_tokens``: prompt tokens per step; one prompt
    longer than that runs alone. ``prefill``: ``own`` gives prompts a step of their own, before decodes; ``mixed`` runs
    them beside the decodes. A request is admitted when its group can hold its whole KV (prompt and output), so nothing
    that runs is ever evicted; a request that must wait for memory holds back those behind it.
    """

    max_batch: Annotated[int, Field(ge=1)] = 256
    max_tokens: Annotated[int, Field(ge=1)] = 8192
    prefill: Literal["own", "mixed"] = "own"

    def plan(self, view: QueueView, router: Any) -> Plan:
        """Return what to do in the next step; *router* chooses the group of each admitted request."""
        admit = self._admit(view, router)
        ready = np.concatenate([view.admitted, np.fromiter(admit, np.int64, len(admit))])
        total = np.cumsum(view.prompt_tokens[ready])
        prompts = ready[: max(1, np.searchsorted(total, self.max_tokens, side="right"))]
        alone = self.prefill == "own" and len(prompts) > 0
        return Plan(admit, prompts, _NONE if alone else view.running)

    def _admit(self, view: QueueView, router: Any) -> dict[int, int]:
        admit: dict[int, int] = {}
        free, requests = view.free_tokens.copy(), view.requests.copy()
        room = self.max_batch - int(requests.sum())
        for request in view.waiting[: max(0, room)]:
            need = view.kv_tokens[request]
            room_in = free[view.pool]
            fits = room_in >= need
            if not fits.any():
                break
            group = router.choose(np.where(fits, room_in, -1), np.where(fits, requests, np.iinfo(np.int64).max))
            admit[int(request)] = group
            free[view.pool[group]] -= need
            requests[group] += 1
        return admit
