"""Experts below the devices' memory: what a step finds there, what it fetches, and how long layers wait for it.

Hits and misses are those of a replay in the contract ``event`` (``moesim.memory``): what a layer's tokens choose on a
device is compared with what its cache holds as the layer begins. What is missed comes over the link of the tier below,
whole experts one after the other; the layer's experts, hits too, run when the last has come (one grouped kernel). Every
miss is paid, first loads too: caches begin empty, but for what a policy holds from the beginning (``static``).
Weights are only read: what leaves is dropped, the tier below has all experts all the time.

Letters: M layers with experts, H holders of experts (devices, or sets of devices that share each expert), D devices.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from moesim.memory import CacheError, Events, events_of
from moesim.memory.live import LiveCache, rooms
from moesim.scenario import Scenario
from moesim.sim.at_host import AtHost
from moesim.sim.copying import Copies, below
from moesim.sim.cost import INDEX, Batch, StepCost, block
from moesim.sim.inputs import Inputs
from moesim.sim.operators import Pricing
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
        self._host = AtHost(scenario) if scenario.cache.miss == "host" else None
        self.fetched_bytes = np.zeros(scenario.hardware.n_devices)  # of each device
        replicas = inputs.placement.replicas.transpose(2, 0, 1)  # [H, M, E]
        profile = events_of(inputs.profile) if inputs.profile is not None else None
        self._caches = [self._made(held, profile) for held in replicas]
        self.reroute = Reroute.of(inputs, replicas, self._caches) if scenario.cache.rerouted else None
        _check_room(scenario, replicas)

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

    def put(self, cost: StepCost, batch: Batch, operators: Pricing) -> None:
        """Ask for the experts that *cost* has tokens for; put what is fetched, and how long that takes, into it.

        What the host computes instead it computes while the device has its hits: *operators* say how long these take.
        """
        assert cost.expert_tokens is not None, "asked only of models with experts"
        used = cost.expert_tokens > 0  # [M, H, slots]
        fresh = not len(batch.decode) and not batch.prefill_past.any()
        missing = np.zeros(used.shape, bool)
        for holder, cache in enumerate(self._caches):
            if cache is not None:
                missing[:, holder] = self._missing(holder, cache, used[:, holder], fresh)
        misses = int(np.count_nonzero(missing))
        cost.spent |= {"expert_hits": int(np.count_nonzero(used)) - misses, "expert_misses": misses}
        if self.reroute is not None:
            cost.spent |= self.reroute.tally()
        if self._host is not None:
            hits_s = operators.experts(np.where(missing, 0, cost.expert_tokens))
            wait_s = np.maximum(self._host.seconds(np.where(missing, cost.expert_tokens, 0)) - hits_s, 0.0)
            cost.put("experts", self._rows, hits_s)
            cost.put("fetch", self._rows, wait_s)
        else:
            self._fetch(cost, missing.sum(axis=2))

    def _fetch(self, cost: StepCost, missed: np.ndarray) -> None:
        """Put into *cost* how long layers wait for the experts *missed* [M, H]."""
        fetched = np.repeat(missed, self._shared_by, axis=1)  # [M, D]
        self.fetched_bytes += fetched.sum(axis=0) * self._bytes
        cost.spent["fetched_bytes"] = float(missed.sum()) * self._bytes * self._shared_by
        seconds = self._link.seconds(fetched)
        if self._cache.lead:
            seconds[1:] = np.maximum(seconds[1:] - self._between(cost), 0.0)
        cost.put("fetch", self._rows, seconds)

    def _missing(self, device: int, cache: LiveCache, used: np.ndarray, fresh: bool) -> np.ndarray:
        """Return which of the slots *used* [M, slots] are not on their *device* (a holder)."""
        n_used = used.sum(axis=1)
        over = cache.beyond(n_used) if self._cache.overflow == "refuse" and self._host is None else None
        if over is not None:
            raise self._scenario.error("cache.capacity", (
                f"a step uses {n_used[over]} experts of layer {self._moe[over]} at once on device "
                f"{device * self._shared_by}, whose cache holds {cache.room_of(over)}; give at least that, run fewer "
                f"tokens at a time (scheduler), or cache.overflow: stream (what does not fit passes through)"))
        layer, slot = np.nonzero(used)
        there = cache.ask(np.append(0, n_used.cumsum()), cache.firsts[layer] + slot, fresh)
        missing = np.zeros(used.shape, bool)
        missing[layer[~there], slot[~there]] = True
        return missing

    def _between(self, cost: StepCost) -> np.ndarray:
        """Return the seconds of work of each device from one layer's ``fetch`` to the next one's, [M - 1, D]."""
        at = INDEX["fetch"]
        done = np.cumsum(cost.seconds.sum(axis=1), axis=0) - cost.seconds[:, at:].sum(axis=1)  # as fetch begins
        return np.diff(done[self._moe], axis=0)


def on_device(events: Events, held: np.ndarray) -> Events:
    """Return what *events*, of all experts, ask of those *held* [M, E] on a device, which are numbered without gaps."""
    kept = held.ravel() > 0
    number = np.cumsum(kept) - 1
    mine = kept[events.keys]
    starts = np.append(0, mine.cumsum())[events.starts]
    return dataclasses.replace(events, starts=starts, keys=number[events.keys[mine]].astype(np.int32),
                               uses=events.uses[mine], weights=events.weights[:0],
                               layer_of=np.repeat(np.arange(len(held)), held.sum(axis=1)))


def _check_room(scenario: Scenario, replicas: np.ndarray) -> None:
    """Raise ``ConfigError`` if the tier below is too small for the experts placed above it, [H, M, E]."""
    tier, per_device = below(scenario.hardware)
    holders = 1 if per_device else scenario.hardware.devices_per_node // scenario.parallelism.expert_tp
    sets = replicas.reshape(-1, holders, *replicas.shape[1:]).any(axis=1)  # each expert once
    need = float(sets.sum(axis=(1, 2)).max()) * scenario.model.expert_bytes
    need = need / scenario.parallelism.expert_tp if per_device else need
    if need > tier.capacity:
        raise scenario.error("cache", (
            f"the experts need {pretty(need, 'byte', 4)} of {tier.name}, which has {pretty(tier.capacity, 'byte', 4)} "
            f"({'a device' if per_device else 'a node'}): all of them stay there; give it more, or use more devices"))
