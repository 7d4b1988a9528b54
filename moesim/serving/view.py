"""What a scheduler sees of the queue, and what it answers: two plain records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class QueueView:
    """The queue at the start of a step. Request numbers are in order of arrival.

    ``waiting``: arrived, not admitted; ``admitted``: have memory, prompt not yet run; ``running``: decode.
    ``prompt_tokens``, ``kv_tokens``: of every request of the run, prompt length and KV tokens that it may need in all.
    ``requests``: per group, requests that it serves. ``pool``: the memory pool of each group (its own, or one that all
    share where every device holds the KV of all requests). ``free_tokens``: per pool, KV tokens not yet reserved.
    """

    waiting: np.ndarray
    admitted: np.ndarray
    running: np.ndarray
    prompt_tokens: np.ndarray
    kv_tokens: np.ndarray
    requests: np.ndarray
    pool: np.ndarray
    free_tokens: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What to do in a step: ``admit`` maps a waiting request to its group; ``prefill`` and ``decode`` run."""

    admit: dict[int, int]
    prefill: np.ndarray
    decode: np.ndarray
