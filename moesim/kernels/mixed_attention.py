"""Attention of a step that mixes chunks of prompts with decodes, from a measured grid: one kernel call does it all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

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


class _Known(NamedTuple):
    """A ``Spread`` without what was not measured: ``rows`` [decodes][contexts], shares and their slopes."""

    spread: Spread
    rows: list[list[tuple[np.ndarray, np.ndarray]]]

    @classmethod
    def of(cls, spread: Spread) -> _Known:
        known = ~np.isnan(spread.slope)
        return cls(spread, [[(spread.share[k], row[k]) for row, k in zip(rows, which, strict=True)]
                            for rows, which in zip(spread.slope, known, strict=True)])


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
        new, n = float(chunks.sum()), len(contexts)
        if not new and not n:
            return 0.0
        mean = float(contexts.sum()) / n if n else 0.0
        before = float((chunks * (past + chunks / 2)).sum()) / new - new / 2 if new else 0.0
        seconds = self._even(new, n, before, mean)
        if n > 1:
            longest = float(contexts.max())
            if longest > mean and self.spread:
                seconds += self._slope(new, n, max(before, 0.0), mean, longest) * (longest - mean)
        return seconds

    def inside(self, chunks: np.ndarray, past: np.ndarray, contexts: np.ndarray) -> bool:
        """Return whether such a step lies in the measured ranges."""
        return bool(chunks.sum() <= self.chunk[-1] and len(contexts) <= self.decodes[-1]
                    and past.max(initial=0) <= self.past[-1] and contexts.max(initial=0) <= self.context[-1])

    def _even(self, new: float, n: int, past: float, context: float) -> float:
        if past >= 0:
            return self._at(new, n, past, context)
        # Less work than one chunk of as many tokens: that of a shorter chunk with as many pairs, c * c / 2 of them.
        same = math.sqrt(max(new * (new + 2 * past), 0.0))
        return self._at(max(same, float(self.chunk[1])), n, 0.0, context)

    def _at(self, *place: float) -> float:
        """Return the table at *place*, linear in each axis."""
        cut, weights = [], []
        for axis, value in zip((self.chunk, self.decodes, self.past, self.context), place, strict=True):
            i = min(max(int(axis.searchsorted(value, "right")) - 1, 0), len(axis) - 2)
            weights.append((value - axis[i]) / (axis[i + 1] - axis[i]))
            cut.append(slice(i, i + 2))
        corner = self.seconds[tuple(cut)]
        for weight in weights:
            corner = corner[0] * (1 - weight) + corner[1] * weight
        return float(corner)

    def _slope(self, new: float, n: int, past: float, mean: float, longest: float) -> float:
        """Return the seconds per token of unevenness: the measured batches most like this one, blended."""
        chunks = self._measured[new > 0]
        if not chunks:
            return 0.0
        chunk = min(chunks, key=lambda c: abs(c - new))
        found, rows = chunks[chunk][min(chunks[chunk], key=lambda p: abs(p - past))]
        short = max(longest / found.factor, _LEAST_SHORT)
        share = min(max((mean / short - 1) / (found.factor - 1), 0.0), 0.9)
        total = weight = 0.0
        for i, w in _around(found.decodes, n):
            for j, v in _around(found.log2_short, math.log2(short)):
                shares, slopes = rows[i][j]
                if w * v > 0 and len(shares):
                    total += w * v * float(slopes[np.abs(shares - share).argmin()])
                    weight += w * v
        return total / weight if weight else 0.0

    @cached_property
    def _measured(self) -> tuple[dict[float, dict[float, _Known]], dict[float, dict[float, _Known]]]:
        """Return chunk -> past -> what was measured: without a chunk, and with one."""
        none: dict[float, dict[float, _Known]] = {}
        some: dict[float, dict[float, _Known]] = {}
        for (chunk, past), spread in self.spread.items():
            (some if chunk > 0 else none).setdefault(chunk, {})[past] = _Known.of(spread)
        return none, some


def _around(axis: np.ndarray, value: float) -> tuple[tuple[int, float], ...]:
    """Return the entries of *axis* around *value* with their weights; one entry has it all outside."""
    if len(axis) == 1:
        return ((0, 1.0),)
    i = min(max(int(axis.searchsorted(value, "right")) - 1, 0), len(axis) - 2)
    weight = min(max((value - axis[i]) / (axis[i + 1] - axis[i]), 0.0), 1.0)
    return (i, 1 - weight), (i + 1, weight)
