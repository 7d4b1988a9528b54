"""Send a request to the group with the most free KV memory.

>>> import numpy as np
>>> LeastLoaded().choose(free_tokens=np.array([10, 30, 20]), requests=np.array([1, 2, 0]))
1
"""

from __future__ import annotations

import numpy as np

from moesim.registry import part


@part
class LeastLoaded:
    """Keeps memory, and so the work of attention, even; ties go to the one with fewest requests."""

    def choose(self, free_tokens: np.ndarray, requests: np.ndarray) -> int:
        """Return the group of the next request, from free KV tokens [G] and requests [G] per group.

        A group without room for the request has -1 free tokens and the largest number of requests.
        """
        return int(np.lexsort((requests, -free_tokens))[0])
