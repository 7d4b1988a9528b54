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
    """Add to *sums* [S, D] the columns of *flows* [S, S] by the *device* [S] of the column's slot."""
    n_slots = len(device)
    for s in range(n_slots):
        for t in range(n_slots):
            sums[s, device[t]] += flows[s, t]


def add_by_device_numpy(flows: np.ndarray, device: np.ndarray, sums: np.ndarray) -> None:
    """Do the same with array operations only."""
    sums += flows @ np.eye(sums.shape[1])[device]


@njit(cache=True, nogil=True)
def add_apart(sums: np.ndarray, group_of: np.ndarray, weight: float, cost: np.ndarray) -> None:
    """Add to *cost* [S, D] *weight* times the *sums* [S, D] on devices of other groups ([D] -> group)."""
    n_slots, n_devices = sums.shape
    inside = np.empty(n_devices)  # per group: there are at most as many as devices
    for s in range(n_slots):
        inside[:] = 0.0
        total = 0.0
        for d in range(n_devices):
            inside[group_of[d]] += sums[s, d]
            total += sums[s, d]
        for d in range(n_devices):
            cost[s, d] += weight * (total - inside[group_of[d]])


def add_apart_numpy(sums: np.ndarray, group_of: np.ndarray, weight: float, cost: np.ndarray) -> None:
    """Do the same with array operations only."""
    cost += weight * sums @ (group_of[:, None] != group_of)


@njit(cache=True, nogil=True)
def swap_until_stuck(cost: np.ndarray, load: np.ndarray, device: np.ndarray) -> int:
    """Let each slot in turn exchange devices with its best partner until none gains; return the exchanges made.

    Minimises the sum of ``cost[s, device[s]]`` ([S, D]) plus the largest sum of ``load`` ([S]) on a device.
    Changes *device* ([S], int64) in place.
    """
    n_slots, n_devices = cost.shape
    sums = np.zeros(n_devices)
    gain = np.empty((n_devices, n_slots))  # the change of cost when the slot goes to the device, alone
    for s in range(n_slots):
        sums[device[s]] += load[s]
        for d in range(n_devices):
            gain[d, s] = cost[s, d] - cost[s, device[s]]
    made = idle = a = 0
    while idle < n_slots:
        p, worst = device[a], int(sums.argmax())
        second = 0.0  # no exchange brings the highest sum below the second highest, nor down at all without worst
        for d in range(n_devices):
            if d != worst:
                second = max(second, sums[d])
        partner = _best_partner(a, gain, load, device, (sums, worst, second))
        idle += 1
        if partner >= 0:
            q = device[partner]
            sums[p] += load[partner] - load[a]
            sums[q] += load[a] - load[partner]
            device[a], device[partner] = q, p
            for d in range(n_devices):
                gain[d, a] = cost[a, d] - cost[a, q]
                gain[d, partner] = cost[partner, d] - cost[partner, p]
            made, idle = made + 1, 0
        a = (a + 1) % n_slots
    return made


@njit(cache=True, nogil=True)
def _best_partner(a: int, gain: np.ndarray, load: np.ndarray, device: np.ndarray,
                  state: tuple[np.ndarray, int, float]) -> int:
    """Return the slot with which *a* should exchange devices, or -1 if no exchange is an improvement."""
    sums, worst, second = state
    p, partner, best = device[a], -1, IMPROVES
    for b in range(len(device)):
        q = device[b]
        relieves = p == worst or q == worst
        change = gain[q, a] + gain[p, b]
        if p == q or change >= best + (sums[worst] - second if relieves else 0.0):
            continue
        highest = max(sums[p] - load[a] + load[b], sums[q] - load[b] + load[a])
        if not relieves:
            highest = max(highest, sums[worst])
        elif highest < second:  # one of the others may be the highest now
            for d in range(len(sums)):
                if d != p and d != q:
                    highest = max(highest, sums[d])
        change += highest - sums[worst]
        if change < best:
            partner, best = b, change
    return partner


def swap_until_stuck_numpy(cost: np.ndarray, load: np.ndarray, device: np.ndarray) -> int:
    """Do the same by working out every exchange as a whole."""
    slots = np.arange(len(device))

    def total(devices: np.ndarray) -> float:
        return float(cost[slots, devices].sum() + np.bincount(devices, load, minlength=cost.shape[1]).max())

    made = idle = a = 0
    while idle < len(device):
        trials = np.tile(device, (len(device), 1))
        trials[slots, slots], trials[:, a] = device[a], device
        totals = np.array([total(trial) for trial in trials])
        best = int(totals.argmin())
        idle += 1
        if totals[best] - total(device) < IMPROVES:
            device[:] = trials[best]
            made, idle = made + 1, 0
        a = (a + 1) % len(device)
    return made
