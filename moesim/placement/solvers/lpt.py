"""Load balance only: heaviest expert first, to the lightest device with room.

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> profile = Profile(np.array([[6, 5, 2, 1]]), 14, lambda top1: np.zeros((0, 4, 4), dtype=int))
>>> Lpt().solve(profile, Problem(n_experts=4, n_devices=2), seed=0).device_of.tolist()  # loads 7 and 7
[[0, 1, 1, 0]]
"""

from __future__ import annotations

import numpy as np

from moesim.placement.objective import Problem, Profile, device_load, load_max_over_mean
from moesim.placement.placement import Placement
from moesim.placement.solvers._packing import pack
from moesim.registry import part


@part
class Lpt:
    """Pack each layer by longest processing time with equal expert counts; blind to transitions and nodes."""

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; *seed* plays no part."""
        devices, rooms = np.full(profile.counts.shape, -1), problem.rooms(profile.sizes)
        for row, size, weights, room in zip(devices, profile.sizes, profile.counts.astype(float), rooms, strict=True):
            row[:size] = pack(weights[:size], problem.n_devices, int(room))[0]
        placement = Placement.from_device_of(devices, problem.n_devices, profile.sizes)
        imbalance = load_max_over_mean(device_load(profile.counts, placement.replicas)).mean()
        return placement.with_info(minimises="load_max_over_mean", objective=imbalance, status="heuristic")
