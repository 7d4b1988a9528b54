"""Jobs with few operations per byte go beside, by a threshold; one processor works at a time.

>>> from moesim.pim.jobs import example, share
>>> jobs = example(tokens=[1, 2, 3, 9], n_spaces=4)
>>> mask = OpPerByte(threshold=8.0).beside(jobs)
>>> mask.tolist(), float(share(jobs, mask, OpPerByte.side_by_side).phase_s)
([True, True, True, False], 10.0)
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from moesim.pim.jobs import Jobs
from moesim.registry import part


@part
class OpPerByte:
    """Send jobs of up to ``threshold`` FLOP per byte beside.

    The default is what Logic-PIM is sized for (Duplex, MICRO'24); it still wins some way above that.
    """

    threshold: Annotated[float, Field(gt=0)] = 8.0
    side_by_side: ClassVar[bool] = False

    def beside(self, jobs: Jobs) -> np.ndarray:
        """Return the jobs that go beside."""
        return jobs.op_per_byte <= self.threshold
