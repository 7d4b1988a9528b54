"""Load balance as DeepSeek's EPLB does it: groups to nodes, replicas of the heaviest, packing to devices.

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> profile = Profile(np.array([[6, 2, 1]]), 9, lambda top1: np.zeros((0, 3, 3), dtype=int))
>>> Eplb(redundant=1).solve(profile, Problem(n_experts=3, n_devices=2), seed=0).replicas[0].astype(int).tolist()
[[1, 1], [1, 0], [0, 1]]
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from moesim.placement.objective import Problem, Profile, device_load, load_max_over_mean
from moesim.placement.placement import Placement, PlacementError
from moesim.placement.replicas import replicate
from moesim.placement.solvers._packing import pack
from moesim.registry import part


@part
class Eplb:
    """Balance load with *redundant* extra replicas per layer and experts in *groups* of neighbours.

    Hierarchical if the groups divide over the nodes, else global. Source: deepseek-ai/EPLB (MIT, d52c72d);
    the same answers where its sort has no ties. Two replicas of an expert on one device count as one here.
    """

    redundant: int = Field(default=0, ge=0)
    groups: int = Field(default=1, ge=1)

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; *seed* plays no part. Raises ``PlacementError`` if the numbers do not divide."""
        for size in sorted(set(profile.sizes.tolist())):
            if self.redundant and (size + self.redundant) % problem.n_devices:
                raise PlacementError(f"{size} experts and {self.redundant} redundant ones do not fill "
                                     f"{problem.n_devices} devices evenly; the sum must be a multiple of the devices")
            if size % self.groups:
                raise PlacementError(f"{size} experts do not divide into {self.groups} groups")
        replicas = np.zeros((*profile.counts.shape, problem.n_devices), dtype=bool)
        for layer, size in enumerate(profile.sizes.tolist()):
            experts, devices, _ = balance(profile.counts[layer, :size], size + self.redundant, self.groups,
                                          problem.n_nodes, problem.n_devices)
            replicas[layer, experts, devices] = True
        imbalance = load_max_over_mean(device_load(profile.counts, replicas)).mean()
        info = {"minimises": "load_max_over_mean", "objective": imbalance, "status": "heuristic"}
        return Placement(replicas, info, profile.sizes)


def balance(weights: np.ndarray, slots: int, groups: int, nodes: int,
            devices: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return expert, device and rank on the device of each of the *slots* of one layer, int64 [slots] each.

    *weights* [E] are tokens per expert. Single precision like the original, so that near-ties fall alike.
    """
    weights = np.asarray(weights, dtype=np.float32)
    if groups % nodes:
        groups = nodes = 1  # the global policy
    members = np.arange(len(weights)).reshape(groups, -1)
    node_of_group, rank = _pack(weights[members].sum(axis=1, dtype=np.float32), nodes)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for node in range(nodes):
        mine = np.flatnonzero(node_of_group == node)
        local = members[mine[np.argsort(rank[mine])]].ravel()
        copy_of, loads = replicate(weights[local], slots // nodes)
        device, place = _pack(loads, devices // nodes)
        found.append((local[copy_of], device + node * (devices // nodes), place))
    experts, device, place = (np.concatenate(column) for column in zip(*found, strict=True))
    return experts, device, place


def _pack(weights: np.ndarray, n_packs: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack evenly; one item per pack stays in order, as in the original."""
    if len(weights) == n_packs:
        return np.arange(n_packs), np.zeros(n_packs, dtype=np.int64)
    return pack(weights, n_packs, -(-len(weights) // n_packs))
