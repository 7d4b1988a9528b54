"""The step engine: start and end of every phase on every device, layer by layer, as arrays.

It evaluates exactly what the event engine does, without events: a phase starts when its device (and the
devices that it waits for) finished the phase before. A law of the tests: both agree to 1e-9.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from moesim.sim.cost import ALL, GROUP, SYNC, StepCost
from moesim.sim.links import Launch


class StepClock:
    """Time as a number: each step is evaluated in one call."""

    def __init__(self, n_devices: int, tp: int):
        self.now = 0.0
        self._ready = np.zeros(n_devices)
        self._tp = tp
        self._start = np.empty(0)

    def wait_until(self, time_s: float) -> None:
        """Let time pass to *time_s*."""
        self.now = max(self.now, time_s)

    def stand_still(self, launch: Launch) -> None:
        """Let time pass until the collective *launch*, which has all links to itself, has ended."""
        self.now += launch.seconds

    def run(self, costs: Sequence[StepCost]) -> list[np.ndarray]:
        """Run one step, whole; return the start of every phase, float64 [layers + 1, PHASES, devices].

        Undefined where the phase is absent; the next call reuses it.
        """
        (cost,) = costs
        if self._start.shape != cost.seconds.shape:
            self._start = np.empty_like(cost.seconds)
        self._ready[:] = self.now
        advance(cost.seconds, cost.present, SYNC, self._tp, self._ready, self._start)
        self.now = float(self._ready.max())
        return [self._start]


@njit(cache=True)
def advance(seconds, present, sync, tp, ready, start):  # type: ignore[no-untyped-def]
    """Fill *start* and move *ready* (both seconds; [layers, phases, devices] and [devices]) through all phases."""
    n_devices = ready.shape[0]
    for layer in range(seconds.shape[0]):
        for phase in range(seconds.shape[1]):
            if not present[layer, phase]:
                continue
            width = 1
            if sync[phase] == GROUP:
                width = tp
            elif sync[phase] == ALL:
                width = n_devices
            for first in range(0, n_devices, width):
                begin = ready[first : first + width].max()
                for d in range(first, first + width):
                    start[layer, phase, d] = begin
                    ready[d] = begin + seconds[layer, phase, d]
