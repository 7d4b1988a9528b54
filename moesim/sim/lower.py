"""Tiers below a device's first that are themselves caches of the tier below them: where a fetched expert comes from.

A tier is one cache for the devices that share it. What all of them ask of it in a layer is one event, as in a replay;
what it misses comes from the tier below and is admitted on its way up. The last tier has all experts.

Letters: M layers with experts, E experts of each, H holders of experts, S slots of a holder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from moesim.expert_cache import LowerTier
from moesim.memory import Events
from moesim.scenario import Scenario
from moesim.sim.caches import Caches, Places
from moesim.sim.copying import tiers
from moesim.units import pretty


class _Shared(NamedTuple):
    """Say how holders share a tier: its caches are holders themselves, each of ``span`` that ask it."""

    name: str
    caches: Caches
    span: int
    slot: np.ndarray  # int64 [M, H, S]: that of each holder's expert in its cache


class Lower:
    """The caches below the first tier of devices with the experts *replicas* [H, M, E]; *profile*: of other requests.

    Raises ``ConfigError`` for a capacity that a tier has not.
    """

    def __init__(self, scenario: Scenario, replicas: np.ndarray, profile: Events | None):
        cache, shared_by = scenario.cache, scenario.parallelism.expert_tp
        assert cache is not None, "asked only of scenarios with a cache"
        n_holders, layers, experts = replicas.shape
        at = Places.of(replicas)
        self._tiers, path = list[_Shared](), "cache"
        for spec, (tier, own) in zip(_chain(cache.below), tiers(scenario.hardware), strict=False):
            span = 1 if own else scenario.hardware.devices_per_node // shared_by
            size = scenario.model.expert_bytes / (shared_by if own else 1)
            path += ".below"
            held: np.ndarray = replicas.reshape(-1, span, layers, experts).max(axis=1)
            caches = Caches(scenario, spec, path, size, held, profile)
            if caches.room * size > tier.capacity:
                raise scenario.error(f"{path}.capacity", (
                    f"{caches.room} experts take {pretty(caches.room * size, 'byte', 4)} of {tier.name}, which has "
                    f"{pretty(tier.capacity, 'byte', 4)}; give less"))
            slot = np.zeros((layers, n_holders, int(replicas.sum(axis=2).max())), np.int64)
            slot[at.cells] = (np.cumsum(held > 0, axis=2) - 1)[at.holder // span, at.layer, at.expert]
            self._tiers.append(_Shared(tier.name, caches, span, slot))

    def levels(self, want: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
        """Return how many tiers below the first of its device each expert lies that is fetched, int64 [M, H, S].

        *want*: what is fetched, bool [M, H, S]; 0 for what is not. Tiers admit what they miss. Also what they hit and
        missed, by the column of ``steps``.
        """
        level, here, tally = want.astype(np.int64), np.nonzero(want), dict[str, int]()
        for tier in self._tiers:
            cells = here[0], here[1] // tier.span, tier.slot[here]
            asked = np.zeros(tier.caches.shape, bool)
            asked[cells] = True
            there = tier.caches.ask(asked).there
            hits = int(np.count_nonzero(there))
            tally |= {f"{tier.name}_misses": int(np.count_nonzero(asked)) - hits, f"{tier.name}_hits": hits}
            missed = ~there[cells]
            here = tuple(each[missed] for each in here)
            level[here] += 1
        return level, tally


def _chain(spec: LowerTier | None) -> Iterator[LowerTier]:
    while spec is not None:
        yield spec
        spec = spec.below
