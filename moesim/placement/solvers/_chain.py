"""The MoE layers as a chain, and what one layer costs (shared by the solvers that search).

What a layer's placement costs depends on its two neighbours only: for fixed neighbours it is a sum over experts (a
table of experts by devices), plus its load and its spread. Letters: L layers, E experts of the largest, N of the one
in question, D devices, F kinds of groups.
"""

from __future__ import annotations

import numpy as np

from moesim.placement.costs import ALONE, Costs, Flows, Together
from moesim.placement.objective import Problem, Profile

IMPROVES = 1e-12  # as in swaps.py


class Chain:
    """Hold the costs, summed; assignments are int64 [L, E], the device of each expert, -1 beyond those of a layer."""

    def __init__(self, costs: Costs, profile: Profile, problem: Problem) -> None:
        self.n_layers, self.n_experts = profile.counts.shape
        self.sizes, self.rooms = profile.sizes.tolist(), problem.rooms(profile.sizes).tolist()
        self.levels, self.n_devices = problem.levels, problem.n_devices
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
        found = np.full((self.n_layers, self.n_experts), -1)
        for row, size, room in zip(found, self.sizes, self.rooms, strict=True):
            row[:size] = rng.permutation(np.repeat(np.arange(self.n_devices), room))[:size]
        return found

    def row(self, devices: np.ndarray, layer: int) -> np.ndarray:
        """Return the devices of the experts of *layer*, [N], a view."""
        return devices[layer, :self.sizes[layer]]

    def shuffled(self, row: np.ndarray, layer: int, rng: np.random.Generator) -> np.ndarray:
        """Return another assignment of *layer*, with the same rooms free or not as *row* [N] leaves."""
        free = self.rooms[layer] - np.bincount(row, minlength=self.n_devices)
        return rng.permutation(np.append(row, np.repeat(np.arange(self.n_devices), free)))[:len(row)]

    def layer_cost(self, devices: np.ndarray, layer: int) -> np.ndarray:
        """Return what each expert of *layer* would cost on each device, float64 [N, D], its neighbours fixed."""
        from moesim.placement.loops import add_apart, add_by_device  # numba: half a second, only when needed

        shape = self.sizes[layer], self.n_devices
        cost = np.zeros(shape) if self.table is None else self.table[layer, :shape[0]].copy()
        for flow, back in zip(self.flows, self.flows_back, strict=True):
            there, here = np.zeros(shape), np.zeros(shape)  # flow from an expert to what is on a device, and back
            if layer > 0:
                add_by_device(back[layer - 1], self.row(devices, layer - 1), here)
            if flow.levels is not None:
                there = here  # a tree has the same distance both ways
            if layer < self.n_layers - 1:
                add_by_device(flow.share[layer], self.row(devices, layer + 1), there)
            if flow.levels is None:
                cost += np.einsum("eq,dq->ed", there, flow.distance) + np.einsum("eq,qd->ed", here, flow.distance)
            else:  # the same without the matrix product, which would start a thread pool
                for group_of, weight in flow.levels:
                    add_apart(there, group_of, weight, cost)
        return cost

    def terms(self, devices: np.ndarray, layer: int) -> tuple[float, float]:
        """Return the cost of the step from *layer* to the next, and of *layer* itself."""
        from moesim.placement.spread import spread

        step, own, row = 0.0, 0.0, self.row(devices, layer)
        if layer < self.n_layers - 1:
            step = sum((self._step(flow, devices, layer) for flow in self.flows), 0.0)
        if self.balanced:
            own = float(np.bincount(row, self.loads[layer, :len(row)], minlength=self.n_devices).max())
        if self.table is not None:
            own += float(self.table[layer, np.arange(len(row)), row].sum())
        if len(self.together[layer].members):
            own += spread(self.together[layer], row)
        return step, own

    def _step(self, flow: Flows, devices: np.ndarray, layer: int) -> float:
        from moesim.placement.loops import add_by_device

        row = self.row(devices, layer)
        partners = np.zeros((len(row), self.n_devices))
        add_by_device(flow.share[layer], self.row(devices, layer + 1), partners)
        return float((partners * flow.distance[row]).sum())

    def all_terms(self, devices: np.ndarray) -> np.ndarray:
        """Return the terms of every layer, float64 [L, 2]; their sum is what is minimised."""
        return np.array([self.terms(devices, layer) for layer in range(self.n_layers)])


def assign(chain: Chain, devices: np.ndarray, layer: int) -> bool:
    """Give *layer* the exact best assignment for its neighbours (load, spread aside); return whether it was better."""
    from scipy.optimize import linear_sum_assignment  # half a second to import: only when needed

    cost, row = chain.layer_cost(devices, layer), chain.row(devices, layer)
    slots = np.repeat(np.arange(chain.n_devices), chain.rooms[layer])
    experts, columns = linear_sum_assignment(cost[:, slots])
    if cost[experts, slots[columns]].sum() >= cost[experts, row].sum() - IMPROVES:
        return False
    row[:] = slots[columns]
    return True


def swap(chain: Chain, devices: np.ndarray, layer: int) -> bool:
    """Exchange and move experts of *layer* while what is minimised falls; return whether it did."""
    from moesim.placement.swaps import exchange

    cost, row = chain.layer_cost(devices, layer), chain.row(devices, layer)
    return exchange(cost, chain.loads[layer, :len(row)], chain.rooms[layer], chain.together[layer], row) > 0
