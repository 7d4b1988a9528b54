"""Experts dealt to the devices in turn, like cards.

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> profile = Profile(np.ones((1, 5), dtype=int), 5, lambda top1: np.zeros((0, 5, 5), dtype=int))
>>> RoundRobin().solve(profile, Problem(n_experts=5, n_devices=2), seed=0).device_of.tolist()
[[0, 1, 0, 1, 0]]
"""

from __future__ import annotations

import numpy as np

from moesim.placement.objective import Problem, Profile
from moesim.placement.placement import Placement
from moesim.registry import part


@part
class RoundRobin:
    """Put expert e on device e mod D, in every layer."""

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; profile and *seed* play no part."""
        expert = np.arange(profile.n_experts)
        devices = np.where(expert < profile.sizes[:, None], expert % problem.n_devices, -1)
        return Placement.from_device_of(devices, problem.n_devices, profile.sizes,
                                        minimises="nothing", objective=None, status="heuristic")
