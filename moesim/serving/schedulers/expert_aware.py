"""Tokens that choose the same experts run together, so that a step reads fewer experts (Read-ME).

It has to know what experts a token will choose before its step runs: engines need a gate that runs ahead of the model.

>>> from moesim.serving.group import example
>>> group = example(prompts=[1] * 5, outputs=[2] * 5, blocks=8, experts=[0, 1, 2, 1, 1])
>>> scheduler = ExpertAware(max_tokens=3, patience=2)
>>> for _ in range(4):           # expert 1 has the longest queue; after two steps it is the turn of who was passed over
...     requests, tokens = scheduler.plan(group)
...     _ = group.complete(group.advance(requests, tokens))
...     print(requests.tolist())
[1, 3, 4]
[1, 3, 4]
[0, 2]
[0, 2]
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.registry import part
from moesim.serving.group import Group


@part
class ExpertAware:
    """Read-ME's batching (arXiv 2410.19123, algorithm 1): the longest queue of an expert first, until the step is full.

    Every expert has a queue of the tokens that choose it next. Whoever needs no expert beyond those of the step comes
    first, then the longest queue as a whole, and so on; who does not fit into ``max_tokens`` is cut or has to wait, so
    there is a choice only if more tokens could run than that. The paper has one gate for all layers and one expert per
    token; where layers choose by themselves, every expert of every layer has a queue. ``max_batch``: requests that run
    at once in a group, each with room for its whole KV; of those that wait, only who could come in is looked at.
    ``patience``: who was passed over in so many steps in a row comes first, the longest first. The paper has no such
    bound; it is that of memory controllers that prefer open rows, with a cap (FR-FCFS+Cap, Mutlu and Moscibroda,
    MICRO 2007).
    """

    max_batch: Annotated[int, Field(ge=1)] = 256
    max_tokens: Annotated[int, Field(ge=1)] = 8192
    patience: Annotated[int, Field(ge=1)] = 8  # assumed
    chunked: ClassVar[bool] = True
    knows_experts: ClassVar[bool] = True

    def plan(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """Return who runs in the next step of *group*, and how many tokens of each."""
        who, past, left = self._candidates(group)
        requests, tokens = self._serve(group, who[self._order(group, who, past, left)])
        group.note_turn(who, requests)
        return requests, tokens

    def _candidates(self, group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return who could run, in order of admission and arrival, the tokens of each in memory, and those to compute.
        """
        live = group.requests
        running = group.running[live.left(group.running) > 0]
        waiting = np.array(group.waiting()[: self.max_batch - len(group.running)], np.int64)
        found = np.array([group.pool.found(r, int(live.prompt[r] + live.produced[r])) for r in waiting], np.int64)
        return (np.concatenate([running, waiting]), np.concatenate([live.computed[running], found]),
                np.concatenate([live.left(running), live.prompt[waiting] + live.produced[waiting] - found]))

    def _order(self, group: Group, who: np.ndarray, past: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Return the order in which *who* should run, as far as the step can have room: int64, indices of *who*."""
        if group.demand is None or len(who) == 0:
            return np.arange(len(who))
        passed, tokens = group.passed[who], np.minimum(left, self.max_tokens)
        overdue = np.flatnonzero(passed >= self.patience)
        order = [overdue[np.argsort(-passed[overdue], kind="stable")]]
        demand = group.demand(who, past, tokens)
        rest, read = np.ones(len(who), bool), np.zeros(demand.shape[1], bool)
        sure = np.where(np.isin(who, group.running), tokens, 0)  # others may find no memory
        room, chosen = self.max_tokens, order[0]
        while True:
            rest[chosen] = False
            read |= demand[chosen].any(axis=0)
            room -= int(sure[chosen].sum())
            if room <= 0 or not rest.any():
                return np.concatenate(order)
            chosen = np.flatnonzero(rest & ~demand[:, ~read].any(axis=1))
            if len(chosen) == 0:
                chosen = np.flatnonzero(rest & (demand[:, demand[rest].sum(axis=0).argmax()] > 0))
            order.append(chosen)

    def _serve(self, group: Group, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give tokens to requests in *order* while there are any; the first that finds no memory ends admission."""
        live, room, admits = group.requests, self.max_tokens, True
        running = set(group.running.tolist())
        old, new, first = list[int](), list[int](), list[int]()
        for request in order.tolist():
            if room <= 0:
                break
            if request in running:
                old.append(request)
                room -= int(live.left(np.array([request]))[0])
                continue
            admits = admits and len(group.running) < self.max_batch
            target = int(live.prompt[request] + live.produced[request])
            found = group.pool.found(request, target) if admits else 0
            count = min(target - found, room)
            admits = admits and group.admit(request, found, count, reserve=True)
            if admits:
                new.append(request)
                first.append(count)
                room -= count
        served, tokens = group.room(np.array(old, np.int64), self.max_tokens - sum(first))
        return np.concatenate([served, np.array(new, np.int64)]), np.concatenate([tokens, np.array(first, np.int64)])
