"""A random draw with equal expert counts: the yardstick, crossing 1 - 1/D of the time.

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> profile = Profile(np.ones((1, 6), dtype=int), 6, lambda top1: np.zeros((0, 6, 6), dtype=int))
>>> Random().solve(profile, Problem(n_experts=6, n_devices=3), seed=0).counts().tolist()
[[2, 2, 2]]
"""

from __future__ import annotations

import numpy as np

from moesim.placement.objective import Problem, Profile
from moesim.placement.placement import Placement
from moesim.registry import part


@part
class Random:
    """Shuffle the experts of each layer over the devices; counts differ by one at most."""

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement that *seed* draws; the profile plays no part."""
        rng = np.random.default_rng(seed)
        devices = np.full(profile.counts.shape, -1)
        for row, size in zip(devices, profile.sizes, strict=True):
            row[:size] = rng.permutation(np.arange(size) % problem.n_devices)
        return Placement.from_device_of(devices, problem.n_devices, profile.sizes,
                                        minimises="nothing", objective=None, status="heuristic")
