"""Fan-out and load only, layer by layer: experts that tokens choose together share a device.

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> pairs = np.array([[0, 3], [1, 2]], dtype=np.int32), np.array([4.0, 4.0])  # four tokens chose 0 and 3, four 1 and 2
>>> profile = Profile(np.full((1, 4), 4), 8, lambda top1: np.zeros((0, 4, 4), dtype=int), lambda layer: pairs)
>>> Coactivation().solve(profile, Problem(n_experts=4, n_devices=2), seed=0).info["values"]
{'fanout': 1.0, 'load_max_over_mean': 1.0}
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from moesim.placement.costs import total
from moesim.placement.objective import Problem, Profile
from moesim.placement.objectives.fanout import Fanout
from moesim.placement.objectives.load import Load
from moesim.placement.placement import Placement
from moesim.placement.solvers._chain import Chain, swap
from moesim.placement.solvers._claims import claims
from moesim.registry import part

KICK = 3  # experts per disturbance that change places: chosen, few enough that most of a layer stays


@part
class Coactivation:
    """Minimise devices per token + *nodes* x nodes per token + *balance* x mean over layers of load max/mean.

    What dispatch and combine pay for when a token returns home after every layer. Layers do not touch each other:
    each by exchanges from *restarts* random starts, then *perturbations* disturbances of a few experts each, kept
    if not worse. Blind to transitions.
    """

    balance: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    nodes: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    restarts: int = Field(default=5, ge=1)
    perturbations: int = Field(default=20, ge=0)

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; *seed* draws starts and disturbances. Raises ``PlacementError`` without sets."""
        rng = np.random.default_rng(seed)
        objectives = (Fanout(), *((Fanout(per="node", weight=self.nodes),) if self.nodes else ()),
                      Load(weight=self.balance))
        chain = Chain(total(o.costs(profile, problem) for o in objectives if o.weight), profile, problem)
        devices = np.stack([self._layer(chain, layer, rng) for layer in range(chain.n_layers)])
        placement = Placement.from_device_of(devices, problem.n_devices, profile.sizes)
        return placement.with_info(**claims(objectives, placement, profile, problem))

    def _layer(self, chain: Chain, layer: int, rng: np.random.Generator) -> np.ndarray:
        """Return the devices of one layer, [E]."""
        devices = chain.random(rng)
        row = chain.row(devices, layer)
        best, best_cost = row.copy(), np.inf
        for turn in range(self.restarts + self.perturbations):
            row[:] = chain.shuffled(best, layer, rng) if turn < self.restarts else _kicked(best, rng)
            swap(chain, devices, layer)
            cost = chain.terms(devices, layer)[1]
            if cost <= best_cost:
                best, best_cost = row.copy(), cost
        row[:] = best
        return devices[layer]


def _kicked(devices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return *devices* with those of a few experts passed on in a circle."""
    chosen = rng.choice(len(devices), min(KICK, len(devices)), replace=False)
    kicked = devices.copy()
    kicked[chosen] = devices[np.roll(chosen, 1)]
    return kicked
