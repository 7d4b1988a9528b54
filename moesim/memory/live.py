"""An expert cache that is asked pass by pass while a run goes on: the loop of a replay, one pass at a time.

A replay has all passes before it begins. A run finds out what its next pass is as that begins, so here caches are kept
from pass to pass, and what would have to look further is refused.

>>> from moesim.registry import make
>>> cache = LiveCache(make("cache_policy", "lru"), placed=np.array([3]), rooms=np.array([2]))
>>> [cache.ask(np.array([0, 2]), np.array(keys)).hit.tolist() for keys in ([1, 2], [0, 1], [1, 2])]
[[False, False], [False, True], [True, False]]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moesim.memory.arrays import UNUSED, Given, Stream, make_found
from moesim.memory.events import Events
from moesim.memory.job import Forecast, Job
from moesim.memory.loops import run
from moesim.memory.setup import rooms_of
from moesim.memory.terms import CacheError, Rule
from moesim.registry import name_of

_NO_FLOATS, _NO_KEYS, _NO_BYTES = np.zeros(0), np.zeros(0, np.int32), np.zeros(0, np.uint8)


def rooms(capacity: Any, scope: str, placed: np.ndarray, expert_bytes: float) -> np.ndarray:
    """Return how many experts each cache of a device holds at most, int64 [layers], or [1] in scope ``global``.

    *placed* [layers]: experts that are on the device. Raises ``CacheError`` for a *capacity* that leaves room for none.
    """
    experts = placed if scope == "layer" else placed.sum(keepdims=True)
    found, some = np.zeros(len(experts), np.int64), experts > 0
    if some.any():
        room, in_bytes = rooms_of(capacity, experts[some], np.array([expert_bytes]))
        found[some] = room // int(expert_bytes) if in_bytes else room
    return np.minimum(found, experts)


class Asked(NamedTuple):
    """Say what a pass found.

    hit     which of its keys were there as their layer began, bool [A]
    ahead   event (layer) before which an expert was loaded ahead, and its number, int32 [n, 2]
    unused  experts that had been loaded ahead, and left in this pass before a use
    """

    hit: np.ndarray
    ahead: np.ndarray
    unused: int


class LiveCache:
    """The caches of one device, of *rooms* experts each (as ``rooms`` gives them); they begin empty.

    The experts of layer l have the numbers from ``firsts[l]`` on, ``placed[l]`` of them. *fit*: events of other
    requests in these numbers, from which a policy may learn. Raises ``CacheError`` for a policy that looks at what has
    not happened yet.
    """

    def __init__(self, policy: Any, placed: np.ndarray, rooms: np.ndarray, seed: int = 0, fit: Events | None = None):
        self.n_layers, self.firsts = len(placed), np.cumsum(placed) - placed
        layer_of = np.repeat(np.arange(len(placed)), placed)
        cache_of = layer_of if len(rooms) == len(placed) else np.zeros_like(layer_of)
        self._cache = np.arange(len(placed)) if len(rooms) == len(placed) else np.zeros(len(placed), np.int64)
        self._room, size = rooms[self._cache], np.ones(len(layer_of), np.int64)
        none = np.zeros(0, np.int64)
        nothing = Events(np.zeros(1, np.int64), _NO_KEYS, _NO_KEYS, np.zeros(0, np.float32), none, none, _NO_FLOATS,
                         layer_of, _NO_BYTES)
        job = Job(nothing, nothing, cache_of, rooms, size, fit, seed)
        self._rule = looking_back(policy, job)
        self._store = job.store(self._rule)
        self._seed, self._passes = seed, 0

    def ask(self, starts: np.ndarray, keys: np.ndarray, fresh: bool = False,
            forecast: Forecast | None = None) -> Asked:
        """Return which of *keys* are there as their layer begins; then admit what was missed.

        Layer l of this pass uses keys[starts[l]:starts[l + 1]], ascending. *fresh*: every request is new in this pass.
        *forecast*: what is expected of its layers, and loaded ahead.
        """
        layers, rule, number = self.n_layers, self._rule, self._passes
        start = number * layers
        time = start + np.arange(layers, dtype=np.float64)
        stream = Stream(np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(keys, np.int32), time,
                        np.full(layers, number), np.arange(layers), self._cache,
                        np.full(layers, fresh and rule.resets, np.uint8))
        values = np.zeros((0, 0), np.float32) if rule.values is None else np.ascontiguousarray(rule.values, np.float32)
        horizon = 1 if forecast is None else forecast.horizon
        options = np.array([rule.bypass, horizon, 0, self._seed, layers, start])
        given = Given(_NO_FLOATS, _NO_BYTES, values, np.array(rule.parameters, np.float64), options,
                      *((np.zeros(0, np.int64), _NO_KEYS) if forecast is None else (forecast.starts, forecast.keys)))
        most = 0 if forecast is None else min(horizon, layers) * len(forecast.keys)
        found = make_found(layers, hits=len(keys), ahead=most)
        run(rule.score, stream, given, self._store, found)
        self._passes += 1
        return Asked(found.hit.view(bool), found.ahead[:found.noted[0]], int(found.counts[:, UNUSED].sum()))

    def holds(self, keys: np.ndarray) -> np.ndarray:
        """Return which of *keys* are there now, bool [keys]; nothing changes."""
        return self._store.where[keys] >= 0

    def places(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the layer of each of *keys*, and which of the layer's experts it is."""
        layer = np.searchsorted(self.firsts, keys, side="right") - 1
        return layer, keys - self.firsts[layer]

    def beyond(self, used: np.ndarray) -> int | None:
        """Return the first layer that uses more experts at once (*used* [layers]) than its cache holds, if any."""
        over = np.flatnonzero(used > self._room)
        return int(over[0]) if len(over) else None

    def room_of(self, layer: int) -> int:
        """Return how many experts the cache of *layer* holds."""
        return int(self._room[layer])


def looking_back(policy: Any, job: Job) -> Rule:
    """Return the rule of *policy*. Raises ``CacheError`` if it needs what only a replay has."""
    remedy = "use one that needs only what has happened, e.g. lru, lfu or static"
    try:
        rule = policy.rule(job)
    except CacheError as error:
        raise CacheError(f"{name_of(policy)} cannot decide while a run goes on ({error}); {remedy}") from None
    several = rule.values is not None and len(rule.values) > 1
    if rule.oracle or rule.nexts or rule.flags is not None or several:
        raise CacheError(f"{name_of(policy)} looks at what has not happened yet; {remedy}")
    return rule
