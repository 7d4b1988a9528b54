"""What a solver says of its answer: what it minimised, and how small that is on the profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moesim.placement.objective import Problem, Profile
from moesim.placement.placement import Placement


def claims(objectives: Sequence[Any], placement: Placement, profile: Profile, problem: Problem) -> dict[str, Any]:
    """Return ``minimises`` (in words), ``objective`` (their weighted sum) and ``values`` (each, unweighted)."""
    values = {o.label: o.value(placement, profile, problem) for o in objectives}
    words = " + ".join(o.label if o.weight == 1.0 and i == 0 else f"{o.weight} x {o.label}"
                       for i, o in enumerate(objectives))
    return {"minimises": words, "objective": sum(o.weight * values[o.label] for o in objectives), "values": values}
