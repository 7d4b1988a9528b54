"""Many simulations -> one tidy table: sweeps over any field of a scenario, on any executor, resumable.

>>> grid({"scheduler.max_batch": [32, 64], "seed": [0]})
[{'scheduler.max_batch': 32, 'seed': 0}, {'scheduler.max_batch': 64, 'seed': 0}]
"""

from moesim.explore.grid import grid
from moesim.explore.metric_names import METRICS, measure, metric_names
from moesim.explore.study import SweepSpec, load_sweep
from moesim.explore.sweeping import sweep

__all__ = ["METRICS", "SweepSpec", "grid", "load_sweep", "measure", "metric_names", "sweep"]
