"""Bytes weighted by the links they cross: the mean distance of a token's way, on any matrix of distances.

>>> import numpy as np
>>> from moesim.placement.objective import Placement, Problem, Profile
>>> profile = Profile(np.full((2, 2), 4), 4, lambda top1: np.array([[[3, 0], [1, 0]]]))
>>> hops = np.array([[0, 6], [6, 0]])
>>> LinkBytes().value(Placement.from_device_of([[0, 1], [0, 1]], 2), profile, Problem(2, 2, distances=hops))
1.5
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from moesim.placement.costs import Costs, Flows
from moesim.placement.objective import Pairs, Problem, Profile, transition_cost
from moesim.placement.placement import Placement, PlacementError
from moesim.placement.replicas import single
from moesim.registry import part


@part
class LinkBytes:
    """Make the mean distance that a copy of a token travels small; times copies and bytes it is link-weighted bytes.

    "context_coherent": from expert to expert of neighbouring layers, of first choices or of all *pairs*.
    "dispatch_combine": from a device (all alike often) to every chosen expert and back, half of the sum of both ways
    (the objective of arXiv 2508.09229); copies to one device are not merged: ``fanout`` counts those.
    The problem gives ``distances`` in any unit (hops, seconds per byte); the weight is per that unit.
    """

    mode: Literal["context_coherent", "dispatch_combine"] = "context_coherent"
    pairs: Pairs = "top1"
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @property
    def label(self) -> str:
        """Return what is counted."""
        return f"distance_{self.pairs}" if self.mode == "context_coherent" else "distance_dispatch"

    def costs(self, profile: Profile, problem: Problem) -> Costs:
        """Return flows, or a table. Raises ``PlacementError`` if the problem gives no distances."""
        distances = _distances(problem)
        if self.mode == "dispatch_combine":
            share = self.weight * profile.counts / max(profile.counts.sum(), 1)
            return Costs(table=share[:, :, None] * _to_and_fro(distances))
        transitions = profile.transitions(self.pairs)
        return Costs(flows=(Flows(self.weight * (transitions / max(transitions.sum(), 1)), distances, None),))

    def value(self, placement: Placement, profile: Profile, problem: Problem) -> float:
        """Return the mean distance of a copy, in the unit of the distances."""
        distances = _distances(problem)
        placement, profile = single(placement, profile, problem)
        if self.mode == "dispatch_combine":
            way = _to_and_fro(distances)[placement.device_of]
            return float((profile.counts * way).sum() / max(profile.counts.sum(), 1))
        return transition_cost(profile.transitions(self.pairs), placement.device_of, distances)


def _distances(problem: Problem) -> np.ndarray:
    if problem.distances is None:
        raise PlacementError("link_bytes needs the distances between devices; give solve(..., distances=[D, D])")
    return problem.distances


def _to_and_fro(distances: np.ndarray) -> np.ndarray:
    """Return half of the way to a device and back, mean over where tokens come from, float64 [D]."""
    return (distances.mean(axis=0) + distances.mean(axis=1)) / 2
