"""Exchanges of experts within a layer until none helps, with exact changes of load and spread, and its numpy twin.

Letters: E experts, D devices.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from moesim.placement.costs import Together
from moesim.placement.spread import Counts, account, add_changes, set_counts, spread_numpy

IMPROVES = -1e-12  # changes smaller than this are rounding, not improvement: costs are of the order of 1


@njit(cache=True, nogil=True)
def exchange(cost: np.ndarray, load: np.ndarray, capacity: int, together: Together, device: np.ndarray) -> int:
    """Let each expert in turn do its best exchange with another, or move to a device with room, until none gains.

    Minimises the sum of ``cost[e, device[e]]`` ([E, D]), plus the largest sum of ``load`` ([E]) on a device, plus
    ``spread``. Changes *device* ([E], int64) in place and returns the number of exchanges and moves.
    """
    n_experts, n_devices = cost.shape
    sums, held = np.zeros(n_devices), np.zeros(n_devices, dtype=np.int64)
    for e in range(n_experts):
        sums[device[e]] += load[e]
        held[device[e]] += 1
    kinds = len(together.price) if len(together.members) else 0
    sets = set_counts(together, device, kinds, n_experts)
    # What changes when an expert goes to a device, alone; the same in the other order of memory; the least per expert;
    # and what an exchange of two experts costs beyond their two moves.
    tables = (np.empty((n_experts, n_devices)), np.empty((n_devices, n_experts)), np.empty(n_experts),
              np.zeros((n_experts if kinds else 0, n_experts)))
    everyone = np.arange(n_experts)
    _weigh(everyone, cost, together, sets, device, tables)
    made, idle, a = 0, 0, int(np.int64(0))  # a: not the constant 0, which would be compiled apart
    top = _two_highest(sums)
    while idle < n_experts:
        partner = _best_partner(a, tables, load, device, (sums, held, capacity, top))
        idle += 1
        if partner >= 0:
            b = partner if partner < n_experts else -1
            q = device[b] if b >= 0 else partner - n_experts
            _seat((a, b, q), load, together, sets, device, (sums, held))
            _weigh(everyone if kinds else np.array([a, b if b >= 0 else a]), cost, together, sets, device, tables)
            top = _two_highest(sums)
            made, idle = made + 1, 0
        a = (a + 1) % n_experts
    return made


@njit(cache=True, nogil=True)
def _weigh(which: np.ndarray, cost: np.ndarray, together: Together, sets: Counts, device: np.ndarray,
           tables: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Work out the *tables* of the experts *which*: all of them if spread counts."""
    going, coming, least, pair = tables
    for e in which:
        for d in range(len(coming)):
            going[e, d] = cost[e, d] - cost[e, device[e]]
    if len(pair):
        add_changes(together, sets, device, going, pair)
    for e in which:
        least[e] = 0.0
        for d in range(len(coming)):
            coming[d, e] = going[e, d]
            least[e] = min(least[e], going[e, d])


@njit(cache=True, nogil=True)
def _two_highest(sums: np.ndarray) -> tuple[int, float]:
    """Return where the highest sum is, and the second highest sum (0 at least)."""
    worst, second = int(sums.argmax()), 0.0
    for d in range(len(sums)):
        if d != worst:
            second = max(second, sums[d])
    return worst, second


@njit(cache=True, nogil=True)
def _best_partner(a: int, tables: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], load: np.ndarray,
                  device: np.ndarray, state: tuple[np.ndarray, np.ndarray, int, tuple[int, float]]) -> int:
    """Return the expert that *a* should exchange devices with, E + the device it should move to, or -1 for neither."""
    (going, coming, least, pair), (sums, held, capacity, (worst, second)) = tables, state
    n_experts, n_devices = going.shape
    p, partner, best = device[a], -1, IMPROVES
    relief = sums[worst] - second  # no exchange brings the highest sum down by more, nor down at all without worst
    for b in range(n_experts):
        q = device[b]
        bar = best + relief if p == worst or q == worst else best
        if least[a] + coming[p, b] >= bar or p == q:  # true of most, and in the order of memory
            continue
        change = going[a, q] + coming[p, b]
        if len(pair):
            change += pair[a, b]
        if change >= bar:
            continue
        change += _highest(sums, (p, q, worst), second, (load[a], load[b])) - sums[worst]
        if change < best:
            partner, best = b, change
    for q in range(n_devices if n_experts < capacity * n_devices else 0):
        bar = best + relief if p == worst or q == worst else best
        if held[q] < capacity and p != q and going[a, q] < bar:
            change = going[a, q] + (_highest(sums, (p, q, worst), second, (load[a], 0.0)) - sums[worst])
            if change < best:
                partner, best = n_experts + q, change
    return partner


@njit(cache=True, nogil=True)
def _highest(sums: np.ndarray, where: tuple[int, int, int], second: float, loads: tuple[float, float]) -> float:
    """Return the highest sum when the first of *loads* goes from p to q and the second the other way."""
    p, q, worst = where
    highest = max(sums[p] - loads[0] + loads[1], sums[q] - loads[1] + loads[0])
    if p != worst and q != worst:
        return max(highest, sums[worst])
    if highest < second:  # one of the others may be the highest now
        for d in range(len(sums)):
            if d != p and d != q:
                highest = max(highest, sums[d])
    return highest


@njit(cache=True, nogil=True)
def _seat(move: tuple[int, int, int], load: np.ndarray, together: Together, sets: Counts, device: np.ndarray,
          state: tuple[np.ndarray, np.ndarray]) -> None:
    """Put expert a on device q, and b where a was unless b is -1 (*move* is a, b, q); keep sums and counts right."""
    (a, b, q), (sums, held) = move, state
    start, where = sets[0], sets[1]
    p, other = device[a], load[b] if b >= 0 else 0.0
    sums[p] += other - load[a]
    sums[q] += load[a] - other
    if b < 0:
        held[p], held[q] = held[p] - 1, held[q] + 1
    counted = len(sets[3])
    for sign in (-1.0, 1.0):
        if counted:
            for n in where[start[a]:start[a + 1]]:
                account(n, sign, together, sets, device)
            for n in where[start[b]:start[b + 1] if b >= 0 else start[b]]:
                if not (together.members[n] == a).any():
                    account(n, sign, together, sets, device)
        if sign < 0:
            device[a] = q
            if b >= 0:
                device[b] = p


def exchange_numpy(cost: np.ndarray, load: np.ndarray, capacity: int, together: Together, device: np.ndarray) -> int:
    """Do the same by working out every exchange and every move as a whole."""
    n_experts, n_devices = cost.shape
    experts = np.arange(n_experts)

    def total(devices: np.ndarray) -> float:
        highest = np.bincount(devices, load, minlength=n_devices).max()
        return float(cost[experts, devices].sum() + highest) + spread_numpy(together, devices)

    made = idle = a = 0
    while idle < n_experts:
        trials = np.tile(device, (n_experts + n_devices, 1))
        trials[experts, experts], trials[:n_experts, a] = device[a], device
        trials[n_experts:, a] = np.arange(n_devices)
        totals = np.array([total(t) if np.bincount(t).max() <= capacity else np.inf for t in trials])
        best = int(totals.argmin())
        idle += 1
        if totals[best] - total(device) < IMPROVES:
            device[:] = trials[best]
            made, idle = made + 1, 0
        a = (a + 1) % n_experts
    return made
