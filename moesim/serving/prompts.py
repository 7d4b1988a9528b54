"""How schedulers that run whole prompts let requests in."""

from __future__ import annotations

import numpy as np

from moesim.serving.group import Group


def admit_whole(group: Group, max_batch: int, max_tokens: int, reserve: bool) -> tuple[np.ndarray, np.ndarray]:
    """Admit waiting requests in order; return them and the tokens of each that must be computed, int64.

    At most *max_batch* run at once, and the step gets at most *max_tokens*; one longer prompt runs alone. With
    *reserve* a request is admitted with room for its last token too, so that nobody is ever preempted. Who does not fit
    holds back those behind.
    """
    admitted: list[int] = []
    tokens: list[int] = []
    requests, pool = group.requests, group.pool
    while group.n_waiting and len(group.running) < max_batch:
        request = group.first()
        target = int(requests.prompt[request] + requests.produced[request])
        found = pool.found(request, target)
        if tokens and sum(tokens) + target - found > max_tokens:
            break
        if not group.admit(request, found, target - found, reserve):
            break
        admitted.append(request)
        tokens.append(target - found)
    return np.array(admitted, np.int64), np.array(tokens, np.int64)


def next_tokens(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Return who of *group* has only its next token to compute, and a 1 for each; others are preempted if need be."""
    while True:
        running = group.running[group.requests.left(group.running) == 1]
        served, tokens = group.room(running)
        if len(served) or not len(running):  # else its first was preempted in its own turn
            return served, tokens
