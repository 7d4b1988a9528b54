"""Solvers: one part per file, ``solve(profile, problem, seed) -> Placement``.

A solver covers every expert, keeps to ``problem.capacity`` (replicas it was asked for aside), gives the same
answer for the same seed, and says in ``info``: ``minimises`` (its objective in words), ``objective`` (that on
the profile, None if it minimises nothing), ``status`` ("optimal", "feasible", "heuristic") and, where it
proves one, a lower ``bound``. Modules that start with an underscore are shared by several solvers.
"""
