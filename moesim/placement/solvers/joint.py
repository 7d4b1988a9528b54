"""Transitions and load together, by exchanges that weigh what tokens cross against imbalance (the default).

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> follows = np.diag([60, 50, 20, 10])[None]  # expert e is always followed by e: any equal split crosses nothing
>>> profile = Profile(np.array([[60, 50, 20, 10]] * 2), 140, lambda top1: follows)
>>> Joint().solve(profile, Problem(n_experts=4, n_devices=2), seed=0).info["objective"]  # 0 + 0.3 x 1: 70 on each
0.3
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from moesim.placement.costs import total
from moesim.placement.objective import Pairs, Problem, Profile
from moesim.placement.objectives.load import Load
from moesim.placement.objectives.transitions import Transitions
from moesim.placement.placement import Placement, PlacementError
from moesim.placement.solvers._chain import Chain, swap
from moesim.placement.solvers._claims import claims
from moesim.placement.solvers._replicas import place
from moesim.placement.solvers._search import descend, search
from moesim.registry import Part, part


@part
class Joint:
    """Minimise mean transition distance + *balance* x mean over layers of load max/mean, within the capacity.

    With balance 0.3, ten percent more on the busiest device is worth three percent of the transitions. Exchanges
    within a layer, swept over the layers until none helps, from *restarts* random starts; then *perturbations*
    of an iterated local search.

    *redundant* is how many more replicas than experts a layer may have, for which devices have room too. Tokens that
    stay use the replica on their device: with transitions the load is theirs (replicas.py, ``Load``).

    *objectives* (names or mappings, as ``("fanout", {"name": "migration", "weight": 0.1})``) are minimised instead of
    the transitions, with their weights. For fan-out and load alone ``coactivation`` is faster. *bound_rounds* is the
    effort for the lower bound (bounds.py); left out, what takes seconds at most.
    """

    balance: float = Field(default=0.3, ge=0, allow_inf_nan=False)
    pairs: Pairs = "top1"
    restarts: int = Field(default=5, ge=1)
    perturbations: int = Field(default=1200, ge=0)
    objectives: tuple[Annotated[Any, Part("objective")], ...] = ()
    bound_rounds: int | None = Field(default=None, ge=0)
    redundant: int = Field(default=0, ge=0)

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; *seed* draws the starts and the perturbations."""
        if self.objectives and self.pairs != "top1":
            raise PlacementError("pairs is given beside objectives, which do not read it; "
                                 "write {name: transitions, pairs: all} among them")
        rng, objectives = np.random.default_rng(seed), self.minimised()
        costs = total(o.costs(profile, problem) for o in objectives if o.weight)
        if self.redundant:
            if costs.flows:
                objectives = *objectives[:-1], Load(weight=self.balance, stay=True)
            placement = place(objectives, profile, problem, self.redundant, (self.restarts, self.perturbations), rng)
        else:
            chain = Chain(costs, profile, problem)
            devices = search(chain, descend(chain, swap, self.restarts, rng), self.perturbations, rng)
            placement = Placement.from_device_of(devices, problem.n_devices, profile.sizes)
        said = claims(objectives, placement, profile, problem, self.bound_rounds, self.redundant)
        return placement.with_info(**said)

    def minimised(self) -> tuple[Any, ...]:
        """Return the objectives, load last."""
        return *(self.objectives or (Transitions(pairs=self.pairs),)), Load(weight=self.balance)
