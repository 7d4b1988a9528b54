"""What the replay loop reads and writes: plain arrays, so that the loop can be compiled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import typeof

from moesim.memory.terms import COLUMNS, DUE, FACTS, LAST, LAYER, MARK, NEVER, NEXT, SEEN

HITS, MISSES, FETCHED, USED, UNUSED = range(5)  # columns of ``Found.counts``
RESIDENT, MISSED = 1, 2  # who may be evicted
BYPASS, HORIZON, CROSSES, SEED, N_LAYERS, FIRST = range(6)  # entries of ``Given.options``; events before the first


class Stream(NamedTuple):
    """Say what is asked for: events [N] and the keys of each, accesses [A]."""

    starts: np.ndarray  # int64 [N + 1]
    keys: np.ndarray  # int32 [A]
    time: np.ndarray  # float64 [N]
    step: np.ndarray  # int64 [N]: pass
    layer: np.ndarray  # int64 [N]
    cache: np.ndarray  # int64 [N]: which cache it asks
    resets: np.ndarray  # uint8 [N]: counts begin anew


class Given(NamedTuple):
    """Say what the policy and the prefetcher know; an empty array stands for nothing."""

    nexts: np.ndarray  # float64 [A]
    flags: np.ndarray  # uint8 [A]
    values: np.ndarray  # float32 [0, 1 or passes, keys]
    parameters: np.ndarray  # float64 [P]
    options: np.ndarray  # int64 [6]
    ahead_starts: np.ndarray  # int64 [N + 1]: what a prefetcher expects of each event
    ahead_keys: np.ndarray  # int32


class Store(NamedTuple):
    """Hold the caches: which keys they have and what is known of every key."""

    slots: np.ndarray  # int32 [caches, most keys]
    filled: np.ndarray  # int64 [caches]: keys in it
    free: np.ndarray  # int64 [caches]: experts or bytes
    where: np.ndarray  # int64 [keys]: its slot, -1 if absent
    size: np.ndarray  # int64 [keys]
    of: np.ndarray  # float64 [keys, COLUMNS]
    now: np.ndarray  # float64 [FACTS]
    phase: np.ndarray  # int64 [caches]
    stamps: np.ndarray  # int64 [3, keys]: event that dropped it, event that expected it, its last access
    fresh: np.ndarray  # uint8 [keys]: loaded ahead, not used yet
    candidates: np.ndarray  # int32 [keys]
    worth: np.ndarray  # float64 [keys]


class Found(NamedTuple):
    """Collect what came out."""

    counts: np.ndarray  # int64 [layers, 5]
    hit: np.ndarray  # uint8 [A or 0]
    dropped: np.ndarray  # uint8 [A or 0]: evicted after this use, before the next
    ahead: np.ndarray  # int32 [rows or 0, 2]: event at which something was loaded ahead, and what
    noted: np.ndarray  # int64 [1]: rows of it that are in use


def make_found(layers: int, hits: int = 0, dropped: int = 0, ahead: int = 0) -> Found:
    """Return room for what comes out, of accesses and loads only as many as are to be noted."""
    return Found(np.zeros((layers, 5), np.int64), np.zeros(hits, np.uint8), np.zeros(dropped, np.uint8),
                 np.zeros((ahead, 2), np.int32), np.zeros(1, np.int64))


def make_store(layer_of: np.ndarray, size: np.ndarray, rooms: np.ndarray, firsts: np.ndarray) -> Store:
    """Return empty caches of *rooms* for keys of *size*, in layers *layer_of*, first used at *firsts* (or nothing)."""
    n_keys = len(layer_of)
    of = np.zeros((n_keys, COLUMNS))
    of[:, [LAST, SEEN, DUE, MARK]], of[:, LAYER] = NEVER, layer_of
    of[:, NEXT] = firsts if len(firsts) else np.inf
    most = min(n_keys, int(rooms.max() // size.min()))
    return Store(np.zeros((len(rooms), most), np.int32), np.zeros(len(rooms), np.int64), rooms.astype(np.int64),
                 np.full(n_keys, -1), size.astype(np.int64), of, np.zeros(FACTS), np.zeros(len(rooms), np.int64),
                 np.full((3, n_keys), -1), np.zeros(n_keys, np.uint8), np.zeros(n_keys, np.int32), np.zeros(n_keys))


def _array(kind: type, dimensions: int) -> np.ndarray:
    return np.zeros((1,) * dimensions, kind)


_F, _I, _K, _B = _array(np.float64, 1), _array(np.int64, 1), _array(np.int32, 1), _array(np.uint8, 1)
STREAM = typeof(Stream(_I, _K, _F, _I, _I, _I, _B))
GIVEN = typeof(Given(_F, _B, _array(np.float32, 2), _F, _I, _I, _K))
STORE = typeof(Store(_array(np.int32, 2), _I, _I, _I, _I, _array(np.float64, 2), _F, _I, _array(np.int64, 2), _B, _K,
                      _F))
FOUND = typeof(Found(_array(np.int64, 2), _B, _B, _array(np.int32, 2), _I))
