"""The MoE layers as a chain, and local search on it (shared by the affinity solvers).

What a layer's placement costs depends on its two neighbours only, and for fixed neighbours it is a sum over
experts: a table of slots by devices. Letters: L layers, D devices, S = D x capacity slots per layer; slots
beyond E are empty, so that every full assignment is a permutation and a move is an exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from moesim.placement.objective import Problem, Profile

Improve = Callable[["Chain", np.ndarray, int], bool]
IMPROVES = 1e-12  # as in loops.py


class Chain:
    """Hold the objective: mean transition distance + *balance* x mean over layers of load max/mean.

    flows  share of all transitions, float64 [L-1, S, S], and flows_back its transposes;  distance  float64
    [D, D];  loads  float64 [L, S], scaled such that the largest sum on a device is that layer's part of the
    objective.
    Assignments are int64 [L, S]: the device of each slot.
    """

    def __init__(self, transitions: np.ndarray, profile: Profile, problem: Problem, balance: float = 0.0) -> None:
        self.n_layers, self.n_experts = profile.counts.shape
        self.distance, self.levels = problem.distance, problem.levels
        self.device_of_slot = np.repeat(np.arange(problem.n_devices), problem.capacity)
        self.n_slots = len(self.device_of_slot)
        empty = self.n_slots - self.n_experts
        self.flows = np.pad(transitions / max(transitions.sum(), 1), ((0, 0), (0, empty), (0, empty)))
        self.flows_back = np.ascontiguousarray(self.flows.transpose(0, 2, 1))
        mean = profile.counts.sum(axis=1, keepdims=True) / problem.n_devices
        self.loads = np.pad(balance / self.n_layers * profile.counts / mean, ((0, 0), (0, empty)))
        self.balanced = balance > 0

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random assignment."""
        return np.stack([rng.permutation(self.device_of_slot) for _ in range(self.n_layers)])

    def layer_cost(self, devices: np.ndarray, layer: int) -> np.ndarray:
        """Return what each slot of *layer* would cost on each device, float64 [S, D], its neighbours fixed."""
        from moesim.placement.loops import add_apart, add_by_device  # numba: half a second, only when needed

        partners = np.zeros((self.n_slots, len(self.distance)))  # flow between a slot and what is on a device
        if layer > 0:
            add_by_device(self.flows_back[layer - 1], devices[layer - 1], partners)
        if layer < self.n_layers - 1:
            add_by_device(self.flows[layer], devices[layer + 1], partners)
        cost = np.zeros_like(partners)
        for group_of, weight in self.levels:  # the same as partners @ distance, without a thread pool
            add_apart(partners, group_of, weight, cost)
        return cost

    def terms(self, devices: np.ndarray, layer: int) -> tuple[float, float]:
        """Return the cost of the step from *layer* to the next, and of the load of *layer*."""
        from moesim.placement.loops import add_by_device

        step = load = 0.0
        if layer < self.n_layers - 1:
            partners = np.zeros((self.n_slots, len(self.distance)))
            add_by_device(self.flows[layer], devices[layer + 1], partners)
            step = float((partners * self.distance[devices[layer]]).sum())
        if self.balanced:
            load = float(np.bincount(devices[layer], self.loads[layer], minlength=len(self.distance)).max())
        return step, load

    def all_terms(self, devices: np.ndarray) -> np.ndarray:
        """Return the terms of every layer, float64 [L, 2]; their sum is the objective."""
        return np.array([self.terms(devices, layer) for layer in range(self.n_layers)])

    def device_of(self, devices: np.ndarray) -> np.ndarray:
        """Return the device of each expert, int64 [L, E]: the assignment without empty slots."""
        return devices[:, :self.n_experts]


