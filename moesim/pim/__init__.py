"""Processors beside the device's own that work on the same memory: who does which jobs, and how long that takes.

How it works and what it leaves out: docs/background/pim.md.
"""

from moesim.pim.jobs import Jobs, Times, share

__all__ = ["Jobs", "Times", "share"]
