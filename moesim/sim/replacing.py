"""Experts placed again while requests are served: from the routing of the last steps, over the links that tokens use.

Layer by layer, as engines do it (SGLang's expert_location_updater.py, vLLM's rebalance_execute.py): one exchange of
weights per layer, timed as the collective that it is, an all-to-all of whole experts. The engine stands still
meanwhile, or the exchanges run beside the steps, one at a time (vLLM's use_async).

Letters: L layers with experts, E experts, D devices.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import simpy

from moesim import placement as placing
from moesim.network import Messages, Network
from moesim.placement.objective import device_load, load_max_over_mean
from moesim.placement.placement import Placement
from moesim.sim.cost import Batch
from moesim.sim.events import EventClock
from moesim.sim.inputs import Inputs
from moesim.sim.links import Launch
from moesim.sim.record import Record
from moesim.sim.steps import StepClock
from moesim.sim.traffic import of_exchange
from moesim.trace import RoutingTrace
from moesim.units import pretty

HOW = "flat"  # an expert goes straight to its device, all of a layer in one grouped send and receive, as in engines


class _Exchange(NamedTuple):
    """The weights of a layer that move: the collective, and the bytes that it puts on links [links]."""

    layer: int
    launch: Launch
    loads: np.ndarray


@dataclass
class _Move:
    """A placement on its way, *left* to exchange from *ready_s* on; *on_links*: the exchange that has begun, its end.
    """

    target: Placement
    ready_s: float
    left: deque[_Exchange]
    on_links: tuple[_Exchange, simpy.Event] | None = None


class Replacing:
    """What has been decided and what is under way; ``log``: one entry per decision (docs/reference/result.md)."""

    def __init__(self, inputs: Inputs, network: Network, record: Record):
        online = inputs.scenario.placement.online
        assert online is not None, "made only for scenarios that place experts again"
        self._inputs, self._network, self._record, self._online = inputs, network, record, online
        self._here = inputs.placement
        self._window: deque[np.ndarray] = deque(maxlen=online.window or online.every)  # trace rows of each step
        self._steps, self._due = 0, online.every
        self._move: _Move | None = None
        self.log: list[dict[str, Any]] = []

    @property
    def ready_s(self) -> float:
        """When weights that wait for the solver begin to move, seconds; infinite if none do."""
        return self._move.ready_s if self._move and self.log[-1]["begun_s"] is None else np.inf

    def saw(self, batch: Batch) -> None:
        """Note the routing of a step that has run."""
        self._window.append(np.concatenate([batch.prefill_rows, batch.decode_rows]))
        self._steps += 1

    def between_steps(self, clock: StepClock | EventClock) -> Placement | None:
        """Do what is due between two steps; return where the experts are from now on, or None if as before.

        Raises ``ConfigError`` if the solver cannot place the experts or a device has no room for them.
        """
        if self._move is None and self._steps >= self._due:
            self._move = self._decide(clock.now)
        move, before = self._move, self._here
        if move is None or clock.now < move.ready_s:
            return None
        entry = self.log[-1]
        entry["begun_s"] = clock.now if entry["begun_s"] is None else entry["begun_s"]
        if isinstance(clock, EventClock) and not self._online.blocking:
            self._beside(move, clock)
        else:
            for exchange in move.left:
                clock.stand_still(exchange.launch)
                self._change(exchange, move.target)
            move.left.clear()
        if not move.left and move.on_links is None:
            entry |= {"took_s": clock.now - entry["begun_s"], "from_step": self._steps}
            self._move = None
        return None if self._here is before else self._here

    def _beside(self, move: _Move, clock: EventClock) -> None:
        """Let the layer whose weights have arrived change over, and the next exchange begin."""
        if move.on_links is not None and move.on_links[1].processed:
            self._change(move.on_links[0], move.target)
            move.on_links = None
        if move.on_links is None and move.left:
            exchange = move.left.popleft()
            move.on_links = exchange, clock.send(exchange.launch)

    def _change(self, exchange: _Exchange, target: Placement) -> None:
        """Let the layer of *exchange* be placed as in *target*."""
        replicas = self._here.replicas.copy()
        replicas[exchange.layer] = target.replicas[exchange.layer]
        self._here = Placement(replicas)
        self._record.add_bytes("migration", exchange.loads)

    def _decide(self, now: float) -> _Move | None:
        """Ask the solver where the experts of the window should be; return None if all stay."""
        online = self._online
        trace = self._inputs.trace  # of the window's steps: what their tokens chose, and nothing else
        window = RoutingTrace.from_arrays(trace.chosen[np.concatenate(self._window)], trace.n_experts, trace.top_k)
        load, target = _load(window, self._here), self._here
        if load >= online.imbalance:
            target = self._solve(window)
        moved = int((target.replicas & ~self._here.replicas).sum())
        self.log.append({
            "step": self._steps, "at_s": now, "window_tokens": window.n_tokens, "window_load_max_over_mean": load,
            "predicted_load_max_over_mean": _load(window, target), "moved": moved,
            "bytes": moved * self._inputs.scenario.model.expert_bytes, "begun_s": None, "took_s": None,
            "from_step": None})
        self._due = self._steps + online.every
        return _Move(target, now + online.solve_time, self._exchanges(target))

    def _solve(self, window: RoutingTrace) -> Placement:
        """Return the solver's placement. Raises ``ConfigError`` if there is none, or a device has no room for it."""
        scenario, machine = self._inputs.scenario, self._inputs.scenario.hardware
        try:
            target = placing.solve(window, machine.n_devices, solver=self._online.solver or scenario.placement.solver,
                                   seed=scenario.seed, previous=self._here,
                                   devices_per_node=machine.devices_per_node if machine.nodes > 1 else None)
        except ValueError as error:
            raise scenario.error("placement.online", f"after {self._steps} steps: {error}") from None
        # Layers change over one by one: on its way a device holds the old experts of some layers, the new of others.
        need = np.maximum(target.counts(), self._here.counts()).sum(axis=0) * scenario.model.expert_bytes
        kept = kept_bytes(self._inputs)
        worst = int((need - kept).argmax())
        if need[worst] > kept[worst]:
            size = [pretty(v, "byte", 4) for v in (need[worst], kept[worst], need[worst] - kept[worst])]
            raise scenario.error("placement.online", (
                f"after {self._steps} steps: device {worst} would need {size[0]} for experts and keeps {size[1]} for "
                f"them beside its KV, {size[2]} too little; let the solver use as many replicas as the first placement "
                f"has, and as evenly spread"))
        return target

    def _exchanges(self, target: Placement) -> deque[_Exchange]:
        """Return the exchanges of weights that lead to *target*, layer by layer; there is none for layers that stay."""
        network, size, here = self._network, self._inputs.scenario.model.expert_bytes, self._here.replicas
        messages = Messages(copies(here, target.replicas, network.devices_per_node))
        cost, layers = network.exchange(HOW, messages, size), np.arange(len(here))
        traffic = of_exchange(network, HOW, messages, size, False, (layers, cost.loads))
        return deque(
            _Exchange(int(layer), Launch(float(cost.time_s[layer]), np.flatnonzero(cost.loads[layer]),
                                         partial(traffic.acts, int(layer), 0)), cost.loads[layer])
            for layer in layers[(here != target.replicas).any(axis=(1, 2))])


