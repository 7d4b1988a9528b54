"""The recurrence that says when experts arrive, against copies chunk by chunk on ``moesim.memory.dma``'s engines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moesim.memory import dma
from moesim.sim.arrivals import HIT, STOPPED, Asked, Lines, Pass, Queue, wait
from moesim.sim.cost import INDEX, PHASES, SYNC

SIZE = 12.0


class Case:
    """One device, M layers: what is asked for ahead of each, what is missed, and work between them; all drawn."""

    def __init__(self, seed: int, chunks: int, setup: float, half: float):
        rng = np.random.default_rng(seed)
        self.m = m = int(rng.integers(2, 6))
        self.work = rng.uniform(0.0, 60.0, (m + 1, 2))  # before a layer asks, and after
        layer = np.sort(rng.integers(0, m, int(rng.integers(1, 9))))
        self.event = np.maximum(layer - rng.integers(0, 3, len(layer)), 0)
        order = np.argsort(self.event, kind="stable")
        self.event, self.layer = self.event[order], layer[order]
        self.met_as = rng.choice([0, HIT, HIT, STOPPED], len(layer))  # 0: wrongly expected
        self.missed = rng.integers(0, 3, m) + np.bincount(self.layer[self.met_as == STOPPED], minlength=m)
        self.chunks, self.setup, self.half = chunks, setup, half

    def recurrence(self, slowed: float = 0.0) -> np.ndarray:
        """Return what layers wait."""
        m, n = self.m, len(self.event)
        lines = Lines(np.array([1]), np.array([1]), np.array([1]), np.array([[self.setup, 1.0, self.half, SIZE]]),
                      self.chunks, slowed)
        met = np.flatnonzero(self.met_as)
        met = met[np.argsort(self.layer[met], kind="stable")]
        queue = Queue(np.array([0, n]), self.event, np.full((1, n), self.chunks), np.full(n, np.inf), np.zeros((1, n)),
                      np.zeros((1, 1), np.int64), np.zeros((1, 1)), np.searchsorted(self.layer[met], np.arange(m + 1)),
                      met, self.met_as[met], np.zeros(n, np.uint8))
        asked = Asked(self.missed[None, :, None], SIZE * self.missed[None, :, None].astype(float), np.zeros((m, 1)),
                      np.zeros(1))
        seconds, present = np.zeros((m + 1, len(PHASES), 1)), np.zeros((m + 1, len(PHASES)), bool)
        seconds[:, INDEX["attention"], 0], seconds[:, INDEX["experts"], 0] = self.work.T
        present[:, [INDEX["attention"], INDEX["experts"]]] = True
        wait(Pass(seconds, present, SYNC, 1, np.arange(m), INDEX["fetch"]), lines, queue, asked)
        return asked.waits[:, 0]

    def played(self) -> np.ndarray:
        """Return what layers wait, every chunk a copy; those that a layer still needs become demand as it asks."""
        engines = {"link": dma.Engine(1.0, half=self.half, setup_s=self.setup)}
        copies: list[dma.Copy] = []
        owner: list[int] = []  # of each copy: what was expected; -1: a miss
        at, waits = 0.0, []
        self._ask(0, at, copies, owner)
        for i in range(self.m):
            at += self.work[i, 0]
            began = _times(copies, engines, "start_s")
            met = {q: int(self.met_as[q]) for q in np.flatnonzero(self.layer == i)}
            gone = [met.get(q) == STOPPED and start >= at for q, start in zip(owner, began, strict=True)]
            copies[:] = [dataclasses.replace(c, ready_s=at, priority=0) if met.get(q) == HIT and start >= at else c
                         for c, q, start, left in zip(copies, owner, began, gone, strict=True) if not left]
            owner[:] = [q for q, left in zip(owner, gone, strict=True) if not left]
            needed = [j for j, q in enumerate(owner) if met.get(q) == HIT]
            needed += range(len(copies), len(copies) + int(self.missed[i]))
            copies += [dma.Copy(SIZE, ("link",), at, 0)] * int(self.missed[i])
            owner += [-1] * int(self.missed[i])
            ends = _times(copies, engines, "finish_s")
            waits.append(max([ends[j] - at for j in needed] + [0.0]))
            self._ask(i + 1, at, copies, owner)
            at += waits[-1] + self.work[i, 1]
        return np.array(waits)

    def _ask(self, event: int, at: float, copies: list[dma.Copy], owner: list[int]) -> None:
        for q in np.flatnonzero(self.event == event):
            copies += [dma.Copy(SIZE / self.chunks, ("link",), at, 1)] * self.chunks
            owner += [int(q)] * self.chunks


def _times(copies: list[dma.Copy], engines: dict[str, dma.Engine], name: str) -> list[float]:
    return dma.run(copies, engines).copies[name].tolist() if copies else []


@pytest.mark.parametrize(("chunks", "setup", "half"), [(1, 0.0, 0.0), (1, 1.5, 3.0), (4, 0.5, 0.0), (3, 0.0, 1.0)])
def test_waits_are_those_of_an_event_simulation(chunks: int, setup: float, half: float) -> None:
    waited = 0.0
    for seed in range(6):
        case = Case(seed, chunks, setup, half)
        found = case.recurrence()
        assert found == pytest.approx(case.played(), rel=1e-6, abs=1e-6), seed
        waited += float(found.sum())
    assert waited > 0


def test_copies_take_the_bandwidth_that_kernels_want() -> None:
    """Memory of 10 bytes/s, a link of 1: 12 bytes come while kernels read 600; together 61.2 s instead of 60."""
    played = dma.run([dma.Copy(SIZE, ("link",))], {"link": dma.Engine(1.0, ("hbm",))}, {"hbm": 10.0},
                     [dma.Traffic(600.0, "hbm")])
    case = Case(0, 1, 0.0, 0.0)
    case.m, case.event, case.layer, case.met_as = 2, np.array([1]), np.array([1]), np.array([HIT])
    case.missed, case.work = np.array([0, 0]), np.array([[0.0, 60.0], [0.0, 0.0], [0.0, 0.0]])
    found = case.recurrence(slowed=0.1)
    assert 60 + found.sum() == pytest.approx(played.traffic["finish_s"].item()) == pytest.approx(61.2)


@pytest.mark.parametrize(("slow", "fast"), [(3.0, 1.0), (1.0, 3.0), (1.0, 1.0)])
@pytest.mark.parametrize(("near", "deep"), [(0, 1), (0, 4), (2, 3), (5, 1), (3, 0)])
def test_chains_carry_experts_one_behind_the_other(slow: float, fast: float, near: int, deep: int) -> None:
    """A layer misses some from the tier below and some from the one below that; links take *fast* and *slow* a byte."""
    engines = {"low": dma.Engine(1 / slow, setup_s=0.5), "up": dma.Engine(1 / fast, setup_s=0.25)}
    copies = [dma.Copy(SIZE, ("up",))] * near + [dma.Copy(SIZE, ("low", "up"))] * deep
    lines = Lines(np.array([2, 1]), np.array([1, 1]), np.array([1, 1]),
                  np.array([[0.5, slow, 0.0, SIZE], [0.25, fast, 0.0, SIZE]]), 1, 0.0)
    empty = np.zeros(0, np.int64)
    queue = Queue(np.zeros(2, np.int64), empty, np.zeros((2, 0), np.int64), np.zeros(0), np.zeros((2, 0)),
                  np.zeros((2, 1), np.int64), np.zeros((2, 1)), np.zeros(2, np.int64), empty, empty,
                  np.zeros(0, np.uint8))
    count = np.array([deep, near + deep])[:, None, None]
    asked = Asked(count, SIZE * count.astype(float), np.zeros((1, 1)), np.zeros(1))
    nothing = np.zeros((2, len(PHASES), 1))
    wait(Pass(nothing, nothing[:, :, 0] > 0, SYNC, 1, np.arange(1), INDEX["fetch"]), lines, queue, asked)
    assert asked.waits.item() == pytest.approx(dma.run(copies, engines).copies["finish_s"].max())
