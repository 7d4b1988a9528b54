"""The core loop: let requests arrive, ask the scheduler, run the step, note what happened."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from moesim import kernels
from moesim.network import Network
from moesim.registry import name_of
from moesim.result import Result
from moesim.scenario import Scenario, usable_bytes
from moesim.sim.background import background
from moesim.sim.cost import Batch
from moesim.sim.events import EventClock
from moesim.sim.expert_parallel import MODES
from moesim.sim.halves import halves
from moesim.sim.inputs import Inputs, prepare
from moesim.sim.notes import notes
from moesim.sim.queue import Pools, Queue
from moesim.sim.record import Record
from moesim.sim.replacing import Replacing, expert_slots
from moesim.sim.steps import StepClock
from moesim.units import pretty


def simulate(scenario: Scenario) -> Result:
    """Run *scenario* and return its tables. The same scenario and seed give the same tables.

    Raises ``ConfigError`` if the inputs do not fit together.
    """
    return Engine(prepare(scenario)).run()


class Engine:
    """One run: live requests, step costs, a clock and a record."""

    def __init__(self, inputs: Inputs):
        self._inputs = inputs
        self._scenario = scenario = inputs.scenario
        machine = scenario.hardware
        network = Network.of(machine, scenario.balancing, scenario.seed)
        self._memory, pools = _memory(inputs)
        self._queue = Queue(inputs, pools)
        self._costs = MODES[scenario.parallelism.mode](inputs, network)
        self._clock = _clock(scenario, network)
        self._split: Callable[[Batch], list[Batch]] = halves if scenario.overlap == "two_batch" else lambda b: [b]
        self._record = Record(network, scenario.span_steps)
        self._replacing = Replacing(inputs, network, self._record) if scenario.placement.online else None
        self._peak = np.zeros(len(pools.capacity), np.int64)
        self._pools = pools

    def run(self) -> Result:
        """Serve every request; return the tables."""
        while not self._queue.done:
            self.advance()
        return self._result()

    def advance(self) -> None:
        """Run one step or, if nothing can run, let time pass until the next request arrives."""
        if self._replacing is not None:
            placement = self._replacing.between_steps(self._clock)
            if placement is not None:
                self._costs.place(placement)
        self._queue.arrive(self._clock.now)
        plan = self._scenario.scheduler.plan(self._queue.view(), self._scenario.request_router)
        if len(plan.prefill) + len(plan.decode):
            self._step(plan)
        else:
            self._idle()

    def steps(self) -> pd.DataFrame:
        """Return the table of the steps so far."""
        return self._record.steps()

    def _idle(self) -> None:
        """Wait for the next request to arrive."""
        if not np.isfinite(self._queue.next_arrival_s):
            raise RuntimeError("the scheduler runs nothing although requests wait and none is due to arrive")
        until = np.inf if self._replacing is None else self._replacing.ready_s
        self._clock.wait_until(min(self._queue.next_arrival_s, until))

    def _step(self, plan: Any) -> None:
        """Run one forward pass of the batch in *plan*."""
        queue, clock = self._queue, self._clock
        batch = queue.start(plan)
        self._peak = np.maximum(self._peak, queue.reserved)
        facts = {"start_s": clock.now, "end_s": clock.now, "prefill_tokens": batch.n_prefill_tokens,
                 "decode_tokens": len(batch.decode), "decode_rows": len(np.unique(batch.decode_rows)),
                 "running": len(queue.running) + len(queue.admitted), "waiting": len(queue.waiting),
                 "kv_tokens": queue.kv_tokens}
        costs = [self._costs.step(part, half) for half, part in enumerate(self._split(batch))]
        starts = clock.run(costs)
        facts |= {"end_s": clock.now, "load_max_over_mean": float(np.mean([c.load_max_over_mean for c in costs]))}
        self._record.add(facts, costs, starts)
        queue.finish_step(batch, clock.now)
        if self._replacing is not None:
            self._replacing.saw(batch)

    def _result(self) -> Result:
        queue = self._queue
        requests = pd.DataFrame({
            "request": np.arange(len(queue.arrival_s)), "group": queue.group, "arrival_s": queue.arrival_s,
            "first_token_s": queue.first_token_s, "finish_s": queue.finish_s, "prompt_tokens": queue.prompt,
            "output_tokens": queue.output, "ttft_s": queue.first_token_s - queue.arrival_s,
            "tpot_s": np.where(queue.output > 1, queue.finish_s - queue.first_token_s, np.nan)
            / np.maximum(queue.output - 1, 1),
            "e2e_s": queue.finish_s - queue.arrival_s})
        memory = self._memory.copy()
        per_token = self._scenario.model.kv_bytes_per_token_on_device(self._scenario.parallelism.tp)
        group = memory["device"] // self._scenario.parallelism.tp
        memory["kv_peak_bytes"] = self._peak[self._pools.of_group[group]] * per_token
        links = self._record.links(float(queue.finish_s.max()))
        steps = self._record.steps()
        meta = _meta(self._inputs, notes(self._inputs, steps, links, self._costs.operators, self._costs.network))
        meta["replacements"] = [] if self._replacing is None else self._replacing.log
        return Result(requests, steps, self._record.spans(), links, memory, meta)


def _clock(scenario: Scenario, network: Network) -> StepClock | EventClock:
    """Return the clock that *scenario* asks for; links are only watched where collectives can meet on them."""
    n, tp, online = scenario.hardware.n_devices, scenario.parallelism.tp, scenario.placement.online
    if scenario.detail == "steps":
        return StepClock(n, tp)
    shared = (scenario.overlap != "none" or scenario.background is not None
              or online is not None and not online.blocking)
    return EventClock(n, tp, network if shared else None, background(scenario, network))


def _memory(inputs: Inputs) -> tuple[pd.DataFrame, Pools]:
    """Return the bytes of weights and room for KV per device, and the KV pools of the groups.

    With ``context_coherent`` every device holds the KV of all requests: one pool, what the fullest device has room for.
    """
    scenario, model, tp = inputs.scenario, inputs.scenario.model, inputs.scenario.parallelism.tp
    experts = inputs.placement.device_bytes(model.expert_bytes)
    kept = experts
    if scenario.placement.online is not None:
        kept = np.full(len(experts), expert_slots(inputs.placement).sum() * model.expert_bytes)
    room = usable_bytes(scenario) - model.non_expert_bytes(tp) - kept
    worst = int(np.argmin(room))
    if room[worst] <= 0:
        gap = pretty(-room[worst], "byte")
        raise scenario.error("placement", f"device {worst} has {gap} too little memory for the experts placed on it; "
                                          f"spread them more evenly, or use larger devices")
    table = pd.DataFrame({"device": np.arange(len(room)), "non_expert_bytes": model.non_expert_bytes(tp),
                          "expert_bytes": experts, "kv_capacity_bytes": room})
    tokens = np.floor(room.reshape(-1, tp).min(axis=1) / model.kv_bytes_per_token_on_device(tp)).astype(np.int64)
    if scenario.parallelism.mode == "context_coherent":
        return table, Pools(tokens.min(keepdims=True), np.zeros(len(tokens), np.int64))
    return table, Pools(tokens, np.arange(len(tokens)))


def _meta(inputs: Inputs, warnings: list[str]) -> dict[str, Any]:
    """Return what a reader needs to trust and to repeat the run."""
    scenario, trace = inputs.scenario, inputs.trace
    device = scenario.hardware.device
    packages = ("moesim", "numpy", "pandas", "scipy", "numba", "simpy")
    return {
        "scenario": scenario.dump(), "seed": scenario.seed, "warnings": warnings,
        "trace": {k: trace.meta.get(k) for k in ("model", "origin", "licence", "synthetic")}
        | {"join": scenario.trace.join, "evaluation_tokens": trace.n_tokens},
        "kernels": _kernels(scenario),
        "placement": {k: v for k, v in inputs.placement.info.items() if k != "seconds"},  # results hold no wall time
        "devices": {"count": scenario.hardware.n_devices, "idle_power_w": device.idle_power,
                    "busy_power_w": device.busy_power},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages}}


def _kernels(scenario: Scenario) -> dict[str, Any]:
    """Return which kernel model ran and, if it is the one fitted to the device, the errors that its file states."""
    device = scenario.hardware.device
    fitted = kernels.load(device.kernels) if device.kernels else None
    about: dict[str, Any] = {"model": name_of(scenario.kernels), "file": "", "transferred_from": "", "accuracy": {}}
    if fitted is not None and fitted.model == scenario.kernels:
        about |= {"file": device.kernels} | {key: fitted.info[key] for key in ("transferred_from", "accuracy")}
    return about
