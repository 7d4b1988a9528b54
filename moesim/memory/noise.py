"""A predictor by its recall and precision: what really comes, with as many errors as asked for.

Letters: N events, Q askers (a token at a layer, or an event of which only the set is known), L layers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from moesim.memory.job import Job
from moesim.memory.terms import uniform

_TRIES = 8  # draws of a wrong expert that is not a right one, before it is left out


def expected_with_errors(job: Job, recall: float, precision: float) -> tuple[np.ndarray, np.ndarray]:
    """Return starts [N + 1] and keys of what a predictor of this *recall* and *precision* expects of *job*'s events.

    For every token and layer each of its experts is expected with probability *recall*; as many others as give the
    *precision* are drawn by the layer's popularity. A batch expects what any of its tokens is expected to use.
    """
    events, popularity = job.whole, job.popularity
    if events.trace is not None and events.passes is not None:
        keys, width = _slots(events.trace.chosen, events.passes.rows, events.passes.starts, events.trace.n_experts)
        askers = np.arange(0, len(keys) + 1, width)
        per_event = np.repeat(np.diff(events.passes.starts), events.n_layers)
    else:
        keys, askers, per_event = events.keys, events.starts, np.ones(len(events.step), np.int64)
    wrong = recall * (1 - precision) / precision  # per right one that there is
    substitute = min(wrong / (1 - recall), 1.0) if recall < 1 else 0.0
    rates = np.array([recall, substitute, wrong - substitute * (1 - recall)])
    bounds = np.searchsorted(events.layer_of, np.arange(events.n_layers + 1))
    return _with_errors(askers, keys, np.concatenate([[0], np.cumsum(per_event)]),
                        np.stack([bounds[events.layer], bounds[events.layer + 1]]),
                        np.concatenate([[0.0], np.cumsum(popularity)]), np.append(rates, job.seed))


@njit(cache=True, nogil=True)
def _slots(chosen: np.ndarray, rows: np.ndarray, passes: np.ndarray, n_experts: int) -> tuple[np.ndarray, int]:
    """Return the keys that each token uses, in the order pass, layer, token, rank; and how many a token uses."""
    n_layers, top_k = chosen.shape[1:]
    keys, at = np.zeros(len(rows) * n_layers * top_k, np.int32), 0
    for p in range(len(passes) - 1):
        for layer in range(n_layers):
            for r in rows[passes[p]:passes[p + 1]]:
                for m in range(top_k):
                    keys[at] = layer * n_experts + chosen[r, layer, m]
                    at += 1
    return keys, top_k


@njit(cache=True, nogil=True)
def _with_errors(askers: np.ndarray, keys: np.ndarray, events: np.ndarray, bounds: np.ndarray, popularity: np.ndarray,
                 rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts, seed = np.zeros(len(events), np.int64), int(rates[3])
    most = len(keys) * (2 + np.int64(np.ceil(rates[2])))
    out, at, stamp = np.zeros(most, np.int32), 0, np.full(len(popularity) - 1, -1)
    for i in range(len(events) - 1):
        for q in range(events[i], events[i + 1]):
            mine = keys[askers[q]:askers[q + 1]]
            for j in range(askers[q], askers[q + 1]):
                kept = uniform(seed, 3 * j) < rates[0]
                n_wrong = np.int64(rates[2] + uniform(seed, 3 * j + 1))  # rounded at random
                if not kept and uniform(seed, 3 * j + 2) < rates[1]:
                    n_wrong += 1
                if kept and stamp[keys[j]] != i:
                    stamp[keys[j]] = i
                    out[at] = keys[j]
                    at += 1
                for w in range(n_wrong):
                    k = _another(mine, popularity, bounds[0, i], bounds[1, i], seed + 1 + w, j)
                    if k >= 0 and stamp[k] != i:
                        stamp[k] = i
                        out[at] = k
                        at += 1
        starts[i + 1] = at
    return starts, out[:at].copy()


@njit(cache=True, nogil=True)
def _another(mine: np.ndarray, popularity: np.ndarray, first: int, end: int, seed: int, j: int) -> int:
    """Draw a key from *first* to *end* by *popularity* (cumulative) that is not in *mine*, -1 if none was met."""
    span = popularity[end] - popularity[first]
    for attempt in range(_TRIES):
        u = uniform(~seed, j * _TRIES + attempt)
        k = np.searchsorted(popularity[first + 1:end + 1], popularity[first] + u * span, side="right") + first
        if k < end and not (mine == k).any():
            return k
    return -1
