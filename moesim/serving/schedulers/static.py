"""A batch runs until its last request is done; only then the next one comes in.

>>> from moesim.serving.group import example
>>> group = example(prompts=[5, 3, 8], outputs=[2, 3, 1], blocks=8)
>>> scheduler = Static(max_batch=2)
>>> for _ in range(4):
...     requests, tokens = scheduler.plan(group)
...     _ = group.complete(group.advance(requests, tokens))
...     print(dict(zip(requests.tolist(), tokens.tolist())))
{0: 5, 1: 3}
{0: 1, 1: 1}
{1: 1}
{2: 8}
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.registry import part
from moesim.serving.group import Group
from moesim.serving.prompts import admit_whole, next_tokens


@part
class Static:
    """Request-level batching, as engines did before Orca: ``max_batch`` requests of a group at a time.

    ``max_tokens``: prompt tokens of a batch; one longer prompt runs alone. Each request has room for its whole KV.
    """

    max_batch: Annotated[int, Field(ge=1)] = 256
    max_tokens: Annotated[int, Field(ge=1)] = 8192

    def plan(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """Return who runs in the next step of *group*, and how many tokens of each."""
        if len(group.running):
            return next_tokens(group)
        return admit_whole(group, self.max_batch, self.max_tokens, reserve=True)