def assign(chain: Chain, devices: np.ndarray, layer: int) -> bool:
    """Give *layer* the exact best assignment for its neighbours (load aside); return whether that was better."""
    from scipy.optimize import linear_sum_assignment  # half a second to import: only when needed

    cost = chain.layer_cost(devices, layer)
    slots, columns = linear_sum_assignment(cost[:, chain.device_of_slot])
    best = chain.device_of_slot[columns]
    if cost[slots, best].sum() >= cost[slots, devices[layer]].sum() - IMPROVES:
        return False
    devices[layer] = best
    return True


def swap(chain: Chain, devices: np.ndarray, layer: int) -> bool:
    """Exchange slots of *layer* while the objective, load included, falls; return whether it did."""
    from moesim.placement.loops import swap_until_stuck

    return swap_until_stuck(chain.layer_cost(devices, layer), chain.loads[layer], devices[layer]) > 0


def settle(chain: Chain, devices: np.ndarray, layers: Iterable[int], improve: Improve) -> set[int]:
    """Improve *layers*, forward and backward in turn, then the neighbours of what changed, until nothing does.

    Changes *devices* in place and returns the layers that changed.
    """
    waiting, changed, forward = set(layers), set(), True
    while waiting:
        for layer in sorted(waiting, reverse=not forward):
            if improve(chain, devices, layer):
                changed.add(layer)
                waiting |= {n for n in (layer - 1, layer + 1) if 0 <= n < chain.n_layers}
            waiting.discard(layer)
        forward = not forward
    return changed


def descend(chain: Chain, improve: Improve, restarts: int, rng: np.random.Generator) -> np.ndarray:
    """Return the best of *restarts* random assignments, each settled."""
    best, best_cost = np.empty(0), np.inf
    for _ in range(restarts):
        devices = chain.random(rng)
        settle(chain, devices, range(chain.n_layers), improve)
        cost = chain.all_terms(devices).sum()
        if cost < best_cost:
            best, best_cost = devices, cost
    return best


def search(chain: Chain, devices: np.ndarray, perturbations: int, rng: np.random.Generator) -> np.ndarray:
    """Return *devices* after an iterated local search: disturb a few layers, settle, keep what is not worse.

    In turn the experts of one to three neighbouring layers are shuffled, and two devices, or two nodes, change
    names in a run of layers (which only the ends of the run notice). Settling is by exchanges: as good as exact
    assignment in the end, and several times as fast.
    """
    terms = chain.all_terms(devices)
    for turn in range(perturbations):
        trial = devices.copy()
        disturbed, uneasy = (_shuffle, _rename)[turn % 2](chain, trial, rng)
        touched = settle(chain, trial, uneasy, swap) | set(disturbed)
        trial_terms = terms.copy()
        for layer in {n for t in touched for n in (t - 1, t) if n >= 0}:
            trial_terms[layer] = chain.terms(trial, layer)
        if trial_terms.sum() <= terms.sum():
            devices, terms = trial, trial_terms
    return devices


def _shuffle(chain: Chain, devices: np.ndarray, rng: np.random.Generator) -> tuple[range, range]:
    length = min(int(rng.integers(1, 4)), chain.n_layers)
    start = int(rng.integers(0, chain.n_layers - length + 1))
    run = range(start, start + length)
    for layer in run:
        devices[layer] = rng.permutation(devices[layer])
    return run, run


def _rename(chain: Chain, devices: np.ndarray, rng: np.random.Generator) -> tuple[range, list[int]]:
    group_of = chain.levels[int(rng.integers(len(chain.levels)))][0]
    names = np.arange(len(group_of))
    n_groups = int(group_of.max()) + 1
    if n_groups > 1:
        first, second = (np.flatnonzero(group_of == g) for g in rng.choice(n_groups, 2, replace=False))
        names[first], names[second] = second, first
    start, stop = np.sort(rng.choice(chain.n_layers + 1, 2, replace=False)).tolist()
    devices[start:stop] = names[devices[start:stop]]
    return range(start, stop), [n for n in (start - 1, start, stop - 1, stop) if 0 <= n < chain.n_layers]
