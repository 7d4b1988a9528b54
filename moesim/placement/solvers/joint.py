"""Transitions and load together, by exchanges that weigh what tokens cross against imbalance (the default).

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> follows = np.diag([60, 50, 20, 10])[None]  # expert e is always followed by e: any equal split crosses nothing
>>> profile = Profile(np.array([[60, 50, 20, 10]] * 2), 140, lambda top1: follows)
>>> Joint().solve(profile, Problem(n_experts=4, n_devices=2), seed=0).info["objective"]  # 0 + 0.3 x 1: 70 on each
0.3
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from moesim.placement.objective import Pairs, Problem, Profile, device_load, load_max_over_mean, transition_cost
from moesim.placement.placement import Placement
from moesim.placement.solvers._chain import Chain, descend, search, swap
from moesim.registry import part


@part
class Joint:
    """Minimise mean transition distance + *balance* x mean over layers of load max/mean, equal expert counts.

    With balance 0.3, ten percent more on the busiest device is worth three percent of the transitions. Exchanges
    within a layer, swept over the layers until none helps, from *restarts* random starts; then *perturbations*
    of an iterated local search.
    """

    balance: float = Field(default=0.3, ge=0, allow_inf_nan=False)
    pairs: Pairs = "top1"
    restarts: int = Field(default=5, ge=1)
    perturbations: int = Field(default=1200, ge=0)

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; *seed* draws the starts and the perturbations."""
        rng = np.random.default_rng(seed)
        transitions = profile.transitions(self.pairs)
        chain = Chain(transitions, profile, problem, self.balance)
        devices = search(chain, descend(chain, swap, self.restarts, rng), self.perturbations, rng)
        placement = Placement.from_device_of(chain.device_of(devices), problem.n_devices)
        imbalance = load_max_over_mean(device_load(profile.counts, placement.replicas)).mean()
        crossing = transition_cost(transitions, placement.device_of, problem.distance)
        return placement.with_info(minimises=f"cross_{self.pairs} + {self.balance} x load_max_over_mean",
                                   objective=crossing + self.balance * imbalance, status="heuristic")
