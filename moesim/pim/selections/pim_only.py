"""The processor beside does everything, however much there is to compute.

>>> from moesim.pim.jobs import example, share
>>> jobs = example(tokens=[1, 2, 3, 9], n_spaces=4)
>>> mask = PimOnly().beside(jobs)
>>> mask.tolist(), float(share(jobs, mask, PimOnly.side_by_side).phase_s)
([True, True, True, True], 15.0)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.pim.jobs import Jobs
from moesim.registry import part


@part
class PimOnly:
    """Leave the device's own processor idle."""

    side_by_side: ClassVar[bool] = False

    def beside(self, jobs: Jobs) -> np.ndarray:
        """Return the jobs that go beside: all."""
        return np.ones(jobs.own_s.shape, bool)
