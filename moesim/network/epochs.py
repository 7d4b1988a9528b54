"""Flows over time: in each epoch links and paths stay as they are; between epochs links fail and flows are re-pathed.

Without faults, and with a balancing that does not look at load, there is one epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from moesim.network import fluid
from moesim.network.ends import Choice, Ends
from moesim.network.faults import Faults
from moesim.network.pieces import Pieces, ends_of, joined, kept, pieces_of, pinned, spread


class Ended(NamedTuple):
    """How flows ended, [flows]: ``finish_s``, ``bottleneck`` of the last piece (or -1); ``load_bytes`` [links]."""

    finish_s: np.ndarray
    bottleneck: np.ndarray
    load_bytes: np.ndarray


class Way(NamedTuple):
    """How flows get over a fabric: balancing *part*, its *seed*, *tolerance* of the solver, *memo* or None."""

    part: Any
    seed: int
    tolerance: float
    memo: Any = None


@dataclass
class _UnderWay:
    """Pieces that have begun or wait for another: ``left`` bytes and ``start_s`` [pieces]."""

    pieces: Pieces
    left: np.ndarray
    start_s: np.ndarray

    def only(self, which: np.ndarray) -> _UnderWay:
        """Return the pieces *which* (bool)."""
        return _UnderWay(kept(self.pieces, which), self.left[which], self.start_s[which])

    def and_also(self, others: _UnderWay) -> _UnderWay:
        """Return these pieces and *others*."""
        return _UnderWay(joined([self.pieces, others.pieces]), np.concatenate([self.left, others.left]),
                         np.concatenate([self.start_s, others.start_s]))


@dataclass
class Journey:
    """Flows of *table* (checked, 0, 1, ... as index) on *fabric* with *capacity* [links], by *way*."""

    fabric: Any
    table: pd.DataFrame
    capacity: np.ndarray
    way: Way
    faults: Faults
    ended: Ended = field(init=False)
    _latency_s: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.table)
        self.ended = Ended(self.table["start_s"].to_numpy().copy(), np.full(n, -1), np.zeros(len(self.capacity)))
        self._latency_s = self.fabric.links()["latency_s"].to_numpy()

    def run(self) -> Ended:
        """Return how all flows ended; a flow that cannot ends at infinity."""
        start_s = self.table["start_s"].to_numpy()
        if len(start_s) == 0:
            return self.ended
        first = float(start_s.min())
        changes = np.unique(np.concatenate([self.faults.times, start_s if self._looks else start_s[:0]]))
        edges = [first, *changes[changes > first].tolist(), np.inf]
        moving: _UnderWay | None = None
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
            fresh = np.flatnonzero((start_s >= begin) & (start_s < end))
            moving = self._epoch(moving, fresh, float(begin), float(end))
        return self.ended

    @property
    def _looks(self) -> bool:
        return self.way.part.sees_load and "spine" not in self.table

    def _epoch(self, moving: _UnderWay | None, fresh: np.ndarray, begin: float, end: float) -> _UnderWay | None:
        """Run what is *moving* and the *fresh* flows from *begin* to *end*; return what still moves then."""
        capacity, alive = self.capacity * self.faults.factor(begin), self._alive(begin)
        if moving is not None:
            moving.start_s = np.maximum(moving.start_s, begin)
            moving = self._repathed(moving, alive, begin)
        if len(fresh):
            new = self._started(fresh, alive, moving, capacity)
            moving = new if moving is None else moving.and_also(new)
        if moving is None or len(moving.left) == 0:
            return None
        return self._moved(moving, capacity, end)

    def _alive(self, time_s: float) -> np.ndarray:
        known = self.faults.known(time_s)
        return known if self.fabric.alive is None else known & self.fabric.alive

    def _started(self, fresh: np.ndarray, alive: np.ndarray, moving: _UnderWay | None,
                 capacity: np.ndarray) -> _UnderWay:
        """Return the pieces of the *fresh* flows; those without bytes end here."""
        table = self.table.iloc[fresh]
        backlog = None
        if self._looks and moving is not None:
            backlog = (moving.pieces.usage.T @ moving.left) / np.maximum(capacity, 1e-300)
        ends = ends_of(self.fabric, table, alive=alive, backlog_s=backlog)
        if "spine" in table:
            pieces = pinned(ends, table["spine"].to_numpy())
        else:
            pieces = spread(ends, self.way.part, self.way.seed)
        pieces = pieces._replace(flow=fresh[pieces.flow])
        new = _UnderWay(pieces, self.table["bytes"].to_numpy()[pieces.flow] * pieces.share,
                        self.table["start_s"].to_numpy()[pieces.flow])
        empty = new.left == 0
        self._note(new.only(empty), new.start_s[empty], np.full(int(empty.sum()), -1))
        return new.only(~empty)

    def _repathed(self, moving: _UnderWay, alive: np.ndarray, now: float) -> _UnderWay:
        """Return *moving* with the pieces whose path is known to be dead on other paths."""
        lost = (moving.pieces.usage @ (~alive).astype(np.float64)) > 0
        if not lost.any() or "spine" in self.table:
            return moving
        ends = self._ends(moving, lost, alive, now)
        lost[np.flatnonzero(lost)[ends.stranded]] = False  # nowhere to go: they wait for a repair
        if not lost.any():
            return moving
        gone, ends = moving.only(lost), self._ends(moving, lost, alive, now)
        choice, sent = self.way.part.paths(ends, self.way.seed), self.way.part.sent
        if sent == "in_turn":  # each burst stays one burst
            one = np.concatenate([[True], choice.flow[1:] != choice.flow[:-1]])
            choice = Choice(choice.flow[one], choice.path[one], np.ones(len(ends)))
            usage = moving.pieces.usage.tolil()
            usage[np.flatnonzero(lost)] = pieces_of(ends, choice, "apart").usage.tolil()
            return _UnderWay(moving.pieces._replace(usage=usage.tocsr()), moving.left, moving.start_s)
        new = pieces_of(ends, choice, sent)
        origin = gone.pieces
        again = new._replace(flow=origin.flow[new.flow], share=origin.share[new.flow] * new.share,
                             weight=origin.weight[new.flow] * new.weight)
        rest = moving.only(~lost)
        return rest.and_also(_UnderWay(again, gone.left[new.flow] * new.share, np.full(len(again.flow), now)))

    def _ends(self, moving: _UnderWay, which: np.ndarray, alive: np.ndarray, now: float) -> Ends:
        """Return the ends of the pieces *which* (bool) of *moving*, as flows that start *now*."""
        flow = moving.pieces.flow[which]
        table = self.table.iloc[flow].assign(bytes=moving.left[which], start_s=now)
        return ends_of(self.fabric, table.reset_index(drop=True), alive=alive)

    def _moved(self, moving: _UnderWay, capacity: np.ndarray, end: float) -> _UnderWay | None:
        """Run *moving* until *end*; note what ended, return the rest."""
        pieces = moving.pieces
        weight, limit = (self.table[c].to_numpy()[pieces.flow] * pieces.weight for c in ("weight", "limit_bytes_per_s"))
        after = pieces.after if (pieces.after >= 0).any() else None
        course = fluid.run(fluid.Paths.of(pieces.usage), capacity, moving.left, moving.start_s, weight=weight,
                           limit=limit, tolerance=self.way.tolerance, until=end, after=after, memo=self.way.memo)
        done = np.isfinite(course.end_s) | (end == np.inf)
        self._note(moving.only(done), course.end_s[done], course.bottleneck[done])
        self.ended.load_bytes[:] += pieces.usage.T @ (moving.left - course.left_bytes)
        moving.left = course.left_bytes
        return None if done.all() else moving.only(~done)

    def _note(self, gone: _UnderWay, end_s: np.ndarray, bottleneck: np.ndarray) -> None:
        """Note when the pieces *gone* ended; a flow ends with its last piece, one latency of its path later."""
        finish_s = end_s + gone.pieces.usage @ self._latency_s
        order = np.argsort(finish_s, kind="stable")
        flow = gone.pieces.flow[order]
        later = finish_s[order] >= self.ended.finish_s[flow]
        self.ended.finish_s[flow[later]] = finish_s[order][later]
        self.ended.bottleneck[flow[later]] = bottleneck[order][later]
