"""What a step fetches ahead of use, as a prefetcher expects it, and when that and what is missed is there.

Letters: M layers with experts, E experts of each, H holders of experts, S slots of a holder, D devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from moesim.memory import CacheError, Events
from moesim.memory.foresight import Foresight
from moesim.memory.job import Forecast
from moesim.memory.live import LiveCache
from moesim.registry import name_of
from moesim.sim.coming import Arrivals, Wanted, lines_of
from moesim.sim.copying import tiers
from moesim.sim.cost import Batch, StepCost
from moesim.sim.inputs import Inputs
from moesim.sim.lower import Lower


class Ahead:
    """What is fetched for *caches* of the experts *replicas* [H, M, E], beyond what one link brings on demand.

    *profile*: events of other requests. Raises ``ConfigError`` for a prefetcher that needs what only a replay has.
    """

    def __init__(self, inputs: Inputs, caches: Sequence[LiveCache | None], replicas: np.ndarray,
                 profile: Events | None):
        scenario, cache = inputs.scenario, inputs.scenario.cache
        assert cache is not None, "asked only of scenarios with a cache"
        self._caches, self._shared_by = caches, scenario.parallelism.expert_tp
        self._bytes = scenario.model.expert_bytes / self._shared_by
        try:
            self._foresight = Foresight(cache.prefetcher, replicas, None if scenario.traced.balanced else inputs.trace,
                                        profile, scenario.seed)
        except CacheError as error:
            raise scenario.error("cache.prefetcher", str(error)) from None
        chunks = 1 if cache.prefetch_chunk is None else math.ceil(self._bytes / cache.prefetch_chunk)
        self._tiers = [tier.name for tier, _ in tiers(scenario.hardware)][:cache.depth + 1]
        self._lower = Lower(scenario, replicas, profile)
        lines = lines_of(scenario.hardware, self._bytes, cache.depth + 1, chunks)
        self._arrivals = Arrivals(lines, scenario.parallelism.tp, np.array(scenario.model.moe_layer_indices), caches,
                                  self._shared_by)
        holder, layer, expert = np.nonzero(replicas)
        slot = (np.cumsum(replicas > 0, axis=2) - 1)[holder, layer, expert]
        self._slots, self._expert = (layer, holder, slot), layer * replicas.shape[2] + expert
        self._n_keys = replicas[0].size
        self.bytes: np.ndarray = np.zeros(len(caches) * self._shared_by)
        self.memory = {f"from_{name}_bytes": np.zeros(len(self.bytes)) for name in self._tiers[1:]}

    @staticmethod
    def of(inputs: Inputs, caches: Sequence[LiveCache | None], replicas: np.ndarray, profile: Events | None
           ) -> Ahead | None:
        """Return it if *inputs*' scenario fetches anything but by demand over one link, else None."""
        cache = inputs.scenario.cache
        assert cache is not None, "asked only of scenarios with a cache"
        plain = name_of(cache.prefetcher) == "none" and cache.below is None
        return None if plain else Ahead(inputs, caches, replicas, profile)

    def expected(self, tokens: np.ndarray, batch: Batch) -> Sequence[Forecast | None]:
        """Return what each holder may expect of a step with *tokens* [M, H, S]."""
        if not self._foresight.asks:
            return [None] * len(self._caches)
        found = np.bincount(self._expert, weights=tokens[self._slots], minlength=self._n_keys)
        return self._foresight.of(found.astype(np.int64), batch.rows)

    def loaded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return layer, holder and slot of what the last step has loaded ahead of use."""
        holder, _, layer, slot = self._asked().T
        return layer, holder, slot

    def seconds(self, cost: StepCost, fetched: np.ndarray, now: float) -> np.ndarray:
        """Return how long layers of the step *cost*, which begins at *now*, wait for what comes, [M, D].

        *fetched*: share of the bytes of every expert that is missed, [M, H, S]. Counts are added to what it spends;
        ``bytes`` [D] are those that are asked for ahead of use.
        """
        assert cost.expert_tokens is not None, "asked only of models with experts"
        asked, missing = self._asked(), fetched > 0
        n = np.bincount(asked[:, 0], minlength=len(self._caches))
        self.bytes = np.repeat(n, self._shared_by) * self._bytes
        holder, layer, slot = asked[:, [0, 2, 3]].T
        want = missing.copy()
        want[layer, holder, slot] = True
        levels = self._lower.levels(want)
        for level, name in enumerate(self._tiers[1:], 2):
            deep = (fetched * (levels >= level)).sum(axis=(0, 2)) + np.bincount(
                holder, levels[layer, holder, slot] >= level, len(self._caches))
            self.memory[f"from_{name}_bytes"] += np.repeat(deep * self._bytes, self._shared_by)
        ahead = np.insert(asked, 4, levels[layer, holder, slot], axis=1)
        wanted = Wanted(cost.expert_tokens > 0, missing, fetched, levels * missing, ahead)
        waits = self._arrivals.seconds(cost, wanted, now)
        cost.spent |= self._lower.asked
        if self._foresight.asks:
            unused = sum(cache.unused for cache in self._caches if cache is not None)
            cost.spent |= {"prefetched_bytes": float(self.bytes.sum()), "late_ahead": self._arrivals.late,
                           "unused_ahead": unused}
        return waits

    def _asked(self) -> np.ndarray:
        """Return holder, layer before which it is asked for, its own layer and slot of what is loaded ahead, [Q, 4]."""
        found = [np.zeros((0, 4), np.int64)]
        for holder, cache in enumerate(self._caches):
            if cache is not None and len(cache.ahead):
                event, number = cache.ahead.T.astype(np.int64)
                layer, slot = cache.places(number)
                found.append(np.stack([np.full(len(event), holder), event, layer, slot], axis=1))
        return np.concatenate(found)
