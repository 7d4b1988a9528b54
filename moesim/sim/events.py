"""The event engine: every device is a simpy process that works through its layers and meets others in collectives.

At most one event per (layer, device, phase). It shares its costs with the step engine, not its
arithmetic: here time passes because processes wait.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import simpy

from moesim.sim.cost import GROUP, LOCAL, SYNC, StepCost
from moesim.sim.server import Server


class EventClock:
    """Time as simpy has it. Each device has two servers: its processor and its links."""

    def __init__(self, n_devices: int, tp: int):
        self._env = simpy.Environment(initial_time=0.0)
        self._tp = tp
        self._processors = [Server(self._env) for _ in range(n_devices)]
        self._links = [Server(self._env) for _ in range(n_devices)]

    @property
    def now(self) -> float:
        """The current time, seconds."""
        return self._env.now

    def wait_until(self, time_s: float) -> None:
        """Let time pass to *time_s*."""
        if time_s > self._env.now:
            self._env.run(until=time_s)

    def run(self, cost: StepCost) -> np.ndarray:
        """Run one step; return the start of every phase, as ``StepClock.run`` does."""
        start = np.empty_like(cost.seconds)
        step = _Step(cost, start, self)
        devices = range(len(self._processors))
        self._env.run(until=self._env.all_of([self._env.process(self._device(d, step)) for d in devices]))
        return start

    def _device(self, device: int, step: _Step) -> Generator[simpy.Event, None, None]:
        """Live through one step on *device*: layer by layer, phase by phase."""
        seconds = step.cost.seconds
        for layer, phase in step.jobs:
            if SYNC[phase] == LOCAL:
                begin, end = self._processors[device].serve(seconds[layer, phase, device])
                step.start[layer, phase, device] = begin
                yield end
            else:
                yield self._meet(device, layer, phase, step)

    def _meet(self, device: int, layer: int, phase: int, step: _Step) -> simpy.Event:
        """Return the end of a collective; it starts when the last of its devices has come."""
        width = self._tp if SYNC[phase] == GROUP else len(self._processors)
        members = range(device // width * width, device // width * width + width)
        done = step.meetings.setdefault((layer, phase, members.start), self._env.event())
        step.arrived[layer, phase, members.start] = step.arrived.get((layer, phase, members.start), 0) + 1
        if step.arrived[layer, phase, members.start] == width:
            for d in members:
                step.start[layer, phase, d], end = self._links[d].serve(step.cost.seconds[layer, phase, d])
            end.callbacks.append(lambda _: done.succeed())  # type: ignore[union-attr, arg-type]
        return done


class _Step:
    """The meetings of one step, and the record of its starts."""

    def __init__(self, cost: StepCost, start: np.ndarray, clock: EventClock):
        self.cost = cost
        self.start = start
        self.jobs = [(int(l), int(p)) for l, p in np.argwhere(cost.present)]
        self.meetings: dict[tuple[int, int, int], simpy.Event] = {}
        self.arrived: dict[tuple[int, int, int], int] = {}
