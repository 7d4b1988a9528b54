"""Migration: the share of the experts that a placement moves away from where they are now.

>>> import numpy as np
>>> from moesim.placement.objective import Placement, Problem, Profile
>>> now, then = (Placement.from_device_of([row], 2) for row in ([0, 0, 1, 1], [0, 1, 0, 1]))
>>> profile = Profile(np.full((1, 4), 2), 4, lambda top1: np.zeros((0, 4, 4), dtype=int))
>>> Migration().value(then, profile, Problem(4, 2, previous=now))
0.5
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from moesim.placement.costs import Costs
from moesim.placement.objective import Problem, Profile
from moesim.placement.placement import Placement, PlacementError
from moesim.registry import part


@part
class Migration:
    """Make the share of experts that are new on their device small; the problem gives the ``previous`` placement."""

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @property
    def label(self) -> str:
        """Return what is counted."""
        return "moved"

    def costs(self, profile: Profile, problem: Problem) -> Costs:
        """Return a table: what putting an expert where it is not yet costs. Raises ``PlacementError``."""
        previous = _previous(profile, problem)
        new = ~previous.replicas & (np.arange(profile.n_experts) < profile.sizes[:, None])[:, :, None]
        return Costs(table=self.weight / profile.sizes.sum() * new)

    def value(self, placement: Placement, profile: Profile, problem: Problem) -> float:
        """Return replicas that are new on their device over all: ``migration_bytes`` per byte of the placement."""
        return _previous(profile, problem).migration_bytes(placement, 1) / float(placement.replicas.sum())


def _previous(profile: Profile, problem: Problem) -> Placement:
    previous, wanted = problem.previous, (profile.n_layers, profile.n_experts, problem.n_devices)
    if previous is None:
        raise PlacementError("migration needs the placement to migrate from; give solve(..., previous=placement)")
    if previous.replicas.shape != wanted:
        raise PlacementError(f"previous has {list(previous.replicas.shape)} layers, experts and devices, the problem "
                             f"has {list(wanted)}; they must be equal")
    return previous
