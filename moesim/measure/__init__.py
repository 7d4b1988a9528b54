"""Measure the operators of ``moesim.kernels`` on the CPU or GPU at hand, with PyTorch.

``find`` describes the device, ``planned`` says what would run and for how long, ``measure`` runs it into a folder:
every row is on disk before the next begins, and a run that was stopped goes on where it was. Blocks are parts
(``moesim list bench``). Needs PyTorch; never touches clocks or settings of the device.
"""

from moesim.measure.environment import busy
from moesim.measure.runner import Options, drift, measure, planned
from moesim.measure.target import Target, find

__all__ = ["Options", "Target", "busy", "drift", "find", "measure", "planned"]
