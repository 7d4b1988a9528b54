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
def kinds(requests, tokens, prompt, output, produced, computed):  # type: ignore[no-untyped-def]
    """Return, of each of *requests* that computes so many *tokens*, its tokens in memory, and two answers.

    Whether it produces a token by it, and whether it decodes: it computes its last token and no prompt. int64, bool and
    bool [n].
    """
    past = np.empty(len(requests), np.int64)
    sampled, decodes = np.empty((2, len(requests)), np.bool_)
    for i in range(len(requests)):
        request = requests[i]
        past[i] = computed[request]
        sampled[i] = _known(request, prompt, output, produced) - past[i] == tokens[i]
        decodes[i] = sampled[i] and tokens[i] == 1 and produced[request] > 0  # else: a chunk of what is computed again
    return past, sampled, decodes


@njit(cache=True)
def beyond(requests, tokens, blocks, block):  # type: ignore[no-untyped-def]
    """Return which of *requests* (places in it) have more *tokens* than its *blocks* of *block* tokens hold: int64."""
    found = np.empty(len(requests), np.int64)
    n = 0
    for i in range(len(requests)):
        if tokens[i] > blocks[requests[i]] * block:
            found[n] = i
            n += 1
    return found[:n]


@njit(cache=True)
def done(requests, produced, output):  # type: ignore[no-untyped-def]
    """Return which of *requests* have produced all of their output: int64."""
    found = np.empty(len(requests), np.int64)
    n = 0
    for request in requests:
        if produced[request] == output[request]:
            found[n] = request
            n += 1
    return found[:n]


@njit(cache=True)
def note_time(requests, times_s, now):  # type: ignore[no-untyped-def]
    """Let *now* be the time of those of *requests* that have none (NaN)."""
    for request in requests:
        if np.isnan(times_s[request]):
            times_s[request] = now


@njit(cache=True)
def _known(request, prompt, output, produced):  # type: ignore[no-untyped-def]
    return prompt[request] + min(produced[request], output[request] - 1)
