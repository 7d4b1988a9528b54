"""What a request is expected to use from what similar requests used: expert activation matrices (MoE-Infinity).

arXiv 2401.14361. A matrix counts the tokens of a request per layer and expert. A bounded collection holds those of
requests that have finished: a new one takes a free place, then that of its nearest by cosine. A running request is
expected to use what the nearest in the collection used, row by row in shares; at its first token, and while the
collection is empty, what all together used. Letters: S passes, L layers, E experts, C places.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from moesim.memory.events import Events
from moesim.memory.job import Job
from moesim.memory.terms import CacheError

PLACES = 120  # about 3 % of the requests in the paper's setting


def expected_shares(job: Job, who: str, places: int) -> np.ndarray:
    """Return what the running requests of each pass are expected to use, float32 [S, L * E].

    Sums over requests of shares of a layer. The collection begins with the requests of ``fit``, if there are any.
    Raises ``CacheError`` if the events are not of a trace.
    """
    whole = job.whole
    if whole.trace is None or whole.passes is None:
        raise CacheError(f"{who} needs to know which request asks; give a routing trace, not sets of keys")
    mark = ("activation", places, id(job.fit))
    if mark not in whole.memo:
        request = np.unique(whole.trace.tokens["request"].to_numpy(), return_inverse=True)[1]
        rows, starts = whole.passes.rows, whole.passes.starts
        last = np.zeros(request.max() + 1, np.int64)
        np.maximum.at(last, request[rows], np.repeat(np.arange(len(starts) - 1), np.diff(starts)))
        begun = _finished(job.fit, places, len(whole.layer_of))
        matrices = np.concatenate([begun, np.zeros((places - len(begun), begun.shape[1]), np.float32)])
        sums = np.square(matrices).sum(axis=1), matrices.sum(axis=0)
        whole.memo[mark] = _shares(whole.trace.chosen, rows, starts, np.stack([request, last[request]]), matrices,
                                   len(begun), sums)
    return whole.memo[mark]


def _finished(fit: Events | None, places: int, n_keys: int) -> np.ndarray:
    """Return the matrices of the first requests of *fit*, float32 [at most *places*, L * E]."""
    if fit is None or fit.trace is None:
        return np.zeros((0, n_keys), np.float32)
    trace = fit.trace
    request = np.unique(trace.tokens["request"].to_numpy(), return_inverse=True)[1]
    rows = np.flatnonzero(request < places)
    keys = np.arange(trace.n_layers)[:, None] * trace.n_experts + trace.chosen[rows].astype(np.int64)
    counts = np.zeros((min(request.max() + 1, places), n_keys), np.float32)
    np.add.at(counts, (request[rows][:, None, None], keys), np.float32(1))
    return counts


@njit(cache=True, nogil=True)
def _shares(chosen: np.ndarray, rows: np.ndarray, passes: np.ndarray, request: np.ndarray, matrices: np.ndarray,
            filled: int, sums: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    # Loops, not slices: for those numba would compile what it says of arrays of other lengths, two seconds of it.
    n_layers, top_k = chosen.shape[1:]
    n_requests, (places, n_keys) = request[0].max() + 1, matrices.shape
    n_experts, by_key = n_keys // n_layers, matrices.T.copy()
    norms, total = np.sqrt(sums[0]), sums[1]
    used, dots = np.zeros((n_requests, n_keys), np.float32), np.zeros((n_requests, places), np.float32)
    seen, out = np.zeros(n_requests, np.int64), np.zeros((len(passes) - 1, n_keys), np.float32)
    for p in range(len(passes) - 1):
        mine = rows[passes[p]:passes[p + 1]]
        for r in mine:
            q = request[0, r]
            if seen[q] <= p:  # once per pass, whatever its rows
                _add_shares(out[p], matrices[_nearest(dots[q], norms, filled)] if seen[q] > 0 and filled else total,
                            n_layers)
                seen[q] = p + 1
        for r in mine:
            q = request[0, r]
            for layer in range(n_layers):
                for m in range(top_k):
                    k = layer * n_experts + chosen[r, layer, m]
                    used[q, k] += 1
                    for c in range(places):
                        dots[q, c] += by_key[k, c]
        for r in mine:
            q = request[0, r]
            if request[1, r] == p and seen[q] > 0:
                seen[q] = -1  # has finished
                at = filled if filled < places else _nearest(dots[q], norms, filled)
                filled = min(filled + 1, places)
                norms[at] = np.sqrt((used[q] * used[q]).sum())
                _keep(used[q], at, matrices, by_key, total)
                for other in range(n_requests):
                    if seen[other] > 0:
                        dots[other, at] = (used[other] * used[q]).sum()
    return out


@njit(cache=True, nogil=True)
def _keep(used: np.ndarray, at: int, matrices: np.ndarray, by_key: np.ndarray, total: np.ndarray) -> None:
    """Put what a request *used* into place *at* of the collection."""
    for k in range(len(used)):
        total[k] += used[k] - matrices[at, k]
        matrices[at, k] = by_key[k, at] = used[k]


@njit(cache=True, nogil=True)
def _nearest(dots: np.ndarray, norms: np.ndarray, filled: int) -> int:
    best = 0
    for c in range(1, filled):
        if dots[c] * norms[best] > dots[best] * norms[c]:
            best = c
    return best


@njit(cache=True, nogil=True)
def _add_shares(out: np.ndarray, matrix: np.ndarray, n_layers: int) -> None:
    n_experts = len(matrix) // n_layers
    for layer in range(n_layers):
        row = matrix[layer * n_experts:(layer + 1) * n_experts]
        whole = row.sum()
        if whole > 0:
            for e in range(n_experts):
                out[layer * n_experts + e] += row[e] / whole
