"""Caches of experts side by side, one for each holder: of the devices of an island, or of a tier below that they share.

Everything that a step asks of caches passes here, in arrays of all holders; ``moesim.memory.live`` is one of them.

Letters: M layers with experts, E experts of each, H holders of experts, S slots of a holder: the experts that it
holds of a layer, in their order. Q experts loaded ahead of use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moesim.expert_cache import ExpertCache, LowerTier
from moesim.memory import CacheError, Events
from moesim.memory.events import on_device
from moesim.memory.job import Forecast
from moesim.memory.live import LiveCache, rooms
from moesim.scenario import Scenario


class Places(NamedTuple):
    """Say where experts are held: every copy once, holder by holder, layer by layer."""

    layer: np.ndarray
    holder: np.ndarray
    slot: np.ndarray
    expert: np.ndarray

    @classmethod
    def of(cls, held: np.ndarray) -> Places:
        """Return the places of the experts *held* [H, M, E]."""
        holder, layer, expert = np.nonzero(held)
        return cls(layer, holder, (np.cumsum(held > 0, axis=2) - 1)[holder, layer, expert], expert)

    @property
    def cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where they are in an array [M, H, S]."""
        return self.layer, self.holder, self.slot


class Loaded(NamedTuple):
    """Say what was loaded ahead of use, and before which layer (``event``) it was asked for; each int64 [Q]."""

    event: np.ndarray
    layer: np.ndarray
    holder: np.ndarray
    slot: np.ndarray

    @property
    def cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where they are in an array [M, H, S]."""
        return self.layer, self.holder, self.slot


class Answer(NamedTuple):
    """Say what a step finds: ``there`` bool [M, H, S]; ``unused``: loaded ahead once, and left in this step unused."""

    there: np.ndarray
    loaded: Loaded
    unused: int


class Caches:
    """The caches *spec* (at *path* of the scenario) of the experts *held* [H, M, E], each of *size* bytes.

    *profile*: events of other requests. Raises ``ConfigError`` for a capacity or policy that does not fit.
    """

    def __init__(self, scenario: Scenario, spec: ExpertCache | LowerTier, path: str, size: float, held: np.ndarray,
                 profile: Events | None):
        self._caches: list[LiveCache | None] = []  # None: of a holder that has no experts
        self.shape = held.shape[1], len(held), int(held.sum(axis=2).max())
        self.room = 0  # experts that the largest has room for
        for mine in held:
            self._caches.append(None)
            placed, fit = mine.sum(axis=1), None if profile is None else on_device(profile, mine)
            if not placed.any():
                continue
            field = "capacity"
            try:
                found = rooms(spec.capacity, spec.scope, placed, size)
                field = "policy"
                self._caches[-1] = LiveCache(spec.policy, placed, found, scenario.seed, fit)
            except CacheError as error:
                raise scenario.error(f"{path}.{field}", str(error)) from None
            self.room = max(self.room, int(found.sum()))

    def holds(self, layer: np.ndarray, holder: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Return which of the experts in these places are there now, bool; nothing changes."""
        there = np.zeros(len(layer), bool)
        for h, cache in enumerate(self._caches):
            if cache is not None:
                mine = holder == h
                there[mine] = cache.holds(cache.firsts[layer[mine]] + slot[mine])
        return there

    def beyond(self, wanted: np.ndarray) -> tuple[int, int, int] | None:
        """Return holder, layer and room of the first cache that has less room than is *wanted* of it; None: none."""
        for holder, cache in enumerate(self._caches):
            layer = None if cache is None else cache.beyond(wanted[:, holder].sum(axis=1))
            if cache is not None and layer is not None:
                return holder, layer, cache.room_of(layer)
        return None

    def ask(self, wanted: np.ndarray, fresh: bool = False, expected: Sequence[Forecast] | None = None) -> Answer:
        """Return which of the experts *wanted* [M, H, S] are there as their layer begins; caches admit the others.

        What a holder may have *expected* is there before, if its cache has room. *fresh*: see ``LiveCache.ask``.
        """
        there, unused, loaded = np.zeros(wanted.shape, bool), 0, [np.zeros((4, 0), np.int64)]
        for holder, cache in enumerate(self._caches):
            if cache is None:
                continue
            layer, slot = np.nonzero(wanted[:, holder])
            starts = np.append(0, wanted[:, holder].sum(axis=1).cumsum())
            found = cache.ask(starts, cache.firsts[layer] + slot, fresh, None if expected is None else expected[holder])
            there[layer[found.hit], holder, slot[found.hit]] = True
            unused += found.unused
            if len(found.ahead):
                event, number = found.ahead.T.astype(np.int64)
                of, at = cache.places(number)
                loaded.append(np.stack([event, of, np.full(len(event), holder), at]))
        return Answer(there, Loaded(*np.concatenate(loaded, axis=1)), unused)
