"""Lower bounds: below which no placement can come, proved by relaxation of how experts can be divided.

Letters: k layers (1 or 2) of S slots (experts, and empty ones to fill G groups of C), W the weight of pairs of slots.

``kept_at_most`` bounds the weight of pairs in the same group, B.Y, where B is W, halved and symmetric, [kS, kS], and
Y = Z Z', Z the 0/1 membership of the slots in the groups. Every division into groups of C slots per layer has

* in each block (layer by layer) of Y exactly C ones per row and per column, and ones on the diagonal. So for any
  matrix M, M.Y is at most the diagonal of M plus, per block, the C largest entries of every row (C - 1 beside the
  diagonal): call it ``_by_rows(M)``, the smaller one of rows and columns where a block is not symmetric;
* for u = 1 / sqrt(kS): Y u = kC u, and Y v = 0 for the other vectors that are constant within each layer. On what is
  orthogonal to these, Y has no eigenvalue below 0 or above kC (the columns of Z restricted to a layer are orthogonal
  and of length C) and the trace k(S - C) = kC(G - 1). So N.Y is at most kC times (u'Nu + the sum of the G - 1 largest
  eigenvalues of N there): call it ``_by_spectrum(N)``.

B.Y = (B - M).Y + M.Y <= _by_spectrum(B - M) + _by_rows(M) holds for EVERY symmetric M, however it was found. M = B
gives the bound by rows alone. Better ones are found by alternating projections (ADMM on the semidefinite relaxation,
whose multipliers are M); stopping early costs tightness, never validity. Compare Donath and Hoffman, IBM J. Res.
Dev. 17 (1973); Zhao et al., J. Comb. Optim. 2 (1998).
"""

from __future__ import annotations

import math

import numpy as np

from moesim.placement.costs import Costs
from moesim.placement.objective import Problem, Profile
from moesim.placement.replicas import replicate

ROUNDS = 10  # chosen: five give nine tenths of what fifty do on the real traces
# Multiply-adds of the largest bound that is worth its time (rounds x sides cubed, eigenvectors left aside): seconds.
WORK = 8e9
STEP = 0.1  # of the projections, for weights scaled to one per slot: chosen on the real traces among 0.02 to 0.5
DIGITS = 6  # a bound is rounded down to these, which hides rounding errors of eigenvalues


def lower_bound(costs: Costs, profile: Profile, problem: Problem, rounds: int | None = None,
                redundant: int = 0) -> float:
    """Return what no placement can beat: the sum over the forms of cost of a bound of each.

    More *rounds* make it tighter; with 0 only rows count. Left out they are ``ROUNDS``, or less if that would take
    more than seconds (``WORK``): with 256 experts on 60 layers, 0.

    Placements with replicas, *redundant* per layer more than experts at most, may be better than those without. A
    replica too has no more partners on its device or node than there is room for, and the tokens of an expert at all
    its replicas are no more than its tokens: so rows count, whichever replicas tokens use, and nothing else does.
    """
    found = 0.0
    if costs.table is not None:
        found += float(costs.table.min(axis=2).sum())
    rooms, rounds = problem.rooms(profile.sizes + redundant), 0 if redundant else rounds
    if costs.loads is not None:  # the busiest device has the mean at least, and one replica at least
        heaviest = [replicate(loads[:size], int(size) + redundant, problem.n_devices)[1].max()
                    for loads, size in zip(costs.loads, profile.sizes, strict=True)]
        found += float(np.maximum(costs.loads.sum(axis=1) / problem.n_devices, heaviest).sum())
    for flow in costs.flows:
        levels = flow.levels
        if levels is None:  # no way between two devices is shorter than the shortest
            apart = flow.distance[~np.eye(problem.n_devices, dtype=bool)]
            levels = [(np.arange(problem.n_devices), float(apart.min()) if len(apart) else 0.0)]
        for group_of, weight in levels:
            limit = _affordable(rounds, 2, len(flow.share) * len(levels), problem.n_devices * int(rooms.max()))
            for layer, share in enumerate(flow.share):
                two = slice(layer, layer + 2)  # the larger room and size for both: no placement is lost
                n = int(profile.sizes[two].max())
                slots = problem.n_devices * int(rooms[two].max())
                found += weight * (_crossing_at_rows(share[:n, :n], group_of, slots) if redundant else
                                   _crossing(share[:n, :n], group_of, slots, limit))
    for spread in costs.spread:
        limit = _affordable(rounds, 1, profile.n_layers * len(costs.spread), problem.n_devices * int(rooms.max()))
        for sets, size, room in zip(profile.sets, profile.sizes.tolist(), rooms.tolist(), strict=True):
            slots = problem.n_devices * room
            found += spread.price / profile.n_layers * _groups_met(*sets, spread.group_of, (size, slots), limit)
    return max(math.floor((found - 10.0**-DIGITS / 2) * 10**DIGITS) / 10**DIGITS, 0.0)


