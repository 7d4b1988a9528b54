"""Experts to devices: solvers that place them, and what a placement is worth.

>>> import numpy as np
>>> from moesim.trace import RoutingTrace
>>> trace = RoutingTrace.from_arrays(np.array([[[0], [3]], [[1], [2]], [[2], [1]], [[3], [0]]]), n_experts=4, top_k=1)
>>> placement = solve(trace, n_devices=2)
>>> evaluate(placement, trace)[["cross_top1", "load_max_over_mean"]].tolist()
[0.0, 1.0]
"""

from __future__ import annotations

from moesim.placement.counts import read_counts
from moesim.placement.evaluation import evaluate, evaluate_layers, stay_load
from moesim.placement.exchange import read_placement, write_placement
from moesim.placement.judging import judge
from moesim.placement.objective import INTER_NODE_WEIGHT, Problem, Profile
from moesim.placement.placement import CapacityError, Placement, PlacementError
from moesim.placement.solving import solve

__all__ = ["INTER_NODE_WEIGHT", "CapacityError", "Placement", "PlacementError", "Problem", "Profile", "evaluate",
           "evaluate_layers", "judge", "read_counts", "read_placement", "solve", "stay_load",
           "write_placement"]
