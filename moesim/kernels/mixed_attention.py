"""Attention of a step that mixes chunks of prompts with decodes, from a measured grid: one kernel call does it all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit

_LEAST_SHORT = 128.0  # tokens: the shortest context of the measured uneven batches


class Spread(NamedTuple):
    """What uneven contexts cost: seconds per token that the longest is above the mean.

    ``slope`` [decodes, log2 of short contexts, share of long ones], the axes ascending; NaN where nothing was
    measured. Long contexts were ``factor`` times the short ones.
    """

    decodes: np.ndarray
    log2_short: np.ndarray
    share: np.ndarray
    slope: np.ndarray
    factor: float


class _Table(NamedTuple):
    """A ``MixedAttention`` as the loops read it: its axes, its seconds, and its spreads one after the other.

    ``place`` [spreads, 2]: chunk and past tokens of each; ``points`` [spreads, axes, most points of any] and, of these,
    ``n_points`` [spreads, axes]; ``slope`` [spreads, decodes, contexts, shares]; ``factor`` [spreads].
    """

    chunk: np.ndarray
    decodes: np.ndarray
    past: np.ndarray
    context: np.ndarray
    seconds: np.ndarray
    place: np.ndarray
    points: np.ndarray
    n_points: np.ndarray
    slope: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, table: MixedAttention) -> _Table:
        spreads = list(table.spread.values())
        sizes = np.array([spread.slope.shape for spread in spreads], np.int64).reshape(-1, 3)
        points = np.full((*sizes.shape, sizes.max(initial=1)), np.nan)
        slope = np.full((len(spreads), *sizes.max(axis=0, initial=1)), np.nan)
        for i, spread in enumerate(spreads):
            slope[i][tuple(slice(n) for n in spread.slope.shape)] = spread.slope
            for axis, at in enumerate((spread.decodes, spread.log2_short, spread.share)):
                points[i, axis, :len(at)] = at
        place, factor = np.array(list(table.spread), float), np.array([spread.factor for spread in spreads], float)
        return cls(table.chunk, table.decodes, table.past, table.context, np.ascontiguousarray(table.seconds),
                   place.reshape(-1, 2), points, sizes, slope, factor)


@dataclass(frozen=True)
class MixedAttention:
    """Seconds [chunk, decodes, past, context] of one layer, linear between points and beyond the last.

    ``chunk``: new prompt tokens; ``past``: tokens before them; ``decodes``: decoding sequences; ``context``: the length
    of each. ``spread``: of chunk and past tokens, what decodes of unequal length add.
    """

    chunk: np.ndarray
    decodes: np.ndarray
    past: np.ndarray
    context: np.ndarray
    seconds: np.ndarray
    spread: dict[tuple[float, float], Spread]

    def __call__(self, chunks: np.ndarray, past: np.ndarray, contexts: np.ndarray) -> float:
        """Return the seconds of *chunks* of prompts behind *past* tokens, and decodes with these *contexts*.

        Several chunks count as one of as many tokens with as many pairs of query and key, which makes its past
        sum(c (h + c / 2)) / sum(c) - sum(c) / 2: negative where they are short; then they count as a chunk with fewer
        tokens, as many pairs, and nothing before it.
        """
        none = np.zeros(len(chunks), np.int64), np.zeros(len(contexts), np.int64)
        return float(self.of_groups((chunks, past, none[0]), (contexts, none[1]), 1)[0][0])

    def of_groups(self, prompts: Sequence[np.ndarray], decodes: Sequence[np.ndarray], n_groups: int
                  ) -> tuple[np.ndarray, bool]:
        """Return the seconds [n_groups] of the batch of each group, and whether all lie in the measured ranges.

        *prompts*: chunks, past and group; *decodes*: contexts and group; both in order of groups.
        """
        seconds = np.empty(n_groups)
        chunks, past, chunk_group, contexts, context_group = (np.asarray(of, np.int64) for of in (*prompts, *decodes))
        inside = _of_groups(self._table, chunks, past, chunk_group, contexts, context_group, seconds)
        return seconds, inside

    @cached_property
    def _table(self) -> _Table:
        return _Table.of(self)


@njit(cache=True)
def _of_groups(table, chunks, past, chunk_group, contexts, context_group, seconds):  # type: ignore[no-untyped-def]
    """Fill *seconds* [groups]; return whether every group's batch is inside what was measured."""
    inside, p, d = True, 0, 0
    for group in range(len(seconds)):
        first_p, first_d = p, d
        while p < len(chunks) and chunk_group[p] == group:
            p += 1
        while d < len(contexts) and context_group[d] == group:
            d += 1
        work = chunks[first_p:p], past[first_p:p], contexts[first_d:d]
        seconds[group] = _mixed(table, *work)
        inside &= _inside(table, *work)
    return inside


