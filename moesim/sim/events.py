"""The event engine: every device is a simpy process that works through its layers and meets others in collectives.

At most one event per (layer, device, phase). It shares its costs with the step engine, not its
arithmetic: here time passes because processes wait. A step may run as two halves side by side: each device then is two
processes that share one processor.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import simpy

from moesim.network import Network
from moesim.sim.background import Background
from moesim.sim.cost import GROUP, LOCAL, PHASES, SYNC, StepCost
from moesim.sim.links import Launch, Links
from moesim.sim.server import Server


class SimpyTime:
    """The time of a simpy environment."""

    _env: simpy.Environment

    @property
    def now(self) -> float:
        """The current time, seconds."""
        return self._env.now

    def wait_until(self, time_s: float) -> None:
        """Let time pass to *time_s*."""
        if time_s > self._env.now:
            self._env.run(until=time_s)


class EventClock(SimpyTime):
    """Time as simpy has it. Each device has a processor; *network* has the links, where collectives may share them.

    Without a *network* every collective is alone on its links.
    """

    def __init__(self, n_devices: int, tp: int, network: Network | None = None, background: Background | None = None,
                 env: simpy.Environment | None = None):
        self._env = env or simpy.Environment(initial_time=0.0)
        self._tp = tp
        self._processors = [Server(self._env) for _ in range(n_devices)]
        self._links = None if network is None else Links(self._env, network, background)

    def stand_still(self, launch: Launch) -> None:
        """Let time pass until the collective *launch*, which begins now, has ended; no step runs meanwhile."""
        self._env.run(until=self.send(launch))

    def send(self, launch: Launch) -> simpy.Event:
        """Begin the collective *launch* beside whatever else runs; return its end."""
        return self._env.timeout(launch.seconds) if self._links is None else self._links.start(launch)

    def run(self, costs: Sequence[StepCost]) -> list[np.ndarray]:
        """Run one step, whole or in halves that begin together; return the start of every phase as ``StepClock.run``.

        Collectives that shared links get the seconds they took in their cost.
        """
        steps = [_Step(cost, np.empty_like(cost.seconds), _jobs(cost.present)) for cost in costs]
        devices = range(len(self._processors))
        self._env.run(until=self._env.all_of([self._env.process(self._device(d, s)) for s in steps for d in devices]))
        return [step.start for step in steps]

    def go(self, cost: StepCost, start: np.ndarray, present: np.ndarray, first: int) -> simpy.Event:
        """Begin with the phases *present* of some layers, from *first* on, of *cost*; return their end.

        *start* is filled in.
        """
        step = _Step(cost, start, [[(layer + first, phase) for layer, phase in job] for job in _jobs(present)])
        return self._env.all_of([self._env.process(self._device(d, step)) for d in range(len(self._processors))])

    def _device(self, device: int, step: _Step) -> Generator[simpy.Event, None, None]:
        """Live through one step on *device*: layer by layer; phases of its own that follow one another are one job."""
        seconds, processor = step.cost.seconds, self._processors[device]
        for jobs in step.jobs:
            layer, phase = jobs[0]
            if SYNC[phase] != LOCAL:
                yield self._meet(device, layer, phase, step)
                continue
            for layer, phase in jobs:
                step.start[layer, phase, device] = processor.serve(seconds[layer, phase, device])
            yield processor.done()

    def _meet(self, device: int, layer: int, phase: int, step: _Step) -> simpy.Event:
        """Return the end of a collective; it starts when the last of its devices has come."""
        width = self._tp if SYNC[phase] == GROUP else len(self._processors)
        first = device // width * width
        done = step.meetings.setdefault((layer, phase, first), self._env.event())
        step.arrived[layer, phase, first] = step.arrived.get((layer, phase, first), 0) + 1
        if step.arrived[layer, phase, first] == width:
            self._collective(slice(first, first + width), layer, phase, step, done)
        return done

    def _collective(self, members: slice, layer: int, phase: int, step: _Step, done: simpy.Event) -> None:
        """Begin the collective of *members*; let *done* come at its end."""
        begin, seconds = self._env.now, step.cost.seconds
        step.start[layer, phase, members] = begin
        alone_s = float(seconds[layer, phase, members.start])
        if self._links is None or alone_s == 0:
            end: simpy.Event = self._env.timeout(alone_s)
        else:
            end = self.send(step.launch(alone_s, layer, phase, members.start))

        def finish(event: simpy.Event) -> None:
            if event.value:  # it shared links
                seconds[layer, phase, members] = self._env.now - begin
            done.succeed()

        end.callbacks.append(finish)  # type: ignore[union-attr]


class _Step:
    """The meetings of one step, or half a step, and the record of its starts."""

    def __init__(self, cost: StepCost, start: np.ndarray, jobs: list[list[tuple[int, int]]]):
        self.cost, self.start, self.jobs = cost, start, jobs
        self.meetings: dict[tuple[int, int, int], simpy.Event] = {}
        self.arrived: dict[tuple[int, int, int], int] = {}

    def launch(self, seconds: float, layer: int, phase: int, first: int) -> Launch:
        """Return the collective *phase* of *layer* of the devices from *first*, *seconds* long if alone."""
        traffic = self.cost.traffic[PHASES[phase]]
        used = np.any([each.loads(layer, first) > 0 for each in traffic], axis=0)
        return Launch(seconds, np.flatnonzero(used), lambda: [a for each in traffic for a in each.acts(layer, first)])


def _jobs(present: np.ndarray) -> list[list[tuple[int, int]]]:
    """Return the (layer, phase) that there are, those that a device does by itself one after the other as one list."""
    jobs: list[list[tuple[int, int]]] = []
    for layer, phase in np.argwhere(present):
        job = (int(layer), int(phase))
        if jobs and SYNC[phase] == LOCAL == SYNC[jobs[-1][-1][1]]:
            jobs[-1].append(job)
        else:
            jobs.append([job])
    return jobs
