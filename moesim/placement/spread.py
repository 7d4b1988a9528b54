"""Spread of tokens over devices or nodes: its price, and how an exchange of experts changes it; hot loops, numpy twin.

Letters: E experts, D devices, N distinct sets of experts that tokens chose together, K experts in a set (top-k),
F kinds of groups (devices, nodes) in which the spread is counted, G groups.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from moesim.placement.costs import Together

# what ``set_counts`` returns
Counts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@njit(cache=True, nogil=True)
def spread(together: Together, device: np.ndarray) -> float:
    """Return the price of all groups that the sets are in when expert e is on ``device[e]``."""
    members, tokens, group_of, price = together
    total = 0.0
    for f in range(len(price)):
        met = 0.0
        for n in range(len(members)):
            for i in range(members.shape[1]):
                group, new = group_of[f, device[members[n, i]]], 1
                for j in range(i):
                    new = new and group_of[f, device[members[n, j]]] != group
                met += tokens[n] * new
        total += price[f] * met
    return total


def spread_numpy(together: Together, device: np.ndarray) -> float:
    """Do the same with array operations only."""
    total = 0.0
    for group_of, price in zip(together.group_of, together.price, strict=True):
        groups = np.sort(group_of[device][together.members], axis=1)
        total += price * float(together.tokens @ (1 + (groups[:, 1:] != groups[:, :-1]).sum(axis=1)))
    return total


@njit(cache=True, nogil=True)
def set_counts(together: Together, device: np.ndarray, kinds: int, n_experts: int) -> Counts:
    """Return what decides the change of spread, counted in tokens.

    start [E+1] and where: the sets that expert e is in are ``where[start[e]:start[e+1]]``;  present [F, E, G]: of
    the tokens of e, how many have an expert in the group;  alone [F, E]: how many have no other in the group of e;
    both [F, E, E]: of the tokens of both, apart from each other, how often one of the two is alone.
    """
    members = together.members
    start = np.zeros(n_experts + 1, dtype=np.int64)
    n_groups = 0
    if kinds:
        n_groups = together.group_of.max() + 1
        for e in members.ravel():
            start[e + 1] += 1
        start = start.cumsum()
    where, filled = np.empty(start[-1], dtype=np.int64), start.copy()
    present = np.zeros((kinds, n_experts, n_groups))
    alone, both = np.zeros((kinds, n_experts)), np.zeros((kinds, n_experts, n_experts))
    sets = (start, where, present, alone, both)
    if kinds:
        for n in range(len(members)):
            for e in members[n]:
                where[filled[e]] = n
                filled[e] += 1
            account(n, 1.0, together, sets, device)
    return sets


@njit(cache=True, nogil=True)
def account(n: int, sign: float, together: Together, sets: Counts, device: np.ndarray) -> None:
    """Add set *n* to the counts of ``set_counts``, or take it away."""
    _, _, present, alone, both = sets
    experts, weight = together.members[n], sign * together.tokens[n]
    for f in range(len(together.price)):
        group_of = together.group_of[f]
        for i in experts:
            here = group_of[device[i]]
            beside = 0
            for j in experts:
                beside += group_of[device[j]] == here
            if beside == 1:
                alone[f, i] += weight
            for j in experts:
                if beside == 1 and j != i:
                    both[f, i, j] += weight
                    both[f, j, i] += weight
            first = True  # is i the first of the set in its group?
            for j in experts:
                if j == i:
                    break
                first = first and group_of[device[j]] != here
            if first:
                for j in experts:
                    present[f, j, here] += weight


@njit(cache=True, nogil=True)
def add_changes(together: Together, sets: Counts, device: np.ndarray, going: np.ndarray, pair: np.ndarray) -> None:
    """Add to *going* [E, D] what it costs to move an expert alone; set *pair* [E, E] to what an exchange adds."""
    _, _, present, alone, both = sets
    pair[:] = 0.0
    for f in range(len(alone)):
        price, group_of = together.price[f], together.group_of[f]
        for e in range(len(device)):
            here = group_of[device[e]]
            tokens = present[f, e, here]  # every token of e has an expert there: e
            for d in range(going.shape[1]):
                if group_of[d] != here:
                    going[e, d] += price * (tokens - present[f, e, group_of[d]] - alone[f, e])
            for other in range(len(device)):  # for arrays numba would compile what it says of other lengths: 2 s
                pair[e, other] += price * both[f, e, other]
