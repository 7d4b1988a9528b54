"""Fan-out: distinct devices, or nodes, that the experts of a token are on: the copies that dispatch has to send.

>>> import numpy as np
>>> from moesim.placement import Placement, Problem, Profile
>>> from moesim.trace import RoutingTrace
>>> profile = Profile.of(RoutingTrace.from_arrays(np.array([[[0, 1]], [[0, 2]]]), n_experts=4, top_k=2))
>>> Fanout().value(Placement.from_device_of([[0, 0, 1, 1]], 2), profile, Problem(4, 2))  # one device, and two
1.5
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from moesim.placement.costs import Costs, Spread, Together
from moesim.placement.objective import Problem, Profile
from moesim.placement.placement import Placement
from moesim.registry import part


@part
class Fanout:
    """Make the number of distinct devices (or nodes: copies between nodes, sent once each) per token small.

    With top-1 it is 1 whatever the placement. Counted over ``Profile.sets``, which stand for the tokens.
    """

    per: Literal["device", "node"] = "device"
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @property
    def label(self) -> str:
        """Return the name that ``evaluate`` gives it."""
        return "fanout" if self.per == "device" else "node_fanout"

    def costs(self, profile: Profile, problem: Problem) -> Costs:
        """Return the spread over devices or nodes."""
        return Costs(spread=(Spread(self._groups(problem), self.weight),))

    def value(self, placement: Placement, profile: Profile, problem: Problem) -> float:
        """Return the mean over tokens and layers, 1 or more, if the replicas of an expert are used evenly."""
        group_of = self._groups(problem)
        if (placement.replicas.sum(axis=2) > 1).any():
            return float(np.mean([_met(members, held, group_of) @ tokens / tokens.sum()
                                  for held, (members, tokens) in zip(placement.replicas, profile.sets, strict=True)]))
        from moesim.placement.spread import spread  # numba: half a second, only when needed

        return float(np.mean([spread(Together(members, tokens, group_of[None], np.ones(1)), placement.device_of[layer])
                              / tokens.sum() for layer, (members, tokens) in enumerate(profile.sets)]))

    def _groups(self, problem: Problem) -> np.ndarray:
        return np.arange(problem.n_devices) if self.per == "device" else problem.node_of


def _met(members: np.ndarray, held: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """Return the groups that tokens of each set [N, K] meet, on average over the replicas *held* [E, D]: [N]."""
    group = (group_of[:, None] == np.arange(group_of.max() + 1)).astype(float)
    inside = held @ group / np.maximum(held.sum(axis=1), 1)[:, None]
    missed = np.ones((len(members), inside.shape[1]))
    for experts in members.T:
        missed *= 1 - inside[experts]
    return (1 - missed).sum(axis=1)
