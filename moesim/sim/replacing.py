"""Experts placed again while requests are served: from the routing of the last steps, over the links that tokens use.

Layer by layer, as engines do it (SGLang's expert_location_updater.py, vLLM's rebalance_execute.py): one exchange of
weights per layer, timed as the collective that it is, an all-to-all of whole experts. The engine stands still
meanwhile, or the exchanges run beside the steps, one at a time (vLLM's use_async).

Letters: L layers with experts, E experts, D devices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import simpy

from moesim import placement as placing
from moesim.network import Messages, Network
from moesim.placement.objective import Profile, device_load, load_max_over_mean
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
        online = inputs.scenario.online
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
            self._change(move.left, move.target)
            move.left.clear()
        if not move.left and move.on_links is None:
            entry |= {"took_s": clock.now - entry["begun_s"], "from_step": self._steps}
            self._move = None
        return None if self._here is before else self._here

    def _beside(self, move: _Move, clock: EventClock) -> None:
        """Let the layer whose weights have arrived change over, and the next exchange begin."""
        if move.on_links is not None and move.on_links[1].processed:
            self._change((move.on_links[0],), move.target)
            move.on_links = None
        if move.on_links is None and move.left:
            exchange = move.left.popleft()
            move.on_links = exchange, clock.send(exchange.launch)

    def _change(self, exchanges: Collection[_Exchange], target: Placement) -> None:
        """Let the layers of *exchanges*, which have ended, be placed as in *target*."""
        if not exchanges:
            return
        replicas = self._here.replicas.copy()
        for layer, _, loads in exchanges:
            replicas[layer] = target.replicas[layer]
            self._record.add_bytes("migration", loads)
        self._here = Placement(replicas, sizes=target.sizes)

    def _decide(self, now: float) -> _Move:
        """Ask the solver where the experts of the window should be; note the answer, return what it takes to get there.
        """
        online, trace = self._online, self._inputs.trace
        window = Profile.of(RoutingTrace.from_arrays(  # what the tokens of these steps chose, and nothing else
            trace.chosen[np.concatenate(self._window)], trace.n_experts, trace.top_k,
            experts_per_layer=trace.sizes.tolist()))
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

    def _solve(self, window: Profile) -> Placement:
        """Return the solver's placement. Raises ``ConfigError`` if there is none, or a device has no room for it."""
        scenario, machine = self._inputs.scenario, self._inputs.scenario.hardware
        try:
            target = placing.solve(window, machine.n_devices, solver=self._online.solver or scenario.placed.solver,
                                   seed=scenario.seed, previous=self._here,
                                   devices_per_node=machine.devices_per_node if machine.nodes > 1 else None)
        except ValueError as error:
            raise scenario.error("placement.online", f"after {self._steps} steps: {error}") from None
        slots = expert_slots(self._inputs.placement)
        over = target.counts() - slots[:, None]
        layer, device = np.unravel_index(over.argmax(), over.shape)
        if over[layer, device] > 0:
            size = scenario.model.expert_bytes
            raise scenario.error("placement.online", (
                f"after {self._steps} steps: layer {layer}: device {device} would hold "
                f"{target.counts()[layer, device]} experts and keeps room for {slots[layer]}, "
                f"{pretty(over[layer, device] * size, 'byte', 4)} too little; let the solver use as many replicas as "
                f"the first placement, as evenly spread"))
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


def expert_slots(first: Placement) -> np.ndarray:
    """Return how many experts of each layer every device keeps room for, int64 [L]: as many as the fullest one has.

    *first*: where the experts are as a run begins. Engines that place again have equally many slots on all devices.
    """
    return first.counts().max(axis=1)


def _load(window: Profile, placement: Placement) -> float:
    """Return the load max/mean of all tokens of *window* together, mean over layers."""
    return float(load_max_over_mean(device_load(window.counts, placement.replicas)).mean())


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
