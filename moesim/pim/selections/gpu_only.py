"""The device's own processor does everything, as if there were no other: the comparison for all else.

>>> from moesim.pim.jobs import example, share
>>> jobs = example(tokens=[1, 2, 3, 9], n_spaces=4)
>>> mask = GpuOnly().beside(jobs)
>>> mask.tolist(), float(share(jobs, mask, GpuOnly.side_by_side).phase_s)
([False, False, False, False], 16.0)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.pim.jobs import Jobs
from moesim.registry import part


@part
class GpuOnly:
    """Leave the processor beside idle."""

    side_by_side: ClassVar[bool] = False

    def beside(self, jobs: Jobs) -> np.ndarray:
        """Return the jobs that go beside: none."""
        return np.zeros(jobs.own_s.shape, bool)
