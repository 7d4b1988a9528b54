"""The spaces with the fewest tokens go beside, as many as let both processors finish soonest; both work at once.

Four experts in four spaces: three beside take 6 s, while the fourth takes 4 s on the device's own processor.

>>> from moesim.pim.jobs import example, share
>>> jobs = example(tokens=[1, 2, 3, 9], n_spaces=4)
>>> mask = CoprocessExperts().beside(jobs)
>>> mask.tolist(), float(share(jobs, mask, CoprocessExperts.side_by_side).phase_s)
([True, True, True, False], 6.0)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moesim.pim.jobs import Jobs, by_space, share
from moesim.registry import part


@part
class CoprocessExperts:
    """Expert co-processing of Duplex (MICRO'24, section V): whole spaces, in ascending order of tokens.

    All splits of that order are tried and the fastest is kept, of equal ones that with the fewest beside. The choice
    itself takes no time, as in the paper (a table of seconds by tokens).
    """

    only: ClassVar[str] = "experts"
    side_by_side: ClassVar[bool] = True

    def beside(self, jobs: Jobs) -> np.ndarray:
        """Return the jobs that go beside."""
        tokens = by_space(jobs.tokens, jobs.space, jobs.n_spaces)
        rank = np.argsort(np.argsort(tokens, axis=-1, kind="stable"), axis=-1)[..., jobs.space]
        splits = np.stack([rank < count for count in range(jobs.n_spaces + 1)])
        best = share(jobs, splits, True).phase_s.argmin(axis=0)
        return rank < best[..., None]
