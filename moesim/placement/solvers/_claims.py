"""What a solver says of its answer: what it minimised, how small that is on the profile, and how
small it could be at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moesim.placement.bounds import lower_bound
from moesim.placement.costs import total
from moesim.placement.objective import Problem, Profile
from moesim.placement.placement import Placement


def claims(objectives: Sequence[Any], placement: Placement, profile: Profile, problem: Problem,
           bound_rounds: int | None = None) -> dict[str, Any]:
    """Return ``minimises`` (in words), ``objective`` (the weighted sum), ``values`` (each, unweighted), bound and gap.

    Not for placements with replicas: they may be better than the bound.
    """
    values = {o.label: o.value(placement, profile, problem) for o in objectives}
    words = " + ".join(o.label if o.weight == 1.0 and i == 0 else f"{o.weight} x {o.label}"
                       for i, o in enumerate(objectives))
    objective = sum(o.weight * values[o.label] for o in objectives)
    costs = total(o.costs(profile, problem) for o in objectives if o.weight)
    return {"minimises": words, "objective": objective, "values": values, "status": "heuristic",
            **gap(objective, lower_bound(costs, profile, problem, bound_rounds))}


def gap(objective: float, bound: float) -> dict[str, float]:
    """Return ``bound``, not above *objective*, and ``gap``: the share of the objective that may be too much."""
    bound = min(bound, objective)
    return {"bound": bound, "gap": (objective - bound) / objective if objective else 0.0}
