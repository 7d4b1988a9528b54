"""Every job goes to the processor that does it faster; one processor works at a time.

>>> from moesim.pim.jobs import example, share
>>> jobs = example(tokens=[1, 2, 3, 9], n_spaces=4)
>>> mask = MinTime().beside(jobs)
>>> mask.tolist(), float(share(jobs, mask, MinTime.side_by_side).phase_s)
([True, True, True, False], 10.0)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.pim.jobs import Jobs
from moesim.registry import part


@part
class MinTime:
    """Compare the seconds of each job alone on either processor, as the released simulator of Duplex does."""

    side_by_side: ClassVar[bool] = False

    def beside(self, jobs: Jobs) -> np.ndarray:
        """Return the jobs that go beside."""
        return jobs.beside_s < jobs.own_s
