"""Send a request to the group that serves the fewest requests.

>>> import numpy as np
>>> FewestRequests().choose(free_tokens=np.array([10, 30, 20]), requests=np.array([1, 2, 0]))
2
"""

from __future__ import annotations

import numpy as np

from moesim.registry import part


@part
class FewestRequests:
    """Keeps the number of requests even whatever their lengths; ties go to the first group."""

    def choose(self, free_tokens: np.ndarray, requests: np.ndarray) -> int:
        """Return the group of the next request, from free KV tokens [G] and requests [G] per group.

        A group without room for the request has -1 free tokens and the largest number of requests.
        """
        return int(np.argmin(requests))
