"""What a solver says of its answer: what it minimised, how small that is on the profile, and how
small it could be at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moesim.placement.bounds import lower_bound
from moesim.placement.costs import total
from moesim.placement.objective import Problem, Profile
from moesim.placement.placement import Placement
from moesim.placement.replicas import RULE


def claims(objectives: Sequence[Any], placement: Placement, profile: Profile, problem: Problem,
           bound_rounds: int | None = None, redundant: int = 0) -> dict[str, Any]:
    """Return ``minimises`` (in words), ``objective`` (the weighted sum), ``values`` (each, unweighted), bound and gap.

    No bound if *problem* asks for none. With *redundant* more replicas per layer than experts allowed it holds for all
    such placements, and ``replica_rule`` says which replicas the values take tokens to use.
    """
    values = {o.label: o.value(placement, profile, problem) for o in objectives}
    words = " + ".join(o.label if o.weight == 1.0 and i == 0 else f"{o.weight} x {o.label}"
                       for i, o in enumerate(objectives))
    objective = sum(o.weight * values[o.label] for o in objectives)
    claimed: dict[str, Any] = {"minimises": words, "objective": objective, "values": values, "status": "heuristic"}
    if redundant:
        claimed["replica_rule"] = RULE
    if not problem.bound:
        return claimed
    costs = total(o.costs(profile, problem) for o in objectives if o.weight)
    return claimed | gap(objective, lower_bound(costs, profile, problem, bound_rounds, redundant))


def gap(objective: float, bound: float) -> dict[str, float]:
    """Return ``bound``, not above *objective*, and ``gap``: the share of the objective that may be too much."""
    bound = min(bound, objective)
    return {"bound": bound, "gap": (objective - bound) / objective if objective else 0.0}
