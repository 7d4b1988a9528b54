"""Tiers below a device's first that are themselves caches of the tier below them: where a fetched expert comes from.

A tier is one cache for the devices that share it. What all of them ask of it in a layer is one event, as in a replay;
what it misses comes from the tier below and is admitted on its way up. The last tier has all experts.

Letters: M layers with experts, E experts of each, H holders of experts, S slots of a holder.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moesim.expert_cache import LowerTier
from moesim.memory import CacheError, Events
from moesim.memory.events import on_device
from moesim.memory.live import LiveCache, rooms
from moesim.scenario import Scenario
from moesim.sim.copying import tiers
from moesim.units import pretty


class Lower:
    """The caches below the first tier of devices with the experts *replicas* [H, M, E]; *profile*: of other requests.

    ``asked``: hits and misses of the last step, by tier. Raises ``ConfigError`` for a capacity that a tier has not.
    """

    def __init__(self, scenario: Scenario, replicas: np.ndarray, profile: Events | None):
        cache = scenario.cache
        assert cache is not None, "asked only of scenarios with a cache"
        self._scenario, self.asked = scenario, dict[str, int]()
        n_holders, layers, self._experts = replicas.shape
        self._expert_at = np.zeros((layers, n_holders, int(replicas.sum(axis=2).max())), np.int64)
        holder, layer, expert = np.nonzero(replicas)
        self._expert_at[layer, holder, (np.cumsum(replicas > 0, axis=2) - 1)[holder, layer, expert]] = expert
        shared_by = scenario.parallelism.expert_tp
        self._tiers = []
        for at, (spec, (tier, own)) in enumerate(zip(_chain(cache.below), tiers(scenario.hardware), strict=False)):
            span = 1 if own else scenario.hardware.devices_per_node // shared_by
            size = scenario.model.expert_bytes / (shared_by if own else 1)
            path = ".".join(["cache", *["below"] * (at + 1)])
            shared: np.ndarray = replicas.reshape(-1, span, layers, self._experts).max(axis=1)
            made = [_Domain(self._made(path, spec, held, (size, tier.capacity, tier.name), profile), held)
                    for held in shared]
            self._tiers.append((tier.name, span, made))

    def levels(self, want: np.ndarray) -> np.ndarray:
        """Return how many tiers below the first of its device each expert lies that is fetched, int64 [M, H, S].

        *want*: what is fetched, bool [M, H, S]; 0 for what is not. Tiers admit what they miss.
        """
        level, here = want.astype(np.int64), np.nonzero(want)
        key = here[0] * self._experts + self._expert_at[here]
        for name, span, domains in self._tiers:
            missed, hits = np.zeros(len(key), bool), 0
            for d, domain in enumerate(domains):
                mine = np.flatnonzero(here[1] // span == d)
                asked, which = np.unique(key[mine], return_inverse=True)
                there = domain.ask(asked)
                hits += int(np.count_nonzero(there))
                missed[mine] = ~there[which]
                self.asked[f"{name}_misses"] = (self.asked[f"{name}_misses"] if d else 0) + len(asked) - int(
                    np.count_nonzero(there))
            self.asked[f"{name}_hits"] = hits
            here, key = tuple(each[missed] for each in here), key[missed]
            level[here] += 1
        return level

    def _made(self, path: str, spec: LowerTier, held: np.ndarray, room: tuple[float, float, str],
              profile: Events | None) -> LiveCache:
        """Return the cache *spec* of the experts *held* [M, E]; *room*: bytes of one, of the tier, and its name."""
        placed, (size, most, name) = held.sum(axis=1), room
        try:
            found = rooms(spec.capacity, spec.scope, placed, size)
        except CacheError as error:
            raise self._scenario.error(f"{path}.capacity", str(error)) from None
        if found.sum() * size > most:
            raise self._scenario.error(f"{path}.capacity", (
                f"{found.sum()} experts take {pretty(found.sum() * size, 'byte', 4)} of {name}, which has "
                f"{pretty(most, 'byte', 4)}; give less"))
        try:
            return LiveCache(spec.policy, placed, found, self._scenario.seed,
                             None if profile is None else on_device(profile, held))
        except CacheError as error:
            raise self._scenario.error(f"{path}.policy", str(error)) from None


class _Domain:
    """One *cache* of the experts *held* [M, E]."""

    def __init__(self, cache: LiveCache, held: np.ndarray):
        self._cache, kept = cache, held.ravel() > 0
        self._number = np.cumsum(kept) - 1
        self._ends = (np.arange(len(held)) + 1) * held.shape[1]

    def ask(self, keys: np.ndarray) -> np.ndarray:
        """Return which of *keys* (layer x experts + expert, ascending), asked for in one pass, are there: bool."""
        starts = np.append(0, np.searchsorted(keys, self._ends))
        return self._cache.ask(starts, self._number[keys].astype(np.int32))


def _chain(spec: LowerTier | None) -> Iterator[LowerTier]:
    while spec is not None:
        yield spec
        spec = spec.below
