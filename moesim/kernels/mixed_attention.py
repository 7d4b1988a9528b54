"""Attention of a step that mixes chunks of prompts with decodes, from a measured grid: one kernel call does it all."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
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
    """A ``Spread`` without what was not measured: ``rows`` [decodes][contexts], shares and their slopes, as lists."""

    decodes: list[float]
    log2_short: list[float]
    rows: list[list[tuple[list[float], list[float]]]]
    factor: float

    @classmethod
    def of(cls, spread: Spread) -> _Known:
        known = ~np.isnan(spread.slope)
        rows = [[(spread.share[k].tolist(), row[k].tolist()) for row, k in zip(rows, which, strict=True)]
                for rows, which in zip(spread.slope, known, strict=True)]
        return cls(spread.decodes.tolist(), spread.log2_short.tolist(), rows, spread.factor)


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
        n, new, before, mean = len(contexts), 0.0, 0.0, 0.0
        if len(chunks):
            new = float(chunks.sum())
            before = float((chunks * (past + chunks / 2)).sum()) / new - new / 2
        if n:
            mean = float(contexts.sum()) / n
        if not new and not n:
            return 0.0
        seconds = self._even(new, n, before, mean)
        if n > 1 and self.spread:
            longest = float(contexts.max())
            if longest > mean:
                seconds += self._slope(new, n, max(before, 0.0), mean, longest) * (longest - mean)
        return seconds

    def inside(self, chunks: np.ndarray, past: np.ndarray, contexts: np.ndarray) -> bool:
        """Return whether such a step lies in the measured ranges."""
        chunk, decodes, before, context = (axis[-1] for axis in self._axes)
        if len(chunks) and (chunks.sum() > chunk or past.max() > before):
            return False
        return len(contexts) <= decodes and (len(contexts) == 0 or bool(contexts.max() <= context))

    def _even(self, new: float, n: int, past: float, context: float) -> float:
        if past >= 0:
            return self._at(new, n, past, context)
        # Less work than one chunk of as many tokens: that of a shorter chunk with as many pairs, c * c / 2 of them.
        same = math.sqrt(max(new * (new + 2 * past), 0.0))
        return self._at(max(same, float(self.chunk[1])), n, 0.0, context)

    def _at(self, *place: float) -> float:
        """Return the table at *place*, linear in each axis."""
        cut, weights = [], []
        for axis, value in zip(self._axes, place, strict=True):
            i = _below(axis, value)
            weights.append((value - axis[i]) / (axis[i + 1] - axis[i]))
            cut.append(slice(i, i + 2))
        corners = self.seconds[tuple(cut)].ravel().tolist()  # few numbers: quicker in Python than as arrays
        for weight in weights:
            half = len(corners) // 2
            corners = [low * (1 - weight) + high * weight
                       for low, high in zip(corners[:half], corners[half:], strict=True)]
        return corners[0]

    def _slope(self, new: float, n: int, past: float, mean: float, longest: float) -> float:
        """Return the seconds per token of unevenness: the measured batches most like this one, blended."""
        chunks = self._measured[new > 0]
        if not chunks:
            return 0.0
        chunk = min(chunks, key=lambda c: abs(c - new))
        known = chunks[chunk][min(chunks[chunk], key=lambda p: abs(p - past))]
        short = max(longest / known.factor, _LEAST_SHORT)
        share = min(max((mean / short - 1) / (known.factor - 1), 0.0), 0.9)
        total = weight = 0.0
        for i, w in _around(known.decodes, n):
            for j, v in _around(known.log2_short, math.log2(short)):
                shares, slopes = known.rows[i][j]
                if w * v > 0 and shares:
                    away = [abs(s - share) for s in shares]
                    total += w * v * slopes[away.index(min(away))]
                    weight += w * v
        return total / weight if weight else 0.0

    @cached_property
    def _axes(self) -> tuple[list[float], ...]:
        """Return chunk, decodes, past and context as lists."""
        return tuple(axis.tolist() for axis in (self.chunk, self.decodes, self.past, self.context))

    @cached_property
    def _measured(self) -> tuple[dict[float, dict[float, _Known]], dict[float, dict[float, _Known]]]:
        """Return chunk -> past -> what was measured: without a chunk, and with one."""
        none: dict[float, dict[float, _Known]] = {}
        some: dict[float, dict[float, _Known]] = {}
        for (chunk, past), spread in self.spread.items():
            (some if chunk > 0 else none).setdefault(chunk, {})[past] = _Known.of(spread)
        return none, some


def _around(axis: list[float], value: float) -> tuple[tuple[int, float], ...]:
    """Return the entries of *axis* around *value* with their weights; one entry has it all outside."""
    if len(axis) == 1:
        return ((0, 1.0),)
    i = _below(axis, value)
    weight = min(max((value - axis[i]) / (axis[i + 1] - axis[i]), 0.0), 1.0)
    return (i, 1 - weight), (i + 1, weight)


def _below(axis: Sequence[float], value: float) -> int:
    """Return the entry of *axis* below *value*; the first, or the last but one, outside."""
    return min(max(bisect_right(axis, value) - 1, 0), len(axis) - 2)
