"""Contiguous blocks in expert order: what engines do when told nothing.

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> profile = Profile(np.ones((1, 5), dtype=int), 5, lambda top1: np.zeros((0, 5, 5), dtype=int))
>>> Linear().solve(profile, Problem(n_experts=5, n_devices=2), seed=0).device_of.tolist()
[[0, 0, 0, 1, 1]]
"""

from __future__ import annotations

import numpy as np

from moesim.placement.objective import Problem, Profile
from moesim.placement.placement import Placement
from moesim.registry import part


@part
class Linear:
    """Give each device a run of neighbouring experts, the first E mod D devices one more.

    Source: vLLM 0.9, ``determine_expert_map`` (linear expert placement).
    """

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; profile and *seed* play no part."""
        devices = np.full(profile.counts.shape, -1)
        for row, size in zip(devices, profile.sizes, strict=True):
            blocks = np.array_split(np.arange(size), problem.n_devices)
            row[:size] = np.repeat(np.arange(problem.n_devices), [len(block) for block in blocks])
        return Placement.from_device_of(devices, problem.n_devices, profile.sizes,
                                        minimises="nothing", objective=None, status="heuristic")
