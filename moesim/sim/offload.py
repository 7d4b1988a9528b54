"""Experts below the devices' memory: what a step finds there, what becomes of the rest, and how long layers wait.

Hits and misses are those of a replay in the contract ``event`` (``moesim.memory``): what a layer's tokens choose on a
device is compared with what its cache holds as the layer begins. What becomes of what is missed a part decides
(``cache.miss``). What is fetched comes over the link of the tier below, expert after expert; the layer's experts, hits
too, run when the last has come (one grouped kernel). Every miss is paid, first loads too: caches begin empty, but for
what a policy holds from the beginning (``static``). Weights are only read: what leaves is dropped, the tier below has
all experts all the time.

Letters: M layers with experts, H holders of experts (devices, or sets of devices that share each expert), D devices,
S slots of a holder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.memory import CacheError, Events, events_of
from moesim.memory.events import on_device
from moesim.memory.job import Forecast
from moesim.memory.live import LiveCache, rooms
from moesim.memory.missed import Fate
from moesim.scenario import Scenario
from moesim.sim.ahead import Ahead
from moesim.sim.at_host import AtHost, waits
from moesim.sim.copying import Copies, tiers
from moesim.sim.cost import INDEX, Batch, StepCost, block
from moesim.sim.inputs import Inputs
from moesim.sim.missing import Facts
from moesim.sim.operators import Operators, Pricing
from moesim.sim.rerouting import Reroute
from moesim.units import pretty


class Offload:
    """The caches of an island's devices. Raises ``ConfigError`` if capacity or policy do not fit the placement."""

    def __init__(self, inputs: Inputs):
        self._scenario = scenario = inputs.scenario
        assert scenario.cache is not None, "asked only of scenarios with a cache"
        self._cache, model = scenario.cache, scenario.model
        self._moe, self._rows = np.array(model.moe_layer_indices), block(np.array(model.moe_layer_indices))
        self._shared_by = scenario.parallelism.expert_tp
        self._bytes = model.expert_bytes / self._shared_by
        self._link = Copies(scenario.hardware, self._bytes)
        self._part = scenario.cache.miss
        self._host = AtHost(scenario) if "host" in self._part.needs else None
        self._plain = None  # Selecting adds up what it is asked for, and has been asked
        if scenario.hardware.device.processors and scenario.profile is None:
            self._plain = Operators(scenario)
        self._facts = Facts(inputs, self._part.needs, self._link, self._host)
        self.memory = {"fetched_bytes": np.zeros(scenario.hardware.n_devices)}  # of each device
        replicas = inputs.placement.replicas.transpose(2, 0, 1)  # [H, M, E]
        profile = events_of(inputs.profile) if inputs.profile is not None else None
        self._caches = [self._made(held, profile) for held in replicas]
        self._low = np.zeros((len(self._moe), len(replicas), int(replicas.sum(axis=2).max())), bool)  # in few bits
        self.reroute = Reroute.of(inputs, replicas, self._caches) if scenario.cache.rerouted else None
        _check_room(scenario, replicas)
        self._ahead = Ahead.of(inputs, self._caches, replicas, profile)

    def _made(self, held: np.ndarray, profile: Events | None) -> LiveCache | None:
        """Return the caches of a device with the experts *held* [M, E]; None if it has none."""
        cache, placed = self._cache, held.sum(axis=1)
        if not placed.any():
            return None
        try:
            found = rooms(cache.capacity, cache.scope, placed, self._bytes)
        except CacheError as error:
            raise self._scenario.error("cache.capacity", str(error)) from None
        try:
            return LiveCache(cache.policy, placed, found, self._scenario.seed,
                             None if profile is None else on_device(profile, held))
        except CacheError as error:
            raise self._scenario.error("cache.policy", str(error)) from None

    def put(self, cost: StepCost, batch: Batch, operators: Pricing, now: float) -> None:
        """Ask for the experts that *cost* has tokens for; put what becomes of them, and how long it takes, into it.

        The step begins at *now*.
        What the host computes instead it computes while the device has its own: *operators* say how long that takes.
        """
        tokens = cost.expert_tokens
        assert tokens is not None, "asked only of models with experts"
        used, fresh = tokens > 0, not len(batch.decode) and not batch.prefill_past.any()  # [M, H, S]
        part, operators = self._part, self._plain or operators
        expected: Sequence[Forecast | None] = [None] * len(self._caches)
        if self._ahead:
            expected = self._ahead.expected(tokens, batch)
        there = self._ask(used, fresh, expected) if part.whole else self._look(used)
        if self._ahead:
            self._low[self._ahead.loaded()] = False
        fate: Fate = part.decide(self._facts.missed(cost, batch, operators, used & ~there, self._low & there))
        fetched = np.zeros(used.shape) if fate.fetched is None else fate.fetched
        if not part.whole:
            self._ask(there & used | (fetched > 0), fresh, expected)
        if fate.low is not None:
            self._low = np.where(fetched > 0, fetched < 1, self._low)
        misses = int(np.count_nonzero(used & ~there | (fetched > 0)))
        cost.spent |= {"expert_hits": int(np.count_nonzero(used)) - misses, "expert_misses": misses}
        if self.reroute is not None:
            cost.spent |= self.reroute.tally()
        cost.spent |= _choices(tokens, fate)
        if fate.elsewhere is not None:
            own_s = operators.experts(tokens - fate.elsewhere)
            cost.put("experts", self._rows, np.repeat(own_s, self._shared_by, axis=1))
        copies_s = np.zeros((len(self._moe), cost.seconds.shape[2]))
        if part.fetches:
            copies_s = self._copied(cost, fetched, now)
        cost.put("fetch", self._rows, copies_s if self._host is None else self._waited(cost, fate, copies_s))

    def _copied(self, cost: StepCost, fetched: np.ndarray, now: float) -> np.ndarray:
        """Return how long layers wait for the copies *fetched* (share of bytes, [M, H, S]), and note them: [M, D]."""
        n, whole = (np.repeat(count, self._shared_by, axis=1)  # [M, D]
                    for count in (np.count_nonzero(fetched, axis=2), fetched.sum(axis=2)))
        self.memory["fetched_bytes"] += whole.sum(axis=0) * self._bytes
        cost.spent["fetched_bytes"] = float(whole.sum()) * self._bytes
        if self._ahead is None:
            return self._link.seconds(n, None if (n == whole).all() else whole / np.maximum(n, 1))
        seconds = self._ahead.seconds(cost, fetched, now)
        self.memory |= self._ahead.memory
        self.memory["fetched_bytes"] += self._ahead.bytes
        cost.spent["fetched_bytes"] += float(self._ahead.bytes.sum())
        return seconds

    def _waited(self, cost: StepCost, fate: Fate, copies_s: np.ndarray) -> np.ndarray:
        """Return how long layers wait for copies, and for what the host computes: [M, D]."""
        assert self._host is not None and fate.host is not None, "asked only of parts that use the host"
        now_s, works_s = self._host.seconds(fate.host)
        own_s = cost.seconds[self._moe, INDEX["shared"]] + cost.seconds[self._moe, INDEX["experts"]]
        if fate.deferred is None:
            wait_s = np.maximum(copies_s, now_s - own_s)
        else:
            later_s, more_s = self._host.seconds(fate.deferred)
            wait_s, works_s = waits(now_s, later_s, own_s, self._between(cost), copies_s), works_s + more_s
        cost.spent["host_busy_share"] = float(works_s.sum(axis=0).mean())  # seconds: the record divides by the step's
        return wait_s

    def _look(self, used: np.ndarray) -> np.ndarray:
        """Return which of the experts *used* [M, H, S] are there as the step begins."""
        there = np.zeros(used.shape, bool)
        for holder, cache in enumerate(self._caches):
            if cache is not None:
                layer, slot = np.nonzero(used[:, holder])
                there[layer, holder, slot] = cache.holds(cache.firsts[layer] + slot)
        return there

    def _ask(self, wanted: np.ndarray, fresh: bool, expected: Sequence[Forecast | None]) -> np.ndarray:
        """Return which of the experts *wanted* [M, H, S] are there as their layer begins; caches admit the others.

        What a holder may have *expected* is there before, if its cache has room.
        """
        there = np.zeros(wanted.shape, bool)
        for holder, cache in enumerate(self._caches):
            if cache is not None:
                there[:, holder] = self._asked(holder, cache, wanted[:, holder], fresh, expected[holder])
        return there

    def _asked(self, device: int, cache: LiveCache, used: np.ndarray, fresh: bool,
               expected: Forecast | None) -> np.ndarray:
        """Return which of the slots *used* [M, S] are on their *device* (a holder)."""
        n_used = used.sum(axis=1)
        over = cache.beyond(n_used) if self._cache.overflow == "refuse" else None
        if over is not None:
            raise self._scenario.error("cache.capacity", (
                f"a step uses {n_used[over]} experts of layer {self._moe[over]} at once on device "
                f"{device * self._shared_by}, whose cache holds {cache.room_of(over)}; give at least that, run fewer "
                f"tokens at a time (scheduler), or cache.overflow: stream (what does not fit passes through)"))
        layer, slot = np.nonzero(used)
        hit = cache.ask(np.append(0, n_used.cumsum()), cache.firsts[layer] + slot, fresh, expected)
        there = np.zeros(used.shape, bool)
        there[layer[hit], slot[hit]] = True
        return there

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
