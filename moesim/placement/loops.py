"""Hot loops over tokens and over swaps, each with a plain numpy twin that a test compares.

Letters: T tokens, L MoE layers, M ranked candidates per layer, K = top-k, E experts, D devices, S slots.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CROSS_TOP1, CROSS_ALL, FANOUT = 0, 1, 2
IMPROVES = -1e-12  # changes smaller than this are rounding, not improvement: costs are of the order of 1


@njit(cache=True, nogil=True)
def route(experts: np.ndarray, top_k: int, replicas: np.ndarray, first: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """Count, per layer, what the tokens' routes cross: int64 [3, L], rows CROSS_TOP1, CROSS_ALL, FANOUT.

    A token is at the device of its first choice. Of a replicated expert it uses the replica on the device it
    comes from, if there is one, else the first (*first* [L, E]). Groups ([D] -> group) are what is crossed and
    counted: devices or nodes. Column l of the first two rows is the step from layer l to l+1; the last is 0.
    """
    n_tokens, n_layers, _ = experts.shape
    found = np.zeros((3, n_layers), dtype=np.int64)
    before, now = np.empty(top_k, dtype=np.int64), np.empty(top_k, dtype=np.int64)
    for t in range(n_tokens):
        for layer in range(n_layers):
            for k in range(top_k):
                expert = experts[t, layer, k]
                now[k] = first[layer, expert]
                if layer > 0 and replicas[layer, expert, before[0]]:
                    now[k] = before[0]
            for k in range(top_k):
                fresh = 1
                for j in range(k):
                    if group_of[now[j]] == group_of[now[k]]:
                        fresh = 0
                found[FANOUT, layer] += fresh
            if layer > 0:
                found[CROSS_TOP1, layer - 1] += group_of[now[0]] != group_of[before[0]]
                for k in range(top_k):
                    expert = experts[t, layer, k]
                    to = group_of[first[layer, expert]]
                    for j in range(top_k):
                        if to != group_of[before[j]] and not replicas[layer, expert, before[j]]:
                            found[CROSS_ALL, layer - 1] += 1
            before, now = now, before
    return found


def route_numpy(experts: np.ndarray, top_k: int, replicas: np.ndarray, first: np.ndarray,
                group_of: np.ndarray) -> np.ndarray:
    """Do the same with array operations only."""
    n_layers = experts.shape[1]
    found = np.zeros((3, n_layers), dtype=np.int64)
    before = np.empty(0)
    for layer in range(n_layers):
        chosen = experts[:, layer, :top_k].astype(np.int64)
        now = first[layer][chosen]
        if layer:
            now = np.where(replicas[layer][chosen, before[:, :1]], before[:, :1], now)
            found[CROSS_TOP1, layer - 1] = (group_of[now[:, 0]] != group_of[before[:, 0]]).sum()
            stay = replicas[layer][chosen[:, None, :], before[:, :, None]]
            to = group_of[first[layer][chosen]][:, None, :]
            found[CROSS_ALL, layer - 1] = ((to != group_of[before][:, :, None]) & ~stay).sum()
        groups = np.sort(group_of[now], axis=1)
        found[FANOUT, layer] = len(groups) + (groups[:, 1:] != groups[:, :-1]).sum()
        before = now
    return found


@njit(cache=True, nogil=True)
def swap_until_best(cost: np.ndarray, load: np.ndarray, device: np.ndarray) -> int:
    """Exchange the devices of two slots, the best pair first, until no exchange helps; return how many were made.

    Minimises the sum of ``cost[s, device[s]]`` ([S, D]) plus the largest sum of ``load`` ([S]) on a device.
    Changes *device* ([S], int64) in place.
    """
    n_slots, n_devices = cost.shape
    sums = np.zeros(n_devices)
    for s in range(n_slots):
        sums[device[s]] += load[s]
    made = 0
    while True:
        top = np.argsort(-sums)[:3]  # whoever p and q are, one of these three is neither
        best, best_a, best_b = IMPROVES, -1, -1
        for a in range(n_slots):
            p = device[a]
            for b in range(a + 1, n_slots):
                q = device[b]
                if p == q:
                    continue
                highest = max(sums[p] - load[a] + load[b], sums[q] - load[b] + load[a])
                for d in top:
                    if d != p and d != q:
                        highest = max(highest, sums[d])
                        break
                change = cost[a, q] + cost[b, p] - cost[a, p] - cost[b, q] + highest - sums[top[0]]
                if change < best:
                    best, best_a, best_b = change, a, b
        if best_a < 0:
            return made
        p, q = device[best_a], device[best_b]
        sums[p] += load[best_b] - load[best_a]
        sums[q] += load[best_a] - load[best_b]
        device[best_a], device[best_b] = q, p
        made += 1


def swap_until_best_numpy(cost: np.ndarray, load: np.ndarray, device: np.ndarray) -> int:
    """Do the same by trying every exchange as a whole."""
    slots = np.arange(len(device))

    def total(devices: np.ndarray) -> float:
        return float(cost[slots, devices].sum() + np.bincount(devices, load, minlength=cost.shape[1]).max())

    made = 0
    while True:
        best, best_change = device, IMPROVES
        for a, b in zip(*np.triu_indices(len(device), 1), strict=True):
            other = device.copy()
            other[[a, b]] = device[[b, a]]
            change = total(other) - total(device)
            if change < best_change:
                best, best_change = other, change
        if best is device:
            return made
        device[:] = best
        made += 1
