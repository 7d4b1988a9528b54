"""Device load: the most loaded device over the mean device, which every other one waits for.

>>> import numpy as np
>>> from moesim.placement.objective import Placement, Problem, Profile
>>> profile = Profile(np.array([[6, 1, 1]]), 8, lambda top1: np.zeros((0, 3, 3), dtype=int))
>>> Load().value(Placement.from_device_of([[0, 1, 1]], 2), profile, Problem(3, 2))
1.5
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from moesim.placement.costs import Costs
from moesim.placement.objective import Problem, Profile, device_load, load_max_over_mean
from moesim.placement.placement import Placement
from moesim.placement.replicas import Replicas
from moesim.registry import part


@part
class Load:
    """Make the load max/mean of the devices small, mean over layers.

    Tokens that come from all devices alike use the replicas of an expert evenly; with *stay* they are at the device of
    their first choice and use the replica there (replicas.py). Without replicas both are the same.
    """

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    stay: bool = False

    @property
    def label(self) -> str:
        """Return the name that ``evaluate`` gives it."""
        return "stay_load_max_over_mean" if self.stay else "load_max_over_mean"

    def costs(self, profile: Profile, problem: Problem) -> Costs:
        """Return loads, scaled such that the largest sum on a device is that layer's part of the objective."""
        mean = profile.counts.sum(axis=1, keepdims=True) / problem.n_devices
        return Costs(loads=self.weight / profile.n_layers * profile.counts / mean)

    def value(self, placement: Placement, profile: Profile, problem: Problem) -> float:
        """Return load max/mean, 1 or more; raises ``PlacementError`` for a layer without tokens."""
        if not self.stay:
            return float(load_max_over_mean(device_load(profile.counts, placement.replicas)).mean())
        mine = Replicas.of(placement.replicas)
        counts = mine.profile(profile, problem, mine.flows(profile.top1, problem)[1]).counts
        load = np.zeros((profile.n_layers, problem.n_devices))
        layer, copy = np.nonzero(mine.expert >= 0)
        np.add.at(load, (layer, mine.device[layer, copy]), counts[layer, copy])
        return float(load_max_over_mean(load).mean())
