"""Hot loops over tokens and over flows, each with a plain numpy twin that a test compares.

Letters: T tokens, L MoE layers, M ranked candidates per layer, K = top-k, E experts, D devices.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CROSS_TOP1, CROSS_ALL, FANOUT = 0, 1, 2


@njit(cache=True, nogil=True)
def route(experts: np.ndarray, top_k: int, replicas: np.ndarray, first: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """Count, per layer, what the tokens' routes cross: int64 [3, L], rows CROSS_TOP1, CROSS_ALL, FANOUT.

    A token is at the device of its first choice. Of a replicated expert it uses the replica on the device it
    comes from, if there is one, else the first (*first* [L, E]). Groups ([D] -> group) are what is crossed and
    counted: devices or nodes. Column l of the first two rows is the step from layer l to l+1; the last is 0.
    """
    n_tokens, n_layers, _ = experts.shape
    found = np.zeros((3, n_layers), dtype=np.int64)
    copied = replicas.sum(axis=2) > 1  # most experts have one replica: then the inner loop has no branch
    here = np.zeros((2, top_k), dtype=np.int64)  # devices of the token's experts at the layer before, and now
    group = np.zeros((2, top_k), dtype=np.int64)
    for t in range(n_tokens):
        for layer in range(n_layers):
            now, before = layer % 2, 1 - layer % 2
            for k in range(top_k):
                expert = experts[t, layer, k]
                device = first[layer, expert]
                to = group_of[device]
                if layer > 0:
                    crossing = 0
                    for j in range(top_k):
                        crossing += to != group[before, j]
                    if copied[layer, expert]:
                        for j in range(top_k):
                            crossing -= to != group[before, j] and replicas[layer, expert, here[before, j]]
                        if replicas[layer, expert, here[before, 0]]:
                            device = here[before, 0]
                    found[CROSS_ALL, layer - 1] += crossing
                here[now, k], group[now, k] = device, group_of[device]
                shared = 0
                for j in range(k):
                    shared += group[now, j] == group[now, k]
                found[FANOUT, layer] += shared == 0
            if layer > 0:
                found[CROSS_TOP1, layer - 1] += group[now, 0] != group[before, 0]
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
def add_by_device(flows: np.ndarray, device: np.ndarray, sums: np.ndarray) -> None:
    """Add to *sums* [E, D] the columns of *flows* by the *device* [F] of the column's expert.

    *flows* has E rows and F columns, or more: layers may have different numbers of experts.
    """
    for e in range(len(sums)):
        for f in range(len(device)):
            sums[e, device[f]] += flows[e, f]


def add_by_device_numpy(flows: np.ndarray, device: np.ndarray, sums: np.ndarray) -> None:
    """Do the same with array operations only."""
    sums += flows[:len(sums), :len(device)] @ np.eye(sums.shape[1])[device]


@njit(cache=True, nogil=True)
def add_apart(sums: np.ndarray, group_of: np.ndarray, weight: float, cost: np.ndarray) -> None:
    """Add to *cost* [E, D] *weight* times the *sums* [E, D] on devices of other groups ([D] -> group)."""
    n_experts, n_devices = sums.shape
    inside = np.empty(n_devices)  # per group: there are at most as many as devices
    for e in range(n_experts):
        inside[:] = 0.0
        total = 0.0
        for d in range(n_devices):
            inside[group_of[d]] += sums[e, d]
            total += sums[e, d]
        for d in range(n_devices):
            cost[e, d] += weight * (total - inside[group_of[d]])


def add_apart_numpy(sums: np.ndarray, group_of: np.ndarray, weight: float, cost: np.ndarray) -> None:
    """Do the same with array operations only."""
    cost += weight * sums @ (group_of[:, None] != group_of)
