"""Experts that are fetched ahead of use, and from tiers further below: what is on its way from step to step.

Copies go on between steps, so somebody has to remember them: who asked, what is left, when lines are free. What happens
within a step is the recurrence of ``moesim.sim.arrivals``.

Letters: M layers with experts, H holders of experts, S slots of a holder, D devices, K lines, Q copies ahead of use.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moesim.hardware import HardwareSpec
from moesim.sim.arrivals import HIT, STOPPED, Asked, Lines, Pass, Queue, wait
from moesim.sim.caches import Caches, Loaded
from moesim.sim.copying import tiers
from moesim.sim.cost import INDEX, SYNC, StepCost


class Wanted(NamedTuple):
    """Say what a step asks of its caches.

    ``used``: slots, bool [M, H, S]; ``share``: of the bytes of each missing expert that is fetched, 0 if it is not,
    [M, H, S]; ``level``: tiers below the device's first from which each of these and of ``loaded`` comes, int64
    [M, H, S]; ``loaded``: ahead of use.
    """

    used: np.ndarray
    share: np.ndarray
    level: np.ndarray
    loaded: Loaded

    @property
    def missing(self) -> np.ndarray:
        """Return what is fetched on demand, bool [M, H, S]."""
        return self.share > 0


class Coming:
    """When experts come to the devices of a machine: demand at once, what is expected in the time that links have left.

    *caches*: of each holder, which *shared_by* devices are, each with its part of every expert.
    """

    def __init__(self, lines: Lines, tp: int, moe: np.ndarray, caches: Caches, shared_by: int):
        self._lines, self._tp, self._moe, self._caches, self._shared_by = lines, tp, moe, caches, shared_by
        self._devices = caches.shape[1] * shared_by
        n_lines = len(lines.level)
        self._on_way = np.zeros((0, 3), np.int64)  # device, layer and slot
        self._left, self._came = np.zeros((n_lines, 0), np.int64), np.zeros((n_lines, 0))
        self._free, self._moved = np.zeros((n_lines, self._devices)), np.zeros(self._devices)
        self._now = 0.0

    def waits(self, cost: StepCost, wanted: Wanted, now: float) -> tuple[np.ndarray, int]:
        """Return how long each layer of the step *cost*, which begins at *now*, waits on each device, [M, D].

        Also how many experts were expected and had not come.
        """
        self._pass_to(now)
        queue, asked = self._queue(wanted), self._asked(wanted)
        wait(Pass(cost.seconds, cost.present, SYNC, self._tp, self._moe, INDEX["fetch"]), self._lines, queue, asked)
        self._left, self._came = queue.left, queue.came
        device, layer, slot = self._on_way[queue.late > 0].T
        return asked.waits, len(set(zip(device // self._shared_by, layer, slot, strict=True)))

    def _pass_to(self, now: float) -> None:
        """Count time from *now* on; forget what has come."""
        passed, self._now = now - self._now, now
        self._free -= passed
        self._came -= passed
        self._keep((self._left > 0).any(axis=0) | (self._came > 0).any(axis=0))

    def _keep(self, some: Any) -> None:
        self._on_way, self._left, self._came = self._on_way[some], self._left[:, some], self._came[:, some]

    def _queue(self, wanted: Wanted) -> Queue:
        """Return what is on its way and what is asked for, device by device."""
        lines, old, loaded = self._lines, self._on_way, wanted.loaded
        new = np.repeat(np.stack([loaded.holder, loaded.layer, loaded.slot, loaded.event, wanted.level[loaded.cells]],
                                 axis=1), self._shared_by, axis=0)
        new[:, 0] = new[:, 0] * self._shared_by + np.tile(np.arange(self._shared_by), len(loaded.holder))
        sizes = (self._devices, *wanted.used.shape[::2])
        known = np.ravel_multi_index(tuple(old.T), sizes)
        new = new[~np.isin(np.ravel_multi_index(tuple(new[:, :3].T), sizes), known)]  # that one goes on
        left = np.concatenate([self._left, (lines.level[:, None] <= new[:, 4]) * lines.chunks], axis=1)
        came = np.concatenate([self._came, np.zeros((len(left), len(new)))], axis=1)
        on_way, event = np.concatenate([old, new[:, :3]]), np.append(np.full(len(old), -1), new[:, 3])
        order = np.argsort(on_way[:, 0], kind="stable")
        self._on_way, event = on_way[order], event[order]
        first = np.searchsorted(self._on_way[:, 0], np.arange(self._devices + 1))
        head = np.tile(first[:-1], (len(self._free), 1))
        ready = np.where(event < 0, -np.inf, np.inf)
        return Queue(first, event, np.ascontiguousarray(left[:, order]), ready, np.ascontiguousarray(came[:, order]),
                     head, self._free, *self._met(wanted), np.zeros(len(event), np.uint8))

    def _met(self, wanted: Wanted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which of what is on its way each layer of each device uses or drops, as parts of ``Queue``."""
        device, layer, slot = self._on_way.T
        cells = layer, device // self._shared_by, slot
        missing = wanted.missing[cells]  # has left before, and comes on demand now
        hit = wanted.used[cells] & ~missing
        entry = np.flatnonzero(hit | missing | ~self._caches.holds(*cells))
        at = device[entry] * len(self._moe) + layer[entry]
        order = np.argsort(at, kind="stable")
        met = np.searchsorted(at[order], np.arange(self._devices * len(self._moe) + 1))
        return met, entry[order], np.where(hit[entry[order]], HIT, STOPPED)

    def _asked(self, wanted: Wanted) -> Asked:
        """Return what is missed, by line, layer and device."""
        lines = self._lines
        passes = wanted.missing & (wanted.level >= lines.level[:, None, None, None])  # [K, M, H, S]
        size = lines.terms[:, 3, None, None]
        count, parts = passes.sum(axis=3), (passes * wanted.share).sum(axis=3) * size
        return Asked(np.repeat(count, self._shared_by, axis=2), np.repeat(parts, self._shared_by, axis=2),
                     np.zeros((len(self._moe), self._devices)), self._moved)


def lines_of(machine: HardwareSpec, size: float, levels: int, chunks: int) -> Lines:
    """Return what experts of *size* bytes pass from so many *levels* below the first tier of a device of *machine*."""
    level, span, lanes, terms = list[int](), list[int](), list[int](), list[list[float]]()
    for at, (tier, per_device) in reversed(list(enumerate(tiers(machine)[:levels], 1))):
        link = tier.link
        assert link is not None, "every tier but the first has one"
        level += [at, at]
        span += [1 if own else machine.devices_per_node for own in (per_device, link.per == "device")]
        lanes += [1, link.lanes]
        terms += [[0.0, 1 / tier.bandwidth, 0.0, size],
                  [link.setup, 1 / (link.bandwidth * link.efficiency), link.half, size]]
    return Lines(np.array(level), np.array(span), np.array(lanes), np.array(terms), chunks,
                 1 / machine.device.memory[0].bandwidth)
