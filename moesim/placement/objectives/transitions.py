"""Inter-layer transitions: what tokens cross from a layer to the next, nodes weighed more than devices.

>>> import numpy as np
>>> from moesim.placement.objective import Placement, Problem, Profile
>>> profile = Profile(np.full((2, 2), 4), 4, lambda top1: np.array([[[3, 0], [1, 0]]]))
>>> Transitions().value(Placement.from_device_of([[0, 1], [0, 1]], 2), profile, Problem(2, 2))
0.25
"""

from __future__ import annotations

from pydantic import Field

from moesim.placement.costs import Costs, Flows
from moesim.placement.objective import Pairs, Problem, Profile, transition_cost
from moesim.placement.placement import Placement
from moesim.placement.replicas import single
from moesim.registry import part


@part
class Transitions:
    """Make the mean transition distance small (ExFlow, arXiv 2401.08383), of first choices or of all *pairs*."""

    pairs: Pairs = "top1"
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @property
    def label(self) -> str:
        """Return cross_top1 or cross_all, as ``evaluate`` names it (without nodes)."""
        return f"cross_{self.pairs}"

    def costs(self, profile: Profile, problem: Problem) -> Costs:
        """Return flows: the share of all transitions."""
        transitions = profile.transitions(self.pairs)
        share = self.weight * (transitions / max(transitions.sum(), 1))
        return Costs(flows=(Flows(share, problem.distance, problem.levels),))

    def value(self, placement: Placement, profile: Profile, problem: Problem) -> float:
        """Return the mean distance of a transition, 0 to 1; 0 with one layer."""
        placement, profile = single(placement, profile, problem)
        return transition_cost(profile.transitions(self.pairs), placement.device_of, problem.distance)