@njit(cache=True)
def _mixed(table, chunks, past, contexts):  # type: ignore[no-untyped-def]
    """Return the seconds of one group."""
    n, new, before, mean, longest = len(contexts), 0.0, 0.0, 0.0, 0.0
    for i in range(len(chunks)):
        new += chunks[i]
        before += chunks[i] * (past[i] + chunks[i] / 2)
    if len(chunks):
        before = before / new - new / 2
    for context in contexts:
        mean += context
        longest = max(longest, context)
    if n:
        mean /= n
    if not new and not n:
        return 0.0
    if before >= 0:
        seconds = _at(table, (new, n, before, mean))
    else:  # less work than one chunk of as many tokens: a shorter chunk with as many pairs, c * c / 2 of them
        same = math.sqrt(max(new * (new + 2 * before), 0.0))
        seconds = _at(table, (max(same, table.chunk[1]), n, 0.0, mean))
    if n > 1 and longest > mean:
        seconds += _slope(table, (new, n, max(before, 0.0)), mean, longest) * (longest - mean)
    return seconds


@njit(cache=True)
def _inside(table, chunks, past, contexts):  # type: ignore[no-untyped-def]
    """Return whether the batch of one group lies in the measured ranges."""
    if len(chunks) and (chunks.sum() > table.chunk[-1] or past.max() > table.past[-1]):
        return False
    n = len(contexts)
    return n <= table.decodes[-1] and (n == 0 or contexts.max() <= table.context[-1])


@njit(cache=True)
def _at(table, place):  # type: ignore[no-untyped-def]
    """Return the table at *place*: chunk, decodes, past, context; linear in each."""
    (i, w), (j, v), (k, u), (m, t) = (_between(table.chunk, place[0]), _between(table.decodes, place[1]),
                                      _between(table.past, place[2]), _between(table.context, place[3]))
    corners = table.seconds[i : i + 2, j : j + 2, k : k + 2, m : m + 2].copy().ravel()
    half = 8
    for weight in (w, v, u, t):
        for c in range(half):
            corners[c] = corners[c] * (1 - weight) + corners[c + half] * weight
        half //= 2
    return corners[0]


@njit(cache=True)
def _slope(table, place, mean, longest):  # type: ignore[no-untyped-def]
    """Return the seconds per token of unevenness: the measured batches most like this one, blended.

    *place*: chunk, decodes and past tokens.
    """
    new, n, past = place
    s = _most_like(table.place, new, past)
    if s < 0:
        return 0.0
    short = max(longest / table.factor[s], _LEAST_SHORT)
    share = min(max((mean / short - 1) / (table.factor[s] - 1), 0.0), 0.9)
    decodes, shorts, shares = (table.points[s, 0, :table.n_points[s, 0]], table.points[s, 1, :table.n_points[s, 1]],
                               table.points[s, 2, :table.n_points[s, 2]])
    total = weight = 0.0
    i, w = _around(decodes, n)
    j, v = _around(shorts, math.log2(short))
    for di in range(min(2, len(decodes))):
        for dj in range(min(2, len(shorts))):
            both = (w if di else 1 - w) * (v if dj else 1 - v)
            nearest = _nearest(shares, share, table.slope[s, i + di, j + dj])
            if both > 0 and nearest >= 0:
                total += both * table.slope[s, i + di, j + dj, nearest]
                weight += both
    return total / weight if weight else 0.0


@njit(cache=True)
def _most_like(place, new, past):  # type: ignore[no-untyped-def]
    """Return the spread of the nearest chunk, then past tokens, with a chunk only if *new* is one; -1: there is none.
    """
    chunk, found = np.nan, -1
    for i in range(len(place)):
        if (place[i, 0] > 0) == (new > 0) and not abs(place[i, 0] - new) >= abs(chunk - new):
            chunk = place[i, 0]
    for i in range(len(place)):
        if place[i, 0] == chunk and (found < 0 or abs(place[i, 1] - past) < abs(place[found, 1] - past)):
            found = i
    return found


@njit(cache=True)
def _nearest(points, value, known):  # type: ignore[no-untyped-def]
    """Return which of *points* is nearest to *value*, of those that are *known* (not NaN); -1: none is."""
    found = -1
    for i in range(len(points)):
        if not math.isnan(known[i]) and (found < 0 or abs(points[i] - value) < abs(points[found] - value)):
            found = i
    return found


@njit(cache=True)
def _around(axis, value):  # type: ignore[no-untyped-def]
    """Return the entry of *axis* below *value*, and the weight of the next: 0 to 1, one entry has it all outside."""
    if len(axis) == 1:
        return 0, 0.0
    i, weight = _between(axis, value)
    return i, min(max(weight, 0.0), 1.0)


@njit(cache=True)
def _between(axis, value):  # type: ignore[no-untyped-def]
    """Return the entry of *axis* below *value* (the first, or the last but one, outside), and how far it is to it."""
    i = min(max(np.searchsorted(axis, value, side="right") - 1, 0), len(axis) - 2)
    return i, (value - axis[i]) / (axis[i + 1] - axis[i])
