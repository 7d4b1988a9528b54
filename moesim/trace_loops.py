"""Hot loops over expert choices, each with a plain numpy twin that a test compares.

Letters: T tokens, L MoE layers, M ranked candidates per layer, K = top-k (the first K of M were used),
E experts, S steps. Every array of choices is uint16 [T, L, M], C-contiguous and read-only.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FINE, OUT_OF_RANGE, REPEATED = 0, 1, 2


@njit(cache=True, nogil=True)
def first_bad_choice(experts: np.ndarray, n_experts: int) -> tuple[int, int, int]:
    """Return (fact, token row, layer) of the first id >= *n_experts* or repeated id, or (FINE, -1, -1)."""
    seen = np.zeros(n_experts, dtype=np.int64)  # the last (token, layer) at which an expert was met
    n_tokens, n_layers, n_ranked = experts.shape
    here = 0
    for t in range(n_tokens):
        for layer in range(n_layers):
            here += 1
            for m in range(n_ranked):
                expert = experts[t, layer, m]
                if expert >= n_experts:
                    return OUT_OF_RANGE, t, layer
                if seen[expert] == here:
                    return REPEATED, t, layer
                seen[expert] = here
    return FINE, -1, -1


def first_bad_choice_numpy(experts: np.ndarray, n_experts: int) -> tuple[int, int, int]:
    """Do the same with array operations only."""
    outside = (experts >= n_experts).any(axis=2)
    ordered = np.sort(experts, axis=2)
    repeated = (ordered[:, :, 1:] == ordered[:, :, :-1]).any(axis=2)
    bad = np.flatnonzero((outside | repeated).reshape(-1))
    if not len(bad):
        return FINE, -1, -1
    row, layer = divmod(int(bad[0]), experts.shape[1])
    first = experts[row, layer].tolist()
    for m, expert in enumerate(first):  # both facts can hold in one row: report the one met first
        if expert >= n_experts:
            return OUT_OF_RANGE, row, layer
        if expert in first[:m]:
            return REPEATED, row, layer
    raise AssertionError("unreachable: the row was found bad")


@njit(cache=True, nogil=True)
def add_step_counts(experts: np.ndarray, top_k: int, step_slot: np.ndarray, counts: np.ndarray) -> None:
    """Add the chosen experts of each token to *counts* [S, L, E] at the token's *step_slot* [T]."""
    n_layers = experts.shape[1]
    # Rows come request by request, so neighbours differ in step; step by step the counts stay in the cache
    # (ten times as fast for 58 x 256 int32 per step).
    for t in np.argsort(step_slot, kind="mergesort"):
        slot = step_slot[t]
        for layer in range(n_layers):
            for m in range(top_k):
                counts[slot, layer, experts[t, layer, m]] += 1


def add_step_counts_numpy(experts: np.ndarray, top_k: int, step_slot: np.ndarray, counts: np.ndarray) -> None:
    """Do the same with array operations only."""
    layers = np.arange(experts.shape[1])[None, :, None]
    np.add.at(counts, (step_slot[:, None, None], layers, experts[:, :, :top_k]), 1)


@njit(cache=True, nogil=True)
def add_transitions(experts: np.ndarray, ranks: int, counts: np.ndarray) -> None:
    """Add to *counts* [L-1, E, E] every pair (choice at layer l, choice at l+1) of the first *ranks* ranks."""
    n_tokens, n_layers, _ = experts.shape
    for t in range(n_tokens):
        for layer in range(n_layers - 1):
            for a in range(ranks):
                source = experts[t, layer, a]
                for b in range(ranks):
                    counts[layer, source, experts[t, layer + 1, b]] += 1


def add_transitions_numpy(experts: np.ndarray, ranks: int, counts: np.ndarray) -> None:
    """Do the same with array operations only."""
    layers = np.arange(experts.shape[1] - 1)[None, :, None, None]
    np.add.at(counts, (layers, experts[:, :-1, :ranks, None], experts[:, 1:, None, :ranks]), 1)


@njit(cache=True, nogil=True)
def add_coactivations(experts: np.ndarray, top_k: int, counts: np.ndarray) -> None:
    """Add to *counts* [L, E, E] every ordered pair of experts that one token uses at one layer, itself included."""
    n_tokens, n_layers, _ = experts.shape
    for t in range(n_tokens):
        for layer in range(n_layers):
            for a in range(top_k):
                first = experts[t, layer, a]
                for b in range(top_k):
                    counts[layer, first, experts[t, layer, b]] += 1


def add_coactivations_numpy(experts: np.ndarray, top_k: int, counts: np.ndarray) -> None:
    """Do the same with array operations only."""
    layers = np.arange(experts.shape[1])[None, :, None, None]
    np.add.at(counts, (layers, experts[:, :, :top_k, None], experts[:, :, None, :top_k]), 1)


@njit(cache=True, nogil=True)
def add_overlaps(experts: np.ndarray, top_k: int, earlier: np.ndarray, later: np.ndarray, shared: np.ndarray) -> None:
    """Add to *shared* [L] the number of experts that rows *earlier*[i] and *later*[i] have in common."""
    n_layers = experts.shape[1]
    for i in range(len(earlier)):
        before, now = earlier[i], later[i]
        for layer in range(n_layers):
            for a in range(top_k):
                for b in range(top_k):
                    if experts[now, layer, a] == experts[before, layer, b]:
                        shared[layer] += 1


def add_overlaps_numpy(experts: np.ndarray, top_k: int, earlier: np.ndarray, later: np.ndarray,
                       shared: np.ndarray) -> None:
    """Do the same with array operations only."""
    before, now = experts[earlier, :, :top_k, None], experts[later, :, None, :top_k]
    shared += (before == now).sum(axis=(0, 2, 3))