def _affordable(rounds: int | None, layers: int, times: int, slots: int) -> int:
    """Return *rounds* if they are given, else as many as there is time for, or 0 if that is hardly any."""
    if rounds is not None:
        return rounds
    side = layers * slots
    most = int(WORK / (max(times, 1) * side**3))
    return min(ROUNDS, most) if 2 * most >= ROUNDS else 0


def _crossing(share: np.ndarray, group_of: np.ndarray, slots: int, rounds: int) -> float:
    """Return how much of the flow *share* [E, E] between two layers must leave its group."""
    n_groups = int(group_of.max()) + 1
    return float(share.sum()) - kept_at_most(share, n_groups, slots // n_groups, rounds, layers=2)


def _crossing_at_rows(share: np.ndarray, group_of: np.ndarray, slots: int) -> float:
    """Return the same from where the flow comes from alone: those that arrive at an expert may use many replicas."""
    return float(share.sum()) - min(_largest(share, slots // (int(group_of.max()) + 1)), float(share.sum()))


def _groups_met(members: np.ndarray, tokens: np.ndarray, group_of: np.ndarray, sizes: tuple[int, int],
                rounds: int) -> float:
    """Return how many groups the tokens of a layer of so many experts and slots (*sizes*) are in at least, on average.

    A token in g groups has at least as many pairs of its K experts together as an even split of K into g gives; that
    least number is convex in g, so by Jensen the mean of g is at least what the mean number of pairs allows.
    """
    n_groups, top_k = int(group_of.max()) + 1, members.shape[1]
    n_experts, slots = sizes
    size = slots // n_groups
    together = np.zeros((n_experts, n_experts))
    for i in range(top_k):
        for j in range(top_k):
            if i != j:
                np.add.at(together, (members[:, i], members[:, j]), tokens)
    pairs = kept_at_most(together / tokens.sum(), n_groups, size, rounds, layers=1)
    possible = np.arange(min(n_groups, top_k), -(-top_k // size) - 1, -1)  # groups, from most to least
    whole, rest = np.divmod(top_k, possible)
    least = whole * (whole - 1) / 2 * (possible - rest) + (whole + 1) * whole / 2 * rest
    return float(np.interp(pairs, least, possible))


def kept_at_most(weights: np.ndarray, n_groups: int, size: int, rounds: int, layers: int) -> float:
    """Return an upper bound on the weight of pairs in the same of *n_groups* groups of *size* slots per layer.

    *weights* [E, E] are not negative: between the experts of two layers, or (*layers* = 1, symmetric, zero on the
    diagonal) of one, where each pair counts once. The proof is in the docstring of the module.
    """
    total = float(weights.sum()) * layers / 2
    if total == 0.0 or n_groups == 1:
        return total
    own = int(layers == 1)  # a slot is with itself
    by_rows = min(_largest(w, size - own) for w in (weights, weights.T)) * layers / 2
    found = min(by_rows, total)
    if rounds and n_groups * size <= 2 * len(weights):  # with more empty slots: mostly eigenvalues of nothing
        relaxation = _Relaxation(weights / total, n_groups, size, layers)
        found = min(found, total * relaxation.bound(relaxation.multipliers(rounds)))
    return found


class _Relaxation:
    """Hold the semidefinite relaxation of one division; see the docstring of the module for the letters."""

    def __init__(self, weights: np.ndarray, n_groups: int, size: int, layers: int) -> None:
        self.n_groups, self.size, self.layers = n_groups, size, layers
        self.slots = n_groups * size
        side, n_experts = layers * self.slots, len(weights)
        self.weights = np.zeros((side, side))
        first, last = slice(n_experts), slice(side - self.slots, side - self.slots + n_experts)
        self.weights[first, last] += weights / 2
        self.weights[last, first] += weights.T / 2
        if layers == 1:
            self.weights /= 2  # both came to the same place
        self.constant = np.kron(np.eye(layers), np.full((self.slots, self.slots), 1 / self.slots))

    def bound(self, m: np.ndarray) -> float:
        """Return the bound that the multipliers *m* prove."""
        return self._by_spectrum(self.weights - m) + self._by_rows(m)

    def multipliers(self, rounds: int) -> np.ndarray:
        """Return multipliers after *rounds* of alternating projections on spectrum and entries."""
        step, cap = STEP / self.slots, self.layers * self.size  # weights add up to 1, not to one per slot
        even = np.full_like(self.weights, self.size / self.slots)  # everything spread evenly: the mean of all Y
        entries, dual = even, np.zeros_like(even)
        for _ in range(rounds):
            values, vectors = np.linalg.eigh(self._inside(entries - dual + self.weights / step, hide=1e6))
            kept = _capped(values, cap, cap * (self.n_groups - 1))
            used = kept > 0
            vectors = vectors[:, used]
            y = even + (vectors * kept[used]) @ vectors.T
            entries = np.clip(y + dual, 0.0, 1.0)
            np.fill_diagonal(entries, 1.0)
            dual = y + dual - entries
        return step * (dual + dual.T) / 2

    def _inside(self, n: np.ndarray, hide: float) -> np.ndarray:
        """Return *n* on what is orthogonal to vectors constant within layers; these get the eigenvalue -*hide*."""
        blocks = n.reshape(self.layers, self.slots, self.layers, self.slots)
        blocks = blocks - blocks.mean(axis=1, keepdims=True)
        blocks = blocks - blocks.mean(axis=3, keepdims=True)
        return blocks.reshape(n.shape) - hide * self.constant

    def _by_spectrum(self, n: np.ndarray) -> float:
        hide = 1.0 + float(np.abs(n).sum())  # below every eigenvalue
        values = np.linalg.eigvalsh(self._inside(n, hide))
        largest = values[len(values) - self.n_groups + 1:].sum()
        return self.layers * self.size * (float(n.sum()) / len(n) + float(largest))

    def _by_rows(self, m: np.ndarray) -> float:
        found = float(np.trace(m))
        for i in range(self.layers):
            for j in range(self.layers):
                block = m[i * self.slots:(i + 1) * self.slots, j * self.slots:(j + 1) * self.slots]
                if i == j:
                    others = block[~np.eye(self.slots, dtype=bool)].reshape(self.slots, -1)
                    found += _largest(others, self.size - 1)
                else:
                    found += min(_largest(block, self.size), _largest(block.T, self.size))
        return found


def _capped(values: np.ndarray, cap: float, total: float) -> np.ndarray:
    """Return the nearest numbers to *values* that are between 0 and *cap* and add up to *total* (by bisection)."""
    low, high = float(values.min()) - cap, float(values.max())
    for _ in range(60):
        middle = (low + high) / 2
        if np.clip(values - middle, 0.0, cap).sum() > total:
            low = middle
        else:
            high = middle
    return np.clip(values - high, 0.0, cap)


def _largest(rows: np.ndarray, count: int) -> float:
    """Return the sum over *rows* of the *count* largest entries."""
    n_columns = rows.shape[1]
    if count >= n_columns:
        return float(rows.sum())
    return float(np.partition(rows, n_columns - count, axis=1)[:, n_columns - count:].sum()) if count else 0.0