def kept_bytes(inputs: Inputs) -> np.ndarray:
    """Return what each device keeps for experts, float64 [D]: as many of every layer as the fullest one begins with.

    Engines that place again have equally many slots on all devices, whatever is in them.
    """
    slots = inputs.placement.counts().max(axis=1).sum()
    return np.full(inputs.placement.n_devices, slots * inputs.scenario.model.expert_bytes)


def _load(window: RoutingTrace, placement: Placement) -> float:
    """Return the load max/mean of all tokens of *window* together, mean over layers."""
    return float(load_max_over_mean(device_load(window.counts(), placement.replicas)).mean())


def copies(old: np.ndarray, new: np.ndarray, per_node: int) -> np.ndarray:
    """Return how many experts of a layer each device (row) sends each other one (column), int32 [L, D, D].

    From replicas *old* to *new* (bool [L, E, D]). An expert that is new on a device comes from a device of its node
    that holds it, if there is one (as in SGLang), else from any; among several from the one that has sent least of the
    layer so far, the lowest-numbered if that is even.
    """
    sent = np.zeros((len(old), old.shape[2], old.shape[2]), np.int32)
    for layer, expert, device in np.argwhere(new & ~old):
        holders = np.flatnonzero(old[layer, expert])
        near = holders[holders // per_node == device // per_node]
        holders = near if len(near) else holders
        sent[layer, holders[sent[layer, holders].sum(axis=1).argmin()], device] += 1
    return sent
