"""Objectives: one part per file, what a placement should make small, as costs that solvers can search on.

Every objective has a ``weight``, what one unit of it is worth, and

    costs(profile, problem) -> Costs              weighted, for the search
    value(placement, profile, problem) -> float   one number in its own unit, unweighted, on the profile
    label                                         the name of that number

Sum over objectives of weight x value = what a solver minimises = what the costs add up to.
"""
