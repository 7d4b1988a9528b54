"""Devices that step together: groups with queues of their own, what their step costs, a clock and a record.

Groups whose experts lie on each other's devices run in lock step, as data-parallel engines with expert parallelism do:
a step is as long as the slowest group needs, and a group without work takes part in the exchanges with no tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.network import Network
from moesim.scenario import Scenario
from moesim.serving import loops
from moesim.serving.group import Group, Requests
from moesim.sim.background import background
from moesim.sim.cost import Batch, StepCost, spent
from moesim.sim.events import EventClock
from moesim.sim.expert_devices import ExpertDevices
from moesim.sim.expert_parallel import MODES
from moesim.sim.halves import halves
from moesim.sim.inputs import Inputs
from moesim.sim.needs import Needs
from moesim.sim.operators import Pricing
from moesim.sim.record import Record
from moesim.sim.replacing import Replacing
from moesim.sim.replicated import Replicated
from moesim.sim.steps import StepClock

if TYPE_CHECKING:
    from moesim.sim.offload import Offload

Work = tuple[np.ndarray, np.ndarray]  # requests, and tokens of each


class Island:
    """*groups* on the devices of *inputs*' scenario, which serve some of the requests *live*; island *number*."""

    def __init__(self, inputs: Inputs, live: Requests, groups: list[Group], number: int = 0):
        self._inputs, self._live, self.groups = inputs, live, groups
        self._scenario = scenario = inputs.scenario
        self.network = network = Network.of(scenario.hardware, scenario.balancing, scenario.seed)
        parallelism = scenario.parallelism
        kind = Replicated if parallelism.dispatch == "replicated" else MODES[parallelism.mode]
        self.costs = (ExpertDevices if parallelism.expert_devices else kind)(inputs, network)
        self.offload = _offload(inputs, self.costs.operators)
        if self.offload is not None and self.offload.reroute is not None:
            self.costs.chosen = self.offload.reroute.chosen
        self._needs = Needs(scenario)
        self.record = Record(network, scenario.span_steps, _first_devices(scenario))
        self.replacing = Replacing(inputs, network, self.record) if scenario.online else None
        self.peak = [0] * len(groups)  # blocks in use
        self._clock = self._new_clock()
        self._planned: list[Work] | None = None
        self._rows = inputs.rows.source()
        self._numbers = np.arange(len(groups))
        self._n_rows = inputs.trace.n_tokens if inputs.routing is not None else 1
        self._factors = scenario.engine.factors(scenario.seed, number) if scenario.engine.jitter else None
        self._reporting = getattr(scenario.request_router, "period", 0.0) > 0
        self._split: Callable[[Batch], list[Batch]] = halves if scenario.overlap == "two_batch" else lambda b: [b]

    def _new_clock(self) -> Any:
        return _clock(self._scenario, self.network)

    @property
    def now(self) -> float:
        """The island's time, seconds."""
        return self._clock.now

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits here."""
        return any(len(group.running) or group.n_waiting for group in self.groups)

    def add(self, request: int, group: int) -> None:
        """Let *request*, which has arrived, wait in *group*."""
        if not self.busy:
            self.wait_until(float(self._live.arrival_s[request]))
        self._live.queued_s[request] = self.now
        self.groups[group].add(request)

    def wait_until(self, time_s: float) -> None:
        """Let time pass to *time_s* without a step, but for experts that move meanwhile."""
        self.between_steps()
        ready_s = self.replacing.ready_s if self.replacing is not None else np.inf
        if ready_s < time_s:
            self._clock.wait_until(ready_s)
            self.between_steps()
        self._clock.wait_until(time_s)

    def between_steps(self) -> None:
        """Let experts move, if any do."""
        if self.replacing is not None:
            placement = self.replacing.between_steps(self._clock)
            if placement is not None:
                self.costs.place(placement)

    def step(self) -> np.ndarray | None:
        """Run one forward pass; return the requests that are done, or None if the scheduler runs nothing.

        If the engine schedules asynchronously, the step after it is planned as it begins.
        """
        planned = self._planned or self._plan()
        if planned is None:
            return None
        batch = self._batch(planned)
        facts, reached = self._facts(batch), self._live.reached[batch.prefill]
        stepped = [group.advance(*work) for group, work in zip(self.groups, planned, strict=True)]
        self._note_peak()
        self._planned = self._plan() if self._scenario.engine.asynchronous else None
        costs = [self.costs.step(part, half) for half, part in enumerate(self._split(batch))]
        if self.offload is not None:
            self.offload.put(costs[0], batch, self.now)
        self._shake(costs)
        starts = self._clock.run(costs)
        facts |= {"end_s": self.now, "load_max_over_mean": sum(c.load_max_over_mean for c in costs) / len(costs)}
        facts |= spent(costs, self.now - facts["start_s"])
        self.record.add(facts | self._needs.of(batch, costs, reached), costs, starts)
        if self.replacing is not None:
            self.replacing.saw(batch)
        return self._finish(stepped)

    def _shake(self, costs: list[StepCost]) -> None:
        """Let a step take the random share more or less that ``engine.jitter`` asks for."""
        if self._factors is not None:
            factor = next(self._factors)
            for cost in costs:
                cost.seconds *= factor

    def _note_peak(self) -> None:
        self.peak = [max(p, g.pool.capacity - g.pool.free) for p, g in zip(self.peak, self.groups, strict=True)]

    def _plan(self) -> list[Work] | None:
        """Return what each group runs next; None if nobody runs anything."""
        planned = [self._scenario.scheduler.plan(group) for group in self.groups]
        requests = np.concatenate([requests for requests, _ in planned])
        loops.note_time(requests, self._live.scheduled_s, self.now)
        return planned if len(requests) else None

    def _facts(self, batch: Batch) -> dict[str, Any]:
        """Return what the record says of a step that begins."""
        groups = self.groups
        return {"start_s": self.now, "end_s": self.now, "prefill_tokens": batch.n_prefill_tokens,
                "decode_tokens": len(batch.decode), "decode_rows": len(set(batch.decode_rows.tolist())),
                "running": sum(len(g.running) for g in groups), "waiting": sum(g.n_waiting for g in groups),
                "kv_tokens": sum(int(self._live.computed[g.running].sum()) for g in groups)}

    def _batch(self, planned: list[Work]) -> Batch:
        """Return the tokens of the step."""
        live, rows = self._live, self._rows
        rows.next_step()
        requests = np.concatenate([r for r, _ in planned])
        tokens = np.concatenate([t for _, t in planned])
        group = np.repeat(self._numbers, [len(r) for r, _ in planned])
        past, sampled, decodes = loops.kinds(requests, tokens, live.prompt, live.output, live.produced, live.computed)
        pad_group, pad_rows = self._padding(np.bincount(group, tokens, len(self.groups)).astype(np.int64))
        if np.count_nonzero(decodes) == len(decodes):
            none = requests[:0]
            prefills = (none, none, none, sampled[:0], none, none)
        else:
            p, d = np.flatnonzero(~decodes), np.flatnonzero(decodes)
            prompts = requests[p]
            prefills = (prompts, tokens[p], past[p], sampled[p], group[p],
                        rows.span(prompts, live.prompt[prompts], past[p], tokens[p]))
            requests, past, group = requests[d], past[d], group[d]
        return Batch(*prefills, requests, past + 1, group, rows.decode(requests, past - live.prompt[requests]),
                     pad_group, pad_rows)

    def _padding(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return group and trace row of every token that fills up a step of *tokens* [G] to a captured size."""
        group = np.repeat(self._numbers, self._scenario.engine.padded(tokens) - tokens)
        return group, self._rows.padding(len(group), self._n_rows)

    def _finish(self, stepped: list[np.ndarray]) -> np.ndarray:
        """Note the tokens that have come, of the requests *stepped* of each group."""
        live, all_done = self._live, []
        for group, requests in zip(self.groups, stepped, strict=True):
            if len(requests):
                loops.note_time(requests, live.first_token_s, self.now)
                all_done.append(group.complete(requests))
            if self._reporting:
                group.report(self.now)
        done = np.concatenate(all_done) if all_done else np.empty(0, np.int64)
        live.finish_s[done] = self.now
        return done


def _offload(inputs: Inputs, operators: Pricing) -> Offload | None:
    """Return the expert caches that *inputs*' scenario asks for."""
    if inputs.scenario.cache is None:
        return None
    from moesim.sim.offload import Offload  # half a second, which other runs need not wait

    return Offload(inputs, operators)


def _first_devices(scenario: Scenario) -> np.ndarray:
    """Return the first device of the stage of each layer, and of what closes a step: int64 [layers + 1]."""
    stage = np.repeat(np.arange(scenario.parallelism.pp), [len(layers) for layers in scenario.stages])
    return np.append(stage, stage[-1]) * scenario.stage_size


def _clock(scenario: Scenario, network: Network) -> StepClock | EventClock:
    """Return the clock that *scenario* asks for; links are only watched where collectives can meet on them."""
    n, tp, online = scenario.hardware.n_devices, scenario.parallelism.tp, scenario.online
    if scenario.detail == "steps":
        return StepClock(n, tp)
    shared = (scenario.overlap != "none" or scenario.background is not None
              or online is not None and not online.blocking)
    return EventClock(n, tp, network if shared else None, background(scenario, network))
