"""Experts that come ahead of use, or from tiers that are caches too: what is expected, whence it comes, and when.

Where every miss comes over one link as its layer asks, ``moesim.sim.copying`` says the same at once; this is for all
else. Three things are asked in turn: a prefetcher for what it expects (``Foresight``), the tiers below for where a
copy begins (``Lower``), and lines of copies for when it ends (``Coming``).

Letters: M layers with experts, E experts of each, H holders of experts, S slots of a holder, D devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moesim.memory import CacheError, Events
from moesim.memory.foresight import Foresight
from moesim.memory.job import Forecast
from moesim.registry import name_of
from moesim.sim.caches import Answer, Caches, Places
from moesim.sim.coming import Coming, Wanted, lines_of
from moesim.sim.copying import tiers
from moesim.sim.cost import Batch, StepCost
from moesim.sim.inputs import Inputs
from moesim.sim.lower import Lower


class Came(NamedTuple):
    """Say what copies of a step make of it.

    waits   seconds that layers wait for them, [M, D]
    bytes   that come to devices besides what is missed and comes from the tier below, by column of ``memory``, [D]
    spent   by column of ``steps``
    """

    waits: np.ndarray
    bytes: dict[str, np.ndarray]
    spent: dict[str, float]


class Ahead:
    """What comes to *caches* of the experts *replicas* [H, M, E], beyond what one link brings on demand.

    *profile*: events of other requests. Raises ``ConfigError`` for a prefetcher that needs what only a replay has.
    """

    def __init__(self, inputs: Inputs, caches: Caches, replicas: np.ndarray, profile: Events | None):
        scenario, cache = inputs.scenario, inputs.scenario.cache
        assert cache is not None, "asked only of scenarios with a cache"
        self._shared_by = scenario.parallelism.expert_tp
        self._bytes = scenario.model.expert_bytes / self._shared_by
        try:
            self._foresight = Foresight(cache.prefetcher, replicas, None if scenario.traced.balanced else inputs.trace,
                                        profile, scenario.seed)
        except CacheError as error:
            raise scenario.error("cache.prefetcher", str(error)) from None
        self._lower = Lower(scenario, replicas, profile)
        self._deeper = [tier.name for tier, _ in tiers(scenario.hardware)[1:cache.depth + 1]]
        chunks = 1 if cache.prefetch_chunk is None else math.ceil(self._bytes / cache.prefetch_chunk)
        lines = lines_of(scenario.hardware, self._bytes, cache.depth + 1, chunks)
        self._coming = Coming(lines, scenario.parallelism.tp, np.array(scenario.model.moe_layer_indices), caches,
                              self._shared_by)
        self._places, self._n_holders = Places.of(replicas), len(replicas)
        self._key, self._n_keys = self._places.layer * replicas.shape[2] + self._places.expert, replicas[0].size

    @staticmethod
    def of(inputs: Inputs, caches: Caches, replicas: np.ndarray, profile: Events | None) -> Ahead | None:
        """Return it if *inputs*' scenario fetches anything but by demand over one link, else None."""
        cache = inputs.scenario.cache
        assert cache is not None, "asked only of scenarios with a cache"
        plain = name_of(cache.prefetcher) == "none" and cache.below is None
        return None if plain else Ahead(inputs, caches, replicas, profile)

    @property
    def columns(self) -> list[str]:
        """Names in ``Came.bytes`` of what comes from further below than the tier below."""
        return [f"from_{name}_bytes" for name in self._deeper]

    def expected(self, tokens: np.ndarray, batch: Batch) -> Sequence[Forecast] | None:
        """Return what each holder may expect of a step with *tokens* [M, H, S]; None: there is no prefetcher."""
        if not self._foresight.asks:
            return None
        found = np.bincount(self._key, weights=tokens[self._places.cells], minlength=self._n_keys)
        return self._foresight.of(found.astype(np.int64), batch.rows)

    def came(self, cost: StepCost, fetched: np.ndarray, answer: Answer, now: float) -> Came:
        """Return what comes in the step *cost*, which begins at *now*.

        *fetched*: share of the bytes of every expert that is missed, [M, H, S]; *answer*: of the devices' caches.
        """
        assert cost.expert_tokens is not None, "asked only of models with experts"
        loaded = answer.loaded
        want = fetched > 0
        want[loaded.cells] = True
        level, of_tiers = self._lower.levels(want)
        wanted = Wanted(cost.expert_tokens > 0, fetched, level, loaded)
        waits, late = self._coming.waits(cost, wanted, now)
        ahead = self._of_holders(loaded.holder, np.ones(len(loaded.holder)))
        came = {"fetched_bytes": ahead}
        for at, column in enumerate(self.columns, 2):
            deep = (fetched * (level >= at)).sum(axis=(0, 2))
            came[column] = self._of_holders(loaded.holder, level[loaded.cells] >= at, deep)
        spent: dict[str, float] = dict(of_tiers)
        if self._foresight.asks:
            spent |= {"prefetched_bytes": float(ahead.sum()), "late_ahead": late, "unused_ahead": answer.unused}
        return Came(waits, came, spent)

    def _of_holders(self, holder: np.ndarray, some: np.ndarray, more: np.ndarray | float = 0.0) -> np.ndarray:
        """Return the bytes of *some* experts of each *holder*, and of *more* [H], that come to each device [D]."""
        n = np.bincount(holder, weights=some, minlength=self._n_holders) + more
        return np.repeat(n * self._bytes, self._shared_by)
