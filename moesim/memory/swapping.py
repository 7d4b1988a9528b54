"""Choices changed by what is resident: which of a token's ranked candidates it uses, and what that gives up.

All tokens of an event choose against what is resident as the event begins. A part of kind ``reroute`` says how, as one
compiled function that is called through a pointer. Letters: T token rows, L layers, M ranked candidates, K used ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit, typeof, types

from moesim.memory.arrays import Store, Stream
from moesim.memory.terms import CacheError
from moesim.trace import RoutingTrace

SWAPPED, GATE, GIVEN_UP = range(3)  # entries of ``Tokens.tally``

_WHOLE, _REAL = types.Array(types.int64, 1, "C"), types.Array(types.float64, 1, "C")
_FLAGS = types.Array(types.uint8, 1, "C")
SIGNATURE = types.void(_WHOLE, _REAL, _FLAGS, _REAL, _WHOLE)
PICK = types.FunctionType(SIGNATURE)


def pick(function: Callable[..., None]) -> Any:
    """Compile *function*: ``(ranked, probs, there, p, out)`` writes to *out* [K] the ranks that a token uses.

    *ranked* [M]: its candidates, best first, of gate probabilities *probs*; *there* [experts]: 1 if resident; *p*: the
    swap's parameters. The same rank twice is not a choice.
    """
    return njit(SIGNATURE, cache=True, nogil=True)(function)


@dataclass(frozen=True, eq=False)
class Swap:
    """Say how tokens choose: a function compiled by ``pick``, its parameters, how many candidates it looks at (None:
    all that are ranked).
    """

    pick: Any
    parameters: tuple[float, ...] = ()
    window: int | None = None


class Tokens(NamedTuple):
    """Hold what tokens may choose from, and room to work in."""

    experts: np.ndarray  # uint16 [T, L, M]
    probs: np.ndarray  # float32 [T, L, M]
    parameters: np.ndarray  # float64
    ranked: np.ndarray  # int64 [M]: of the token in hand
    weights: np.ndarray  # float64 [M]
    ranks: np.ndarray  # int64 [K]
    there: np.ndarray  # uint8 [experts]: of the layer in hand
    tally: np.ndarray  # float64 [3]: choices swapped, gate probability of the best K, and how much less is used


class Uses(NamedTuple):
    """Say which rows run together; take how many of their tokens use each key."""

    rows: np.ndarray  # int64 [R]
    starts: np.ndarray  # int64 [S + 1]: where passes begin in rows
    uses: np.ndarray  # int32 [A]
    of_layer: np.ndarray  # int32 [experts]: zeros


def tokens_of(trace: RoutingTrace, swap: Swap) -> Tokens:
    """Return the candidates of *trace* that *swap* looks at. Raises ``CacheError`` if it does not have them."""
    ranked, window = trace.n_ranked, trace.n_ranked if swap.window is None else swap.window
    if swap.window is None and ranked == trace.top_k:
        raise CacheError(f"the trace ranks no candidates beyond the {ranked} that each token uses, so there is nothing "
                         f"to swap with; capture one that does")
    if window > ranked:
        raise CacheError(f"window is {window}, but the trace ranks {ranked} candidates of a token (top_k is "
                         f"{trace.top_k}); give {ranked} at most, or capture a trace with more")
    if trace.probs is None:
        raise CacheError("the trace has no gate probabilities, so nobody could say what swapping gives up; capture one "
                         "with them")
    none = np.zeros(window, np.int64)
    return Tokens(trace.experts[:, :, :window].copy(), trace.probs[:, :, :window].astype(np.float32),
                  np.array(swap.parameters, np.float64), none, np.zeros(window), np.zeros(trace.top_k, np.int64),
                  np.zeros(trace.n_experts, np.uint8), np.zeros(3))


@njit(cache=True, nogil=True)
def choose(pick, tokens: Tokens, row: int, layer: int) -> None:  # type: ignore[no-untyped-def]
    """Write to ``tokens.ranks`` which candidates the token of *row* uses in *layer*, given ``tokens.there``; tally."""
    ranks, k = tokens.ranks, len(tokens.ranks)
    for m in range(len(tokens.ranked)):
        tokens.ranked[m], tokens.weights[m] = tokens.experts[row, layer, m], tokens.probs[row, layer, m]
    pick(tokens.ranked, tokens.weights, tokens.there, tokens.parameters, ranks)
    ranks.sort()
    for j in range(k):
        tokens.tally[SWAPPED] += ranks[j] >= k
        tokens.tally[GATE] += tokens.weights[j]
        tokens.tally[GIVEN_UP] += tokens.weights[j] - tokens.weights[ranks[j]]


@njit(cache=True, nogil=True)
def list_uses(pick, i: int, tokens: Tokens, passes: Uses, stream: Stream, store: Store) -> None:  # type: ignore[no-untyped-def]
    """Write what event *i* of *stream* uses, given what *store* has now: its keys, ascending, and uses of each."""
    layer, at, n_experts = stream.layer[i], stream.starts[i], len(tokens.there)
    first, met = layer * n_experts, 0
    for e in range(n_experts):
        tokens.there[e] = store.where[first + e] >= 0
    for r in passes.rows[passes.starts[stream.step[i]]:passes.starts[stream.step[i] + 1]]:
        choose(pick, tokens, r, layer)
        for rank in tokens.ranks:
            e = tokens.ranked[rank]
            if passes.of_layer[e] == 0:
                stream.keys[at + met] = first + e
                met += 1
            passes.of_layer[e] += 1
    stream.keys[at:at + met].sort()
    for j in range(at, at + met):
        e = stream.keys[j] - first
        passes.uses[j] = passes.of_layer[e]
        passes.of_layer[e] = 0
    stream.starts[i + 1] = at + met


TOKENS = typeof(Tokens(np.zeros((1, 1, 1), np.uint16), np.zeros((1, 1, 1), np.float32), np.zeros(1),
                       np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.uint8), np.zeros(1)))


USES = typeof(Uses(*np.zeros((2, 1), np.int64), *np.zeros((2, 1), np.int32)))


@njit(types.void(PICK, TOKENS, _WHOLE, types.Array(types.uint8, 2, "C"), types.Array(types.uint16, 3, "C")),
      cache=True, nogil=True)
def choose_all(pick, tokens, rows, there, out):  # type: ignore[no-untyped-def]
    """Write to *out* [R, L, K] what the tokens of *rows* use if *there* [L, experts] are resident in all layers."""
    for layer in range(there.shape[0]):
        tokens.there[:] = there[layer]
        for i in range(len(rows)):
            choose(pick, tokens, rows[i], layer)
            for j in range(out.shape[2]):
                out[i, layer, j] = tokens.experts[rows[i], layer, tokens.ranks[j]]
