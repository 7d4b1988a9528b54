"""One bit per access: whether an expert can be dropped, or is not needed soon; exact, and with errors.

"Paging with Succinct Predictions" (ICML 2023, arXiv 2210.02775), in the form for events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from moesim.memory.job import Job


def discard_bits(job: Job) -> np.ndarray:
    """Return 1 for each access after which Belady, forced to admit, evicts the key before its next use, uint8 [A]."""
    from moesim.memory.policies.belady import Belady

    return job.play(Belady(bypass=False).rule(job), dropped=True).dropped


def phase_bits(job: Job) -> np.ndarray:
    """Return 1 for each access to a key that the next phase of its cache does not use, uint8 [A].

    A phase is the longest run of events of a cache whose distinct keys fit into it; an event that does not fit alone is
    a phase of its own.
    """
    events = job.events
    first = events.keys[np.minimum(events.starts[:-1], len(events.keys) - 1)]
    return _phase_bits(events.starts, events.keys, job.cache_of[first], job.rooms, job.size)


@njit(cache=True, nogil=True)
def _phase_bits(starts: np.ndarray, keys: np.ndarray, cache_of: np.ndarray, rooms: np.ndarray,
                size: np.ndarray) -> np.ndarray:
    n_events, used = len(starts) - 1, np.zeros(len(rooms), np.int64)
    phase, met = np.zeros(len(rooms), np.int64), np.full(len(size), -1)
    phases = np.zeros(n_events, np.int64)
    for i in range(n_events):
        cache, more = cache_of[i], 0
        for k in keys[starts[i]:starts[i + 1]]:
            more += size[k] * (met[k] != phase[cache])
        if used[cache] and used[cache] + more > rooms[cache]:
            phase[cache] += 1
            used[cache], more = 0, 0
            for k in keys[starts[i]:starts[i + 1]]:
                more += size[k]
        used[cache] += more
        phases[i] = phase[cache]
        for k in keys[starts[i]:starts[i + 1]]:
            met[k] = phase[cache]
    bits, upcoming, after = np.zeros(len(keys), np.uint8), np.full(len(size), -1), np.full(len(size), -1)
    for i in range(n_events - 1, -1, -1):  # upcoming: phase of the next use; after: that of the first in a later phase
        for j in range(starts[i], starts[i + 1]):
            k = keys[j]
            if upcoming[k] != phases[i]:
                after[k] = upcoming[k]
            bits[j] = after[k] != phases[i] + 1
            upcoming[k] = phases[i]
    return bits


def flipped(bits: np.ndarray, missed: float, spurious: float, seed: int) -> np.ndarray:
    """Return *bits* with the share *missed* of the ones and *spurious* of the zeros told wrong, drawn."""
    if not missed and not spurious:
        return bits
    draw = np.random.default_rng(seed).random(len(bits))
    return np.where(bits == 1, draw >= missed, draw < spurious).astype(np.uint8)
