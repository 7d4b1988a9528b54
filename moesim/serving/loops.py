"""What every running request is asked in every step, compiled: requests are numbers, *live* arrays are of all requests.

``known`` are a request's tokens: its prompt, and what it has produced so far, but for the last token of its output,
which is never computed.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def share(requests, budget, prompt, output, produced, computed):  # type: ignore[no-untyped-def]
    """Return who of *requests* computes something, how many tokens, and the tokens computed after that: int64 [n] each.

    In order, each as many as are left, until *budget* tokens are given; who has none left is passed over.
    """
    served, tokens, after = np.empty((3, len(requests)), np.int64)
    n = 0
    for request in requests:
        left = _known(request, prompt, output, produced) - computed[request]
        if left > 0:
            if budget <= 0:
                break
            served[n], tokens[n] = request, min(left, budget)
            after[n] = computed[request] + tokens[n]
            budget -= tokens[n]
            n += 1
    return served[:n], tokens[:n], after[:n]


@njit(cache=True)
def advance(requests, tokens, prompt, output, produced, computed):  # type: ignore[no-untyped-def]
    """Let each of *requests* have computed so many *tokens* more; return those that produce a token by it."""
    stepped = np.empty(len(requests), np.int64)
    n = 0
    for i in range(len(requests)):
        request = requests[i]
        computed[request] += tokens[i]
        if computed[request] == _known(request, prompt, output, produced):
            produced[request] += 1
            stepped[n] = request
            n += 1
    return stepped[:n]


@njit(cache=True)
def _known(request, prompt, output, produced):  # type: ignore[no-untyped-def]
    return prompt[request] + min(produced[request], output[request] - 1)
