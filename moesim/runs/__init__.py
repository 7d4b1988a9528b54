"""Measured runs of serving engines, and how close a simulation of the same requests comes to them."""

from moesim.runs.compare import Comparison, compare
from moesim.runs.run import Run, read
from moesim.runs.validating import Validation, validate

__all__ = ["Comparison", "Run", "Validation", "compare", "read", "validate"]
