"""Decodes go on until few are left; then prompts come in, in a step of their own.

>>> from moesim.serving.group import example
>>> group = example(prompts=[5, 3, 8], outputs=[2, 4, 1], blocks=8)
>>> scheduler = DecodeFirst(max_batch=2, refill=0.5)
>>> for _ in range(4):           # the third prompt comes when one of two requests is done
...     requests, tokens = scheduler.plan(group)
...     _ = group.complete(group.advance(requests, tokens))
...     print(dict(zip(requests.tolist(), tokens.tolist())))
{0: 5, 1: 3}
{0: 1, 1: 1}
{2: 8}
{1: 1}
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.registry import part
from moesim.serving.group import Group
from moesim.serving.prompts import admit_whole, next_tokens


@part
class DecodeFirst:
    """Time per output token before time to first token.

    ``max_batch``: requests that run at once in a group. ``max_tokens``: prompt tokens per step; one longer prompt runs
    alone. ``refill``: prompts come in when at most this share of ``max_batch`` runs. ``reserve``: as ``prefill_first``.
    """

    max_batch: Annotated[int, Field(ge=1)] = 256
    max_tokens: Annotated[int, Field(ge=1)] = 8192
    refill: Annotated[float, Field(ge=0, le=1)] = 0.5
    reserve: bool = True

    def plan(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """Return who runs in the next step of *group*, and how many tokens of each."""
        if len(group.running) <= self.refill * self.max_batch:
            prompts, tokens = admit_whole(group, self.max_batch, self.max_tokens, self.reserve)
            if len(prompts):
                return prompts, tokens
        return next_tokens(group)
