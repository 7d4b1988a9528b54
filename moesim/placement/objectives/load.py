"""Device load: the most loaded device over the mean device, which every other one waits for.

>>> import numpy as np
>>> from moesim.placement.objective import Placement, Problem, Profile
>>> profile = Profile(np.array([[6, 1, 1]]), 8, lambda top1: np.zeros((0, 3, 3), dtype=int))
>>> Load().value(Placement.from_device_of([[0, 1, 1]], 2), profile, Problem(3, 2))
1.5
"""

from __future__ import annotations

from pydantic import Field

from moesim.placement.costs import Costs
from moesim.placement.objective import Problem, Profile, device_load, load_max_over_mean
from moesim.placement.placement import Placement
from moesim.registry import part


@part
class Load:
    """Make the load max/mean of the devices small, mean over layers."""

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @property
    def label(self) -> str:
        """Return the name that ``evaluate`` gives it."""
        return "load_max_over_mean"

    def costs(self, profile: Profile, problem: Problem) -> Costs:
        """Return loads, scaled such that the largest sum on a device is that layer's part of the objective."""
        mean = profile.counts.sum(axis=1, keepdims=True) / problem.n_devices
        return Costs(loads=self.weight / profile.n_layers * profile.counts / mean)

    def value(self, placement: Placement, profile: Profile, problem: Problem) -> float:
        """Return load max/mean, 1 or more; raises ``PlacementError`` for a layer without tokens."""
        return float(load_max_over_mean(device_load(profile.counts, placement.replicas)).mean())
