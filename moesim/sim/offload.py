"""Experts below the devices' memory: what a step finds there, what becomes of the rest, and how long layers wait.

Hits and misses are those of a replay in the contract ``event`` (``moesim.memory``): what a layer's tokens choose on a
device is compared with what its cache holds as the layer begins. What becomes of what is missed a part decides
(``cache.miss``). What is fetched comes over the link of the tier below, expert after expert; the layer's experts, hits
too, run when the last has come (one grouped kernel). Every miss is paid, first loads too: caches begin empty, but for
what a policy holds from the beginning (``static``). Weights are only read: what leaves is dropped, the tier below has
all experts all the time.

``Offload.put`` is the order of all this; docs/background/architecture.md has a picture of it.

Letters: M layers with experts, E experts of each, H holders of experts (devices, or sets of devices that share each
expert), D devices, S slots of a holder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moesim.memory import events_of
from moesim.memory.job import Forecast
from moesim.memory.missed import Fate
from moesim.scenario import Scenario
from moesim.sim.ahead import Ahead
from moesim.sim.at_host import AtHost, waits
from moesim.sim.caches import Answer, Caches
from moesim.sim.copying import Copies, tiers
from moesim.sim.cost import INDEX, Batch, StepCost, block
from moesim.sim.inputs import Inputs
from moesim.sim.missing import Facts
from moesim.sim.operators import Operators, Pricing
from moesim.sim.rerouting import Reroute
from moesim.units import pretty


class _Settled(NamedTuple):
    """Say what a step finds and what becomes of the rest.

    used     experts that have tokens, bool [M, H, S]
    there    those of them that are on their device as their layer begins, bool [M, H, S]
    fate     of the others
    fetched  share of their bytes that comes, [M, H, S]
    answer   of the caches
    """

    used: np.ndarray
    there: np.ndarray
    fate: Fate
    fetched: np.ndarray
    answer: Answer

    def tally(self) -> dict[str, float]:
        """Return hits and misses, as columns of ``steps``: what is there but comes again is a miss."""
        misses = int(np.count_nonzero(self.used & ~self.there | (self.fetched > 0)))
        return {"expert_hits": int(np.count_nonzero(self.used)) - misses, "expert_misses": misses}


class Offload:
    """The caches of an island's devices; *operators* say how long devices compute.

    ``memory``: bytes that have come to each device [D], by column of the table. Raises ``ConfigError`` if capacity or
    policy do not fit the placement.
    """

    def __init__(self, inputs: Inputs, operators: Pricing):
        self._scenario = scenario = inputs.scenario
        assert scenario.cache is not None, "asked only of scenarios with a cache"
        self._cache, model = scenario.cache, scenario.model
        self._moe, self._rows = np.array(model.moe_layer_indices), block(np.array(model.moe_layer_indices))
        self._shared_by = scenario.parallelism.expert_tp
        self._bytes = model.expert_bytes / self._shared_by
        self._link = Copies(scenario.hardware, self._bytes)
        self._part = scenario.cache.miss
        self._host = AtHost(scenario) if "host" in self._part.needs else None
        self._operators = operators
        if scenario.hardware.device.processors and scenario.profile is None:
            self._operators = Operators(scenario)  # Selecting adds up what it is asked for, and has been asked
        self._facts = Facts(inputs, self._part.needs, self._link, self._host, self._operators)
        replicas = inputs.placement.replicas.transpose(2, 0, 1)  # [H, M, E]
        profile = events_of(inputs.profile) if inputs.profile is not None else None
        self._caches = Caches(scenario, scenario.cache, "cache", self._bytes, replicas, profile)
        self._low = np.zeros(self._caches.shape, bool)  # experts that are there in few bits
        self.reroute = Reroute.of(inputs, replicas, self._caches) if scenario.cache.rerouted else None
        _check_room(scenario, replicas)
        self._ahead = Ahead.of(inputs, self._caches, replicas, profile)
        columns = ["fetched_bytes", *(self._ahead.columns if self._ahead else ())]
        self.memory = {column: np.zeros(scenario.hardware.n_devices) for column in columns}

    def put(self, cost: StepCost, batch: Batch, now: float) -> None:
        """Ask for the experts that *cost* has tokens for; put what becomes of them, and how long it takes, into it.

        The step begins at *now*. What the host computes it computes while the device has its own.
        """
        tokens = cost.expert_tokens
        assert tokens is not None, "asked only of models with experts"
        expected = self._ahead.expected(tokens, batch) if self._ahead else None
        found = self._settled(cost, batch, expected)
        cost.spent |= found.tally() | (self.reroute.tally() if self.reroute else {}) | _choices(tokens, found.fate)
        if found.fate.elsewhere is not None:
            own_s = self._operators.experts(tokens - found.fate.elsewhere)
            cost.put("experts", self._rows, np.repeat(own_s, self._shared_by, axis=1))
        wait_s = np.zeros((len(self._moe), cost.seconds.shape[2]))
        if self._part.fetches:
            wait_s = self._copied(cost, found, now)
        if self._host is not None:
            wait_s = self._waited(self._host, cost, found.fate, wait_s)
        cost.put("fetch", self._rows, wait_s)

    def _settled(self, cost: StepCost, batch: Batch, expected: Sequence[Forecast] | None) -> _Settled:
        """Return what is there and what becomes of the rest; caches have what is *expected* and what is fetched.

        Caches decide first what they keep; if the part does not want ``whole`` of what is missed, it decides first.
        """
        assert cost.expert_tokens is not None, "asked only of models with experts"
        used, fresh = cost.expert_tokens > 0, not len(batch.decode) and not batch.prefill_past.any()  # [M, H, S]
        part, answer = self._part, None
        if part.whole:
            answer = self._ask(used, fresh, expected)
            self._low[answer.loaded.cells] = False
        there = self._look(used) if answer is None else answer.there
        fate: Fate = part.decide(self._facts.missed(cost, batch, used & ~there, self._low & there))
        fetched = np.zeros(used.shape) if fate.fetched is None else fate.fetched
        if answer is None:
            answer = self._ask(there & used | (fetched > 0), fresh, None)
        if fate.low is not None:
            self._low = np.where(fetched > 0, fetched < 1, self._low)
        return _Settled(used, there, fate, fetched, answer)

    def _copied(self, cost: StepCost, found: _Settled, now: float) -> np.ndarray:
        """Return how long layers wait for copies, [M, D], and note them."""
        n, whole = (np.repeat(count, self._shared_by, axis=1)  # [M, D]
                    for count in (np.count_nonzero(found.fetched, axis=2), found.fetched.sum(axis=2)))
        self.memory["fetched_bytes"] += whole.sum(axis=0) * self._bytes
        cost.spent["fetched_bytes"] = float(whole.sum()) * self._bytes
        if self._ahead is None:
            return self._link.seconds(n, None if (n == whole).all() else whole / np.maximum(n, 1))
        came = self._ahead.came(cost, found.fetched, found.answer, now)
        for column, of_devices in came.bytes.items():
            self.memory[column] += of_devices
        cost.spent["fetched_bytes"] += float(came.bytes["fetched_bytes"].sum())
        cost.spent |= came.spent
        return came.waits

    def _waited(self, host: AtHost, cost: StepCost, fate: Fate, copies_s: np.ndarray) -> np.ndarray:
        """Return how long layers wait for copies, and for what the *host* computes: [M, D]."""
        assert fate.host is not None, "asked only of parts that use the host"
        now_s, works_s = host.seconds(fate.host)
        own_s = cost.seconds[self._moe, INDEX["shared"]] + cost.seconds[self._moe, INDEX["experts"]]
        if fate.deferred is None:
            wait_s = np.maximum(copies_s, now_s - own_s)
        else:
            later_s, more_s = host.seconds(fate.deferred)
            wait_s, works_s = waits(now_s, later_s, own_s, self._between(cost), copies_s), works_s + more_s
        cost.spent["host_busy_share"] = float(works_s.sum(axis=0).mean())  # seconds: the record divides by the step's
        return wait_s

    def _look(self, used: np.ndarray) -> np.ndarray:
        """Return which of the experts *used* [M, H, S] are there as the step begins."""
        there, cells = np.zeros(used.shape, bool), np.nonzero(used)
        there[cells] = self._caches.holds(*cells)
        return there

    def _ask(self, wanted: np.ndarray, fresh: bool, expected: Sequence[Forecast] | None) -> Answer:
        """Ask the caches for the experts *wanted* [M, H, S], unless they are more at once than one may take."""
        over = self._caches.beyond(wanted) if self._cache.overflow == "refuse" else None
        if over is not None:
            holder, layer, room = over
            raise self._scenario.error("cache.capacity", (
                f"a step uses {wanted[layer, holder].sum()} experts of layer {self._moe[layer]} at once on device "
                f"{holder * self._shared_by}, whose cache holds {room}; give at least that, run fewer "
                f"tokens at a time (scheduler), or cache.overflow: stream (what does not fit passes through)"))
        return self._caches.ask(wanted, fresh, expected)

    def _between(self, cost: StepCost) -> np.ndarray:
        """Return the seconds of work of each device from one layer's ``fetch`` to the next one's, [M - 1, D]."""
        at = INDEX["fetch"]
        done = np.cumsum(cost.seconds.sum(axis=1), axis=0) - cost.seconds[:, at:].sum(axis=1)  # as fetch begins
        return np.diff(done[self._moe], axis=0)


def _choices(tokens: np.ndarray, fate: Fate) -> dict[str, int]:
    """Return the choices of the step's tokens that do not get an expert as it is on its device, by what they get."""
    found = {"skipped": fate.dropped, "deferred": fate.deferred, "host": fate.host,
             "low_precision": None if fate.low is None else np.where(fate.low, tokens, 0)}
    counts = {f"{what}_choices": int(of.sum()) for what, of in found.items() if of is not None}
    return {"expert_choices": int(tokens.sum())} | counts if counts else {}


def _check_room(scenario: Scenario, replicas: np.ndarray) -> None:
    """Raise ``ConfigError`` if the tier below is too small for the experts placed above it, [H, M, E]."""
    assert scenario.cache is not None, "asked only of scenarios with a cache"
    tier, per_device = tiers(scenario.hardware)[scenario.cache.depth]
    holders = 1 if per_device else scenario.hardware.devices_per_node // scenario.parallelism.expert_tp
    sets = replicas.reshape(-1, holders, *replicas.shape[1:]).any(axis=1)  # each expert once
    need = float(sets.sum(axis=(1, 2)).max()) * scenario.model.expert_bytes
    need = need / scenario.parallelism.expert_tp if per_device else need
    if need > tier.capacity:
        raise scenario.error("cache", (
            f"the experts need {pretty(need, 'byte', 4)} of {tier.name}, which has {pretty(tier.capacity, 'byte', 4)} "
            f"({'a device' if per_device else 'a node'}): all of them stay there; give it more, or use more devices"))
