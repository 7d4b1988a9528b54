"""An island whose layers are in pipeline stages: several batches are on their way, each in a stage of its own.

As vLLM's engine core does it (V1, ``step_with_batch_queue``): as many batches as stages are under way at most; while
there are fewer, and somebody can run, the next one is scheduled at once; else the engine waits for the oldest. Stages
take up batches in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import simpy

from moesim.scenario import Scenario
from moesim.sim.cost import INDEX, SYNC, StepCost, spent
from moesim.sim.events import EventClock, SimpyTime
from moesim.sim.island import Island, Work
from moesim.sim.steps import advance

_NONE = np.empty(0, np.int64)
_SEND = INDEX["send"]


@dataclass(eq=False)
class Passage:
    """A batch on its way: ``start`` of every phase as ``StepClock.run`` has it, when stages began and ended with it."""

    cost: StepCost
    layers: list[slice]  # of each stage, the last one with what closes the step
    start: np.ndarray = field(init=False)
    begin_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    arrived: simpy.Event | None = None

    def __post_init__(self) -> None:
        self.start = np.empty_like(self.cost.seconds)

    def local(self, stage: int) -> np.ndarray:
        """Return which phases *stage* does by itself, bool [its layers, PHASES]."""
        present = self.cost.present[self.layers[stage]].copy()
        present[:, _SEND] = False
        return present

    def sent_s(self, stage: int, at_s: float) -> float:
        """Note that the send to the stage behind *stage* begins at *at_s*; return its seconds."""
        last = self.layers[stage].stop - 1
        self.start[last, _SEND] = at_s
        return float(self.cost.seconds[last, _SEND, 0])


class StepPipeline:
    """Time as a number. A batch is worked out as it begins: those behind it cannot hold it up."""

    def __init__(self, scenario: Scenario):
        self.now = 0.0
        self._layers, self._tp = _slices(scenario), scenario.parallelism.tp
        self._ready = np.zeros(scenario.stage_size)
        self._stage_free_s, self._link_free_s = np.zeros((2, len(self._layers)))

    def wait_until(self, time_s: float) -> None:
        """Let time pass to *time_s*."""
        self.now = max(self.now, time_s)

    def begin(self, cost: StepCost) -> Passage:
        """Send the batch of *cost* on its way; it may not change until it has arrived."""
        passage, at_s = Passage(cost, self._layers), self.now
        for stage, layers in enumerate(self._layers):
            at_s = max(at_s, float(self._stage_free_s[stage]))
            passage.begin_s.append(at_s)
            self._ready[:] = at_s
            advance(cost.seconds[layers], passage.local(stage), SYNC, self._tp, self._ready, passage.start[layers])
            at_s = self._stage_free_s[stage] = float(self._ready.max())
            passage.end_s.append(at_s)
            if stage + 1 < len(self._layers):
                at_s = max(at_s, float(self._link_free_s[stage]))
                at_s += passage.sent_s(stage, at_s)
                self._link_free_s[stage] = at_s
        return passage

    def finish(self, passage: Passage) -> None:
        """Let time pass until *passage* has come to its end."""
        self.wait_until(passage.end_s[-1])


class EventPipeline(SimpyTime):
    """Time as simpy has it: stages and the links between them are resources, devices processes."""

    def __init__(self, scenario: Scenario):
        self._env = env = simpy.Environment(initial_time=0.0)
        self._layers = _slices(scenario)
        self._clocks = [EventClock(scenario.stage_size, scenario.parallelism.tp, env=env) for _ in self._layers]
        self._stages, self._links = ([simpy.Resource(env) for _ in self._layers] for _ in range(2))

    def begin(self, cost: StepCost) -> Passage:
        """As ``StepPipeline.begin``."""
        passage = Passage(cost, self._layers)
        passage.arrived = self._env.process(self._travel(passage))
        return passage

    def finish(self, passage: Passage) -> None:
        """As ``StepPipeline.finish``."""
        assert passage.arrived is not None, "set as it begins"
        if not passage.arrived.processed:
            self._env.run(until=passage.arrived)

    def _travel(self, passage: Passage) -> Any:
        """Live through the stages, one after the other, and the sends between them."""
        for stage, layers in enumerate(self._layers):
            with self._stages[stage].request() as mine:
                yield mine
                passage.begin_s.append(self._env.now)
                yield self._clocks[stage].go(passage.cost, passage.start, passage.local(stage), layers.start)
                passage.end_s.append(self._env.now)
            if stage + 1 < len(self._layers):
                with self._links[stage].request() as mine:
                    yield mine
                    yield self._env.timeout(passage.sent_s(stage, self._env.now))


def _slices(scenario: Scenario) -> list[slice]:
    """Return the layers of each stage; behind the last is what closes a step."""
    last = scenario.model.layers
    return [slice(layers.start, layers.stop + (layers.stop == last)) for layers in scenario.stages]


class _Flight(NamedTuple):
    """A batch under way: who of each group is in it, and who gets a token of it."""

    planned: list[Work]
    stepped: list[np.ndarray]
    facts: dict[str, Any]
    load_max_over_mean: float
    passage: Passage


class Pipeline(Island):
    """An island with batches under way. Its time is that of the engine core, which schedules them and waits for them.
    """

    _clock: StepPipeline | EventPipeline

    def _new_clock(self) -> Any:
        self._flights: deque[_Flight] = deque()
        self._n_flown = 0
        return (StepPipeline if self._scenario.detail == "steps" else EventPipeline)(self._scenario)

    @property
    def busy(self) -> bool:
        """Whether a batch is under way, or a request runs or waits here."""
        return bool(self._flights) or super().busy

    def step(self) -> np.ndarray | None:
        """Schedule a batch, or wait for the oldest; return the requests that are done, None if nothing can be done."""
        if len(self._flights) < self._scenario.parallelism.pp:
            planned = self._plan()
            if planned is not None:
                self._depart(planned)
                return _NONE
        if not self._flights:
            return None
        return self._arrive(self._flights.popleft())

    def _depart(self, planned: list[Work]) -> None:
        """Send the batch *planned* on its way."""
        batch = self._batch(planned)
        facts, reached = self._facts(batch), self._live.reached[batch.prefill]
        stepped = [group.depart(*work) for group, work in zip(self.groups, planned, strict=True)]
        self._note_peak()
        cost = self.costs.step(batch, self._n_flown % self._scenario.parallelism.pp)  # the space of one that is back
        self._n_flown += 1
        self._shake([cost])
        facts |= self._needs.of(batch, [cost], reached)
        self._flights.append(_Flight(planned, stepped, facts, cost.load_max_over_mean, self._clock.begin(cost)))

    def _arrive(self, flight: _Flight) -> np.ndarray:
        """Wait for *flight*; record it."""
        passage = flight.passage
        self._clock.finish(passage)
        times = zip(passage.begin_s, passage.end_s, strict=True)
        stages = {f"{what}_s_stage_{i}": at_s for i, pair in enumerate(times)
                  for what, at_s in zip(("begin", "end"), pair, strict=True)}
        facts = flight.facts | spent([passage.cost], self.now - flight.facts["start_s"])
        self.record.add(facts | {"end_s": self.now, "load_max_over_mean": flight.load_max_over_mean} | stages,
                        [passage.cost], [passage.start])
        for group, stepped in zip(self.groups, flight.stepped, strict=True):
            group.arrive(stepped)
        return self._finish(flight.stepped)
