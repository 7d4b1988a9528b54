"""The MoE layers as a chain, and what one layer costs (shared by the solvers that search).

What a layer's placement costs depends on its two neighbours only: for fixed neighbours it is a sum over experts (a
table of experts by devices), plus its load and its spread. Letters: L layers, E experts, D devices, F kinds of groups.
"""

from __future__ import annotations

import numpy as np

from moesim.placement.costs import ALONE, Costs, Flows, Together
from moesim.placement.objective import Problem, Profile

IMPROVES = 1e-12  # as in swaps.py


class Chain:
    """Hold the costs, summed; assignments are int64 [L, E], the device of each expert."""

    def __init__(self, costs: Costs, profile: Profile, problem: Problem) -> None:
        self.n_layers, self.n_experts = profile.counts.shape
        self.levels, self.capacity, self.n_devices = problem.levels, problem.capacity, problem.n_devices
        self.flows, self.table = costs.flows, costs.table
        self.flows_back = [np.ascontiguousarray(flow.share.transpose(0, 2, 1)) for flow in costs.flows]
        self.balanced = costs.loads is not None
        self.loads = np.zeros(profile.counts.shape) if costs.loads is None else costs.loads
        self.together = [ALONE] * self.n_layers
        if costs.spread:
            group_of = np.stack([spread.group_of for spread in costs.spread])
            price = np.array([spread.price for spread in costs.spread]) / self.n_layers
            self.together = [Together(*sets, group_of, price / sets[1].sum()) for sets in profile.sets]

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random assignment."""
        slots = np.repeat(np.arange(self.n_devices), self.capacity)
        return np.stack([rng.permutation(slots)[:self.n_experts] for _ in range(self.n_layers)])

    def shuffled(self, devices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return another assignment of one layer, with the same rooms free or not."""
        free = self.capacity - np.bincount(devices, minlength=self.n_devices)
        return rng.permutation(np.append(devices, np.repeat(np.arange(self.n_devices), free)))[:self.n_experts]

    def layer_cost(self, devices: np.ndarray, layer: int) -> np.ndarray:
        """Return what each expert of *layer* would cost on each device, float64 [E, D], its neighbours fixed."""
        from moesim.placement.loops import add_apart, add_by_device  # numba: half a second, only when needed

        shape = self.n_experts, self.n_devices
        cost = np.zeros(shape) if self.table is None else self.table[layer].copy()
        for flow, back in zip(self.flows, self.flows_back, strict=True):
            there, here = np.zeros(shape), np.zeros(shape)  # flow from an expert to what is on a device, and back
            if layer > 0:
                add_by_device(back[layer - 1], devices[layer - 1], here)
            if flow.levels is not None:
                there = here  # a tree has the same distance both ways
            if layer < self.n_layers - 1:
                add_by_device(flow.share[layer], devices[layer + 1], there)
            if flow.levels is None:
                cost += np.einsum("eq,dq->ed", there, flow.distance) + np.einsum("eq,qd->ed", here, flow.distance)
            else:  # the same without the matrix product, which would start a thread pool
                for group_of, weight in flow.levels:
                    add_apart(there, group_of, weight, cost)
        return cost

    def terms(self, devices: np.ndarray, layer: int) -> tuple[float, float]:
        """Return the cost of the step from *layer* to the next, and of *layer* itself."""
        from moesim.placement.spread import spread

        step = own = 0.0
        if layer < self.n_layers - 1:
            step = sum((self._step(flow, devices, layer) for flow in self.flows), 0.0)
        if self.balanced:
            own = float(np.bincount(devices[layer], self.loads[layer], minlength=self.n_devices).max())
        if self.table is not None:
            own += float(self.table[layer, np.arange(self.n_experts), devices[layer]].sum())
        if len(self.together[layer].members):
            own += spread(self.together[layer], devices[layer])
        return step, own

    def _step(self, flow: Flows, devices: np.ndarray, layer: int) -> float:
        from moesim.placement.loops import add_by_device

        partners = np.zeros((self.n_experts, self.n_devices))
        add_by_device(flow.share[layer], devices[layer + 1], partners)
        return float((partners * flow.distance[devices[layer]]).sum())

    def all_terms(self, devices: np.ndarray) -> np.ndarray:
        """Return the terms of every layer, float64 [L, 2]; their sum is what is minimised."""
        return np.array([self.terms(devices, layer) for layer in range(self.n_layers)])


def assign(chain: Chain, devices: np.ndarray, layer: int) -> bool:
    """Give *layer* the exact best assignment for its neighbours (load, spread aside); return whether it was better."""
    from scipy.optimize import linear_sum_assignment  # half a second to import: only when needed

    cost = chain.layer_cost(devices, layer)
    slots = np.repeat(np.arange(chain.n_devices), chain.capacity)
    experts, columns = linear_sum_assignment(cost[:, slots])
    if cost[experts, slots[columns]].sum() >= cost[experts, devices[layer]].sum() - IMPROVES:
        return False
    devices[layer] = slots[columns]
    return True


def swap(chain: Chain, devices: np.ndarray, layer: int) -> bool:
    """Exchange and move experts of *layer* while what is minimised falls; return whether it did."""
    from moesim.placement.swaps import exchange

    cost = chain.layer_cost(devices, layer)
    return exchange(cost, chain.loads[layer], chain.capacity, chain.together[layer], devices[layer]) > 0
