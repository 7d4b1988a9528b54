"""Runs of flows that have been worked out before: the same flows with all bytes scaled take times scaled alike.

Capacities and limits are bytes per second and stay; sizes count relative to the largest, starts relative to the first
and, as times do, over the largest size. A hit is the course of the kept run, scaled:

>>> import numpy as np
>>> from moesim.network import fluid
>>> memo, paths = Memo(), fluid.Paths(np.array([0, 1, 2]), np.array([0, 0]), np.ones(2))
>>> for size in (1.0, 3.0):
...     fluid.run(paths, np.array([2.0]), np.array([size, 2 * size]), np.zeros(2), memo=memo).end_s.tolist()
[1.0, 1.5]
[3.0, 4.5]
>>> memo.hits, memo.misses
(1, 1)
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from moesim.network.fluid import Course

SAME = 1e-13     # sizes (over the largest) this close are equal but for the rounding of their quotient
COARSE = 2**20   # steps per power of two of the numbers in a key: rounding almost never parts what is the same


class Kept(NamedTuple):
    """A run with the largest size 1 that begins at 0: its sizes, its starts, its course."""

    size: np.ndarray
    start_s: np.ndarray
    course: Course


class Memo:
    """Keep the courses of runs that were asked for last: at most *entries*, of at most *flows* flows in all.

    ``hits`` and ``misses`` count. A run is the same if paths, capacities, weights, limits, tolerance and order are
    equal byte by byte, and sizes and starts but for rounding (1e-13); of runs that differ after six digits of these
    only the last is kept. A kept flow takes 36 bytes.
    """

    def __init__(self, entries: int = 256, flows: int = 4_000_000) -> None:
        """Raise ``ValueError`` if there is no room for one."""
        if entries < 1 or flows < 1:
            raise ValueError(f"a memo of {entries} entries and {flows} flows keeps nothing; give 1 or more of both")
        self.hits = self.misses = 0
        self._entries, self._flows, self._held = entries, flows, 0
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of runs kept."""
        return len(self._kept)

    def course(self, known: Sequence[Any], size: np.ndarray, start_s: np.ndarray,
               solve: Callable[[], Course]) -> Course:
        """Return the course of flows of *size* bytes from *start_s*; *solve* gives it if it is not known.

        *known*: all else that decides it (arrays, or None). Both ways give the same bytes for the same numbers.
        """
        origin, scale = float(np.min(start_s)), float(np.max(size))
        if not 0 < scale < np.inf:
            return solve()
        sizes, starts = np.asarray(size, np.float64) / scale, (np.asarray(start_s, np.float64) - origin) / scale
        key = _digest([*known, _coarse(sizes), _coarse(starts)])
        found = self._kept.get(key)
        if found is not None and _same(found.size, sizes) and _same(found.start_s, starts):
            self.hits += 1
            self._kept.move_to_end(key)
        else:
            self.misses += 1
            found = Kept(sizes, starts, _scaled(solve(), -origin / scale, 1 / scale))
            self._keep(key, found)
        return _scaled(found.course, origin, scale)

    def _keep(self, key: bytes, run: Kept) -> None:
        """Keep *run*; forget what was not asked for longest until there is room."""
        old = self._kept.pop(key, None)
        self._held += len(run.size) - (0 if old is None else len(old.size))
        self._kept[key] = run
        while len(self._kept) > self._entries or self._held > self._flows:
            self._held -= len(self._kept.popitem(last=False)[1].size)


def _scaled(course: Course, origin: float, scale: float) -> Course:
    return course._replace(end_s=course.end_s * scale + origin, left_bytes=course.left_bytes * scale,
                           bottleneck=course.bottleneck.copy())


def _digest(known: Sequence[Any]) -> bytes:
    """Return a digest of arrays: what they are and every byte of them."""
    digest = hashlib.blake2b(digest_size=32)
    for each in known:
        if each is None:
            digest.update(b"none;")
            continue
        array = np.ascontiguousarray(each)
        digest.update(f"{array.dtype.str}{array.shape};".encode())
        digest.update(array.reshape(-1).data)
    return digest.digest()


def _coarse(values: np.ndarray) -> np.ndarray:
    """Return *values* rounded to some six digits."""
    part, power = np.frexp(values)
    return np.ldexp(np.round(part * COARSE), power)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((np.abs(a - b) <= SAME * np.abs(b)).all())
