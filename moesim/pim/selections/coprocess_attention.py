"""Attention of decodes runs beside while the device's own processor does that of prompts; both work at once.

A prompt of 6 s and decodes of 5 s, in spaces of their own, take 6 s; in one space they would wait for each other.

>>> from moesim.pim.jobs import example, share
>>> for spaces in (2, 1):
...     jobs = example(tokens=[512, 8], n_spaces=spaces, own_s=[6.0, 20.0], beside_s=[70.0, 5.0])
...     mask = CoprocessAttention().beside(jobs)
...     print(mask.tolist(), float(share(jobs, mask, CoprocessAttention.side_by_side).phase_s))
[False, True] 6.0
[False, True] 11.0
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.pim.jobs import Jobs
from moesim.registry import part


@part
class CoprocessAttention:
    """Attention co-processing of Duplex (MICRO'24, section V): the last job, that of decodes, goes beside.

    The keys and values of decodes lie in all memory spaces but one, what prompts work on in that one.
    """

    only: ClassVar[str] = "attention"
    side_by_side: ClassVar[bool] = True

    def beside(self, jobs: Jobs) -> np.ndarray:
        """Return the jobs that go beside."""
        mask = np.zeros(jobs.own_s.shape, bool)
        mask[..., -1] = True
        return mask
