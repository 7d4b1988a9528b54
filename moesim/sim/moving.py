"""Pieces of flows under way, as plain arrays: they are taken apart and put together thousands of times per step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moesim.network import fluid
from moesim.network.pieces import Pieces


class Rows(NamedTuple):
    """Links of pieces: piece p uses ``usage`` of its rate on ``link``, the next ``links[p]`` entries after p - 1's."""

    links: np.ndarray
    link: np.ndarray
    usage: np.ndarray

    @classmethod
    def of(cls, pieces: Pieces) -> Rows:
        """Return the links of *pieces*."""
        return cls(np.diff(pieces.usage.indptr), pieces.usage.indices, pieces.usage.data)

    def only(self, which: np.ndarray) -> Rows:
        """Return the rows *which* (bool)."""
        entries = np.repeat(which, self.links)
        return Rows(self.links[which], self.link[entries], self.usage[entries])

    def loads(self, size: np.ndarray, n_links: int) -> np.ndarray:
        """Return what pieces of *size* bytes put on each of *n_links* links."""
        return np.bincount(self.link, np.repeat(size, self.links) * self.usage, n_links)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return, for every piece, the sum of *values* [links] over its links, each as much as it is used."""
        piece = np.repeat(np.arange(len(self.links)), self.links)
        return np.bincount(piece, values[self.link] * self.usage, len(self.links))

    def paths(self) -> fluid.Paths:
        """Return the same as the fluid solver wants it."""
        return fluid.Paths(np.concatenate([[0], np.cumsum(self.links)]), self.link, self.usage)


class Moving(NamedTuple):
    """Pieces under way, [pieces]: the number of their ``owner``, ``left`` bytes, which move from ``start_s``.

    ``latency_s``: from the last byte sent to the last byte there. ``weight``, ``limit`` (bytes/s), ``after`` (the piece
    that has to end first, or -1) as ``fluid.run`` has them.
    """

    rows: Rows
    owner: np.ndarray
    left: np.ndarray
    start_s: np.ndarray
    latency_s: np.ndarray
    weight: np.ndarray
    limit: np.ndarray
    after: np.ndarray

    @classmethod
    def none(cls) -> Moving:
        """Return nothing."""
        whole, real = np.empty(0, np.int64), np.empty(0)
        return cls(Rows(whole, whole, real), whole, real, real, real, real, real, whole)

    def only(self, which: np.ndarray) -> Moving:
        """Return the pieces *which* (bool); those that were after a piece that is gone are free to begin."""
        if which.all():
            return self
        place = np.where(which, np.cumsum(which) - 1, -1)
        after = np.where(self.after < 0, -1, place[self.after])
        return Moving(self.rows.only(which), *(values[which] for values in (*self[1:-1], after)))

    def and_also(self, others: Moving) -> Moving:
        """Return these pieces and *others*."""
        if len(self.left) == 0 or len(others.left) == 0:
            return others if len(self.left) == 0 else self
        others = others._replace(after=np.where(others.after < 0, -1, others.after + len(self.left)))
        rows = Rows(*(np.concatenate(pair) for pair in zip(self.rows, others.rows, strict=True)))
        return Moving(rows, *(np.concatenate(pair) for pair in zip(self[1:], others[1:], strict=True)))

    def since(self, now: float) -> Moving:
        """Return the same pieces; none begins before *now*."""
        return self._replace(start_s=np.maximum(self.start_s, now))

    def run(self, capacity: np.ndarray, until: float = np.inf) -> fluid.Course:
        """Return how the pieces go on links of *capacity* [links] until then, sharing max-min fairly."""
        return fluid.run(self.rows.paths(), capacity, self.left, self.start_s, weight=self.weight, limit=self.limit,
                         until=until, after=self.after if (self.after >= 0).any() else None)
