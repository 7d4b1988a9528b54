"""Hot loops over tokens and over flows, each with a plain numpy twin that a test compares.

Letters: T tokens, L MoE layers, M ranked candidates per layer, K = top-k, E experts, D devices.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CROSS_TOP1, CROSS_ALL, FANOUT = 0, 1, 2


@njit(cache=True, nogil=True)
def route(experts: np.ndarray, top_k: int, replicas: np.ndarray, node_of: np.ndarray,
          group_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count, per layer, what the tokens' routes cross: int64 [3, L], rows CROSS_TOP1, CROSS_ALL, FANOUT; and the uses
    of experts on each device, int64 [L, D].

    A token is at the device of its first choice; before the first layer tokens are on the devices in turn. Of a
    replicated expert it uses the replica on its device, else one of its node (*node_of*: [D] -> node), else any; where
    there are several, tokens of a node take turns: the simulator's rule for tokens that stay. Groups (*group_of*:
    [D] -> group) are what is crossed and counted: devices or nodes. Column l of the first two rows is the step from
    layer l to l+1; the last is 0.
    """
    n_tokens, n_layers, _ = experts.shape
    n_experts, n_devices = replicas.shape[1:]
    found, load = np.zeros((3, n_layers), dtype=np.int64), np.zeros((n_layers, n_devices), dtype=np.int64)
    only, held = _where(replicas, group_of)
    turns = np.zeros((n_layers, n_experts, node_of.max() + 1), dtype=np.int64)
    group = np.zeros((2, top_k), dtype=np.int64)  # of the token's experts at the layer before, and now
    for t in range(n_tokens):
        here = t % n_devices
        for layer in range(n_layers):
            now, before = layer % 2, 1 - layer % 2
            first = here
            for k in range(top_k):
                e = experts[t, layer, k]
                device, crossing = only[layer, e], 0
                if device >= 0:
                    for j in range(top_k):
                        crossing += group[before, j] != group_of[device]
                else:
                    device = _replica(replicas[layer, e], here, node_of, turns[layer, e])
                    for j in range(top_k):
                        crossing += not held[layer, e, group[before, j]]
                if k == 0:
                    first = device
                if layer > 0:
                    found[CROSS_ALL, layer - 1] += crossing
                group[now, k] = group_of[device]
                load[layer, device] += 1
                shared = 0
                for j in range(k):
                    shared += group[now, j] == group[now, k]
                found[FANOUT, layer] += shared == 0
            if layer > 0:
                found[CROSS_TOP1, layer - 1] += group[now, 0] != group_of[here]
            here = first
    return found, load


@njit(cache=True, nogil=True)
def _where(replicas: np.ndarray, group_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the device of an expert that has one replica, else -1, [L, E], and whether a group has any, [L, E, G]."""
    n_layers, n_experts, n_devices = replicas.shape
    only = np.empty((n_layers, n_experts), dtype=np.int64)
    held = np.zeros((n_layers, n_experts, group_of.max() + 1), dtype=np.bool_)
    for layer in range(n_layers):
        for e in range(n_experts):
            only[layer, e] = replicas[layer, e].argmax() if replicas[layer, e].sum() == 1 else -1
            for d in range(n_devices):
                held[layer, e, group_of[d]] |= replicas[layer, e, d]
    return only, held


@njit(cache=True, nogil=True)
def _replica(replicas: np.ndarray, here: int, node_of: np.ndarray, turns: np.ndarray) -> int:
    """Return the device of *replicas* [D] that a token on *here* uses; count the *turns* [nodes] of its node."""
    if replicas[here]:
        return here
    node, near, number = node_of[here], 0, 0
    for d in range(len(replicas)):
        number += replicas[d]
        near += replicas[d] and node_of[d] == node
    turn = turns[node]
    turns[node] += 1
    turn %= near if near else number
    for d in range(len(replicas)):
        if replicas[d] and (near == 0 or node_of[d] == node):
            if turn == 0:
                return d
            turn -= 1
    return -1  # an expert without replicas: a placement has none


def route_numpy(experts: np.ndarray, top_k: int, replicas: np.ndarray, node_of: np.ndarray,
                group_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Do the same with array operations only."""
    n_tokens, n_layers, _ = experts.shape
    n_devices = replicas.shape[2]
    found, load = np.zeros((3, n_layers), dtype=np.int64), np.zeros((n_layers, n_devices), dtype=np.int64)
    here, before = np.arange(n_tokens) % n_devices, np.empty(0)
    for layer in range(n_layers):
        chosen = experts[:, layer, :top_k].astype(np.int64)
        now = _replicas_numpy(replicas[layer], chosen, here, node_of)
        groups, load[layer] = group_of[now], np.bincount(now.ravel(), minlength=n_devices)
        if layer:
            found[CROSS_TOP1, layer - 1] = (groups[:, 0] != group_of[here]).sum()
            held = np.stack([replicas[layer][:, group_of == g].any(axis=1) for g in range(group_of.max() + 1)], axis=1)
            found[CROSS_ALL, layer - 1] = (~held[chosen[:, None, :], before[:, :, None]]).sum()
        here, before = now[:, 0], groups
        groups = np.sort(groups, axis=1)
        found[FANOUT, layer] = len(groups) + (groups[:, 1:] != groups[:, :-1]).sum()
    return found, load


def _replicas_numpy(replicas: np.ndarray, chosen: np.ndarray, here: np.ndarray, node_of: np.ndarray) -> np.ndarray:
    """Return the device of each choice [T, K] of tokens on *here* [T], from *replicas* [E, D]."""
    choice, at = chosen.ravel(), np.repeat(here, chosen.shape[1])
    usable = replicas[choice] & (node_of == node_of[at][:, None])
    usable[~usable.any(axis=1)] = replicas[choice][~usable.any(axis=1)]
    key = choice * (node_of.max() + 1) + node_of[at]
    turn, away = np.zeros(len(choice), dtype=np.int64), ~replicas[choice, at]
    for one in np.unique(key[away]):
        mine = away & (key == one)
        turn[mine] = np.arange(mine.sum())
    wanted = turn % usable.sum(axis=1) + 1
    device = (usable.cumsum(axis=1) == wanted[:, None]).argmax(axis=1)
    return np.where(away, device, at).reshape(chosen.shape)


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
