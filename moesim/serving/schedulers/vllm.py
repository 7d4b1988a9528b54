"""What runs goes on, token by token; prompts fill the rest of the step, in chunks if need be (vLLM V1).

>>> from moesim.serving.group import example
>>> group = example(prompts=[5, 30], outputs=[4, 4], blocks=8)
>>> scheduler = Vllm(max_batch=2, max_tokens=16)
>>> for _ in range(4):           # two prompts in one step, the second cut to fit; then its rest beside a decode
...     requests, tokens = scheduler.plan(group)
...     _ = group.complete(group.advance(requests, tokens))
...     print(dict(zip(requests.tolist(), tokens.tolist())))
{0: 5, 1: 11}
{0: 1, 1: 15}
{0: 1, 1: 4}
{0: 1, 1: 1}
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from moesim.registry import part
from moesim.serving.group import Group


@part
class Vllm:
    """vLLM's V1 scheduler (v1/core/sched/scheduler.py, 0.19): one budget of tokens for prompts and decodes.

    ``max_batch``: requests that run at once in a group (max_num_seqs). ``max_tokens``: tokens of a step
    (max_num_batched_tokens). Memory is taken block by block; if it runs out, whoever came last is preempted and
    computes everything again later, and nobody new is admitted in that step. ``chunked``: false runs prompts whole.
    """

    max_batch: Annotated[int, Field(ge=1)] = 256
    max_tokens: Annotated[int, Field(ge=1)] = 8192
    chunked: bool = True

    def plan(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """Return who runs in the next step of *group*, and how many tokens of each."""
        running = group.running
        requests, tokens = group.room(running, self.max_tokens if self.chunked else None)
        if len(group.running) < len(running) and not len(requests) and not group.under_way:
            return self.plan(group)  # the first was preempted in its own turn: vLLM runs an empty step, and goes on
        if group.n_waiting == 0 or len(group.running) < len(running):
            return requests, tokens
        new, first = self._admit(group, self.max_tokens - int(tokens.sum()))
        return (np.concatenate([requests, new]), np.concatenate([tokens, first])) if len(new) else (requests, tokens)

    def _admit(self, group: Group, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """Admit waiting requests while there is memory and *budget*; return them and the tokens that each runs."""
        new: list[int] = []
        first: list[int] = []
        requests = group.requests
        alone = budget == self.max_tokens
        while group.n_waiting and budget > 0 and len(group.running) < self.max_batch:
            request = group.first()
            target = int(requests.prompt[request] + requests.produced[request])
            found = group.pool.found(request, target)
            count = min(target - found, budget)
            if count < target - found and not self.chunked:
                if new or not alone:
                    break
                count = target - found  # longer than any step may be: it runs alone
            if not group.admit(request, found, count):
                break
            new.append(request)
            first.append(count)
            budget -= count
        return np.array(new, np.int64), np.array(first, np.int64)
