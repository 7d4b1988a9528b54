"""Prompts run whole and as soon as there is room; decodes wait for them, or run beside them.

>>> from moesim.serving.group import example
>>> group = example(prompts=[5, 30], outputs=[4, 4], blocks=8)
>>> scheduler = PrefillFirst(max_batch=2, max_tokens=16)
>>> for _ in range(3):
...     requests, tokens = scheduler.plan(group)
...     _ = group.complete(group.advance(requests, tokens))
...     print(dict(zip(requests.tolist(), tokens.tolist())))
{0: 5}
{1: 30}
{0: 1, 1: 1}
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from moesim.registry import part
from moesim.serving.group import Group
from moesim.serving.prompts import admit_whole, next_tokens


@part
class PrefillFirst:
    """Continuous batching (Orca, OSDI'22), without chunks, first come first served.

    ``max_batch``: requests that run at once in a group. ``max_tokens``: prompt tokens per step; one prompt longer than
    that runs alone. ``prefill``: ``own`` gives prompts a step of their own, before decodes; ``mixed`` runs them beside
    the decodes. ``reserve``: a request is admitted when its group can hold its whole KV (prompt and output), so that
    nothing that runs is ever preempted; false takes memory as tokens come.
    """

    max_batch: Annotated[int, Field(ge=1)] = 256
    max_tokens: Annotated[int, Field(ge=1)] = 8192
    prefill: Literal["own", "mixed"] = "own"
    reserve: bool = True

    def plan(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """Return who runs in the next step of *group*, and how many tokens of each."""
        if self.prefill == "own":
            prompts, tokens = admit_whole(group, self.max_batch, self.max_tokens, self.reserve)
            return (prompts, tokens) if len(prompts) else next_tokens(group)
        decodes, ones = next_tokens(group)
        prompts, tokens = admit_whole(group, self.max_batch, self.max_tokens, self.reserve)
        return np.concatenate([prompts, decodes]), np.concatenate([tokens, ones])
