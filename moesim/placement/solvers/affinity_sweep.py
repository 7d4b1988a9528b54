"""Transitions only: keep a token where it is by exact per-layer assignment, swept over the layers.

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> follows = 100 * np.eye(4, dtype=int)[None, ::-1]  # expert e of layer 0 is always followed by 3 - e
>>> profile = Profile(np.full((2, 4), 100), 400, lambda top1: follows)
>>> AffinitySweep().solve(profile, Problem(n_experts=4, n_devices=2), seed=0).info["objective"]  # linear: 1.0
0.0
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from moesim.placement.objective import Pairs, Problem, Profile
from moesim.placement.objectives.transitions import Transitions
from moesim.placement.placement import Placement
from moesim.placement.solvers._chain import Chain, assign
from moesim.placement.solvers._claims import claims
from moesim.placement.solvers._search import descend, search, settle
from moesim.registry import part


@part
class AffinitySweep:
    """Minimise the mean transition distance (ExFlow's objective, arXiv 2401.08383), equal expert counts.

    With both neighbours fixed a layer is a transportation problem, solved exactly; sweep the layers until none
    improves, from *restarts* random starts; then *perturbations* of an iterated local search. Blind to load.
    """

    pairs: Pairs = "top1"
    restarts: int = Field(default=5, ge=1)
    perturbations: int = Field(default=1200, ge=0)

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; *seed* draws the starts and the perturbations."""
        rng, crossing = np.random.default_rng(seed), Transitions(pairs=self.pairs)
        chain = Chain(crossing.costs(profile, problem), profile, problem)
        devices = search(chain, descend(chain, assign, self.restarts, rng), self.perturbations, rng)
        settle(chain, devices, range(chain.n_layers), assign)
        placement = Placement.from_device_of(devices, problem.n_devices, profile.sizes)
        return placement.with_info(**claims((crossing,), placement, profile, problem))
