"""What a balancing part sees of the flows that it spreads: their two ends, and the paths between them.

Paths of a pair are numbered as its topology numbers them (in a leaf-spine fabric: by spine). Where links are dead,
only living paths count, and ``nth`` gives the number of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np


class Choice(NamedTuple):
    """What a balancing part decides: ``share`` of the bytes of ``flow`` goes by ``path``; shares of a flow sum to 1."""

    flow: np.ndarray
    path: np.ndarray
    share: np.ndarray


@dataclass(frozen=True, eq=False)
class Ends:
    """Flows to be spread over the paths of *fabric*; all arrays [flows].

    ``port``: what tells flows of one pair apart (a queue pair, a source port). ``batch``: which flows are balanced
    together, those that start at one time. ``size``: bytes. ``alive``: bool [links], or None: all. ``backlog_s``:
    [links] seconds that the bytes under way still need there, or None: nothing is under way.
    """

    fabric: Any
    src: np.ndarray
    dst: np.ndarray
    port: np.ndarray
    batch: np.ndarray
    size: np.ndarray
    alive: np.ndarray | None = None
    backlog_s: np.ndarray | None = None

    @classmethod
    def of(cls, fabric: Any, src: Any, dst: Any, **more: Any) -> Ends:
        """Return flows of one byte each from *src* to *dst* that start together; *more* fields as they are."""
        src, dst = np.asarray(src, np.int64), np.asarray(dst, np.int64)
        values = {"port": np.zeros(len(src), np.int64), "batch": np.zeros(len(src)), "size": np.ones(len(src))}
        return cls(fabric, src, dst, **(values | {"alive": fabric.alive} | more))

    def __len__(self) -> int:
        return len(self.src)

    @cached_property
    def widths(self) -> np.ndarray:
        """Equal-cost ways that each switch on the way up chooses from, int64 [flows, tiers]."""
        return self.fabric.widths(self.src, self.dst)

    @cached_property
    def switch(self) -> np.ndarray:
        """The first switch of each destination."""
        return np.asarray(self.fabric.switch_of(self.dst))

    @cached_property
    def stranded(self) -> np.ndarray:
        """Which flows have no living path, bool [flows]."""
        found = self._found_alive
        return np.zeros(len(self), bool) if found is None else np.logical_not(found.any(axis=1))

    @cached_property
    def n_paths(self) -> np.ndarray:
        """How many living paths each flow has; a flow whose paths are all dead counts them all (it has to wait)."""
        return self.widths.prod(axis=1) if self._living is None else self._living.sum(axis=1)

    @cached_property
    def _living(self) -> np.ndarray | None:
        """Which paths count, bool [flows, paths], or None: all. Those that are alive; of a stranded flow all."""
        found = self._found_alive
        if found is None:
            return None
        living = found.copy()
        living[self.stranded] = np.arange(found.shape[1]) < self.widths.prod(axis=1)[self.stranded, None]
        return living

    @cached_property
    def _found_alive(self) -> np.ndarray | None:
        """Which paths are alive, bool [flows, paths], or None if no link is dead."""
        if self.alive is None or self.alive.all():
            return None
        n_paths = self.widths.prod(axis=1)
        flow, path = every(n_paths)
        links = self.links(flow, path)
        living = np.zeros((len(self), int(n_paths.max(initial=0))), bool)
        living[flow, path] = (self.alive[links] | (links < 0)).all(axis=1)
        return living

    def nth(self, flow: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """Return the number of the *rank*-th living path of each of *flow* (both int64, of one length)."""
        if self._living is None:
            return rank
        return np.argsort(~self._living, axis=1, kind="stable")[flow, rank]

    def dead(self, flow: np.ndarray, path: np.ndarray) -> np.ndarray:
        """Return whether *path* of each of *flow* is not among its living ones."""
        return np.zeros(len(flow), bool) if self._living is None else ~self._living[flow, path]

    def links(self, flow: np.ndarray, path: np.ndarray) -> np.ndarray:
        """Return the links [.., K] of *path* of each of *flow*, -1 where it has fewer than K."""
        return self.fabric.path(self.src[flow], self.dst[flow], path)


def every(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for ``count[f]`` things of each f, the f of every thing, and its number among them.

    >>> [a.tolist() for a in every(np.array([2, 0, 1]))]
    [[0, 0, 2], [0, 1, 0]]
    """
    count = np.asarray(count, np.int64)
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
