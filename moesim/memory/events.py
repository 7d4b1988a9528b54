"""What expert caches are asked for: events, the set of distinct keys that one layer of one forward pass needs.

Letters: N events, A accesses (keys of all events together), S passes, L layers, E experts, T tokens, K = top-k. The key
of expert e of layer l is l * E + e.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numba import njit

from moesim import registry
from moesim.memory.terms import CacheError
from moesim.trace import RoutingTrace


@dataclasses.dataclass(frozen=True, eq=False)
class Passes:
    """Say which token rows of a trace run together.

    rows    row numbers, pass by pass, int64 [R]
    starts  where each pass begins in rows, int64 [S + 1]
    fresh   passes in which every request is at its first row, uint8 [S]
    """

    rows: np.ndarray
    starts: np.ndarray
    fresh: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Events:
    """Hold the events of a trace, or of a list of sets, in the order in which they happen.

    starts, keys  keys of event i: keys[starts[i]:starts[i + 1]], ascending; int64 [N + 1], int32 [A]
    uses          tokens that use the key in the event, int32 [A]
    weights       largest share of a token's chosen probability that the key has, float32 [A]; empty if not known
    step, layer   pass and layer of each event, int64 [N]
    time          step * L + layer, and a fraction in the sequential contract, float64 [N]
    layer_of      layer of each key, int64 [keys]
    fresh         passes in which counts may begin anew, uint8 [S]
    names         what the keys were before they were numbered, for a list of sets
    trace, passes where they are from; ``batching`` the part that made the passes
    """

    starts: np.ndarray
    keys: np.ndarray
    uses: np.ndarray
    weights: np.ndarray
    step: np.ndarray
    layer: np.ndarray
    time: np.ndarray
    layer_of: np.ndarray
    fresh: np.ndarray
    names: tuple[Hashable, ...] = ()
    trace: RoutingTrace | None = None
    passes: Passes | None = None
    batching: dict[str, Any] | None = None

    @property
    def n_layers(self) -> int:
        """Return L."""
        return int(self.layer_of.max()) + 1

    @property
    def n_passes(self) -> int:
        """Return S."""
        return len(self.fresh)

    @cached_property
    def next_uses(self) -> np.ndarray:
        """Return the time of the next use of each access's key, infinite if there is none, float64 [A]."""
        return _next_uses(self.starts, self.keys, self.time, len(self.layer_of))[0]

    @cached_property
    def first_uses(self) -> np.ndarray:
        """Return the time of the first use of each key, infinite if there is none, float64 [keys]."""
        return _next_uses(self.starts, self.keys, self.time, len(self.layer_of))[1]

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """Return what parts computed of these events and may want again, by a key of theirs."""
        return {}

    def one_by_one(self) -> Events:
        """Return the events of the sequential contract: every access is an event, in ascending order of the keys."""
        size = np.diff(self.starts)
        place = np.arange(len(self.keys)) - np.repeat(self.starts[:-1], size)
        time = np.repeat(self.time, size) + place / np.repeat(np.maximum(size, 1), size)
        return dataclasses.replace(self, starts=np.arange(len(self.keys) + 1), step=np.repeat(self.step, size),
                                   layer=np.repeat(self.layer, size), time=time)


def of_sets(sets: Iterable[Iterable[Hashable]]) -> Events:
    """Return the events of a list of sets of keys.

    Keys that are all pairs (layer, expert), of one layer in each set, keep their layers; all others are of one layer.
    Raises ``CacheError`` for an empty list or key that cannot be sorted.
    """
    given: list[set[Any]] = [set(keys) for keys in sets]
    try:
        names = sorted(set().union(*given))
    except TypeError:
        raise CacheError("keys of events must be of one kind that can be sorted: numbers, or (layer, expert)") from None
    if not names:
        raise CacheError("there is no key in the events; give sets of keys, one set for each event")
    layers = _layers(names, given)
    numbers = {name: i for i, name in enumerate(names)}
    keys = [sorted(numbers[name] for name in one) for one in given]
    flat = np.array([k for one in keys for k in one], dtype=np.int32)
    layer = np.array([layers[one[0]] if one else 0 for one in keys])
    step = np.concatenate([[0], np.cumsum(np.diff(layer) <= 0)])
    starts = np.concatenate([[0], np.cumsum([len(one) for one in keys])])
    time = step * (layers.max() + 1.0) + layer
    return Events(starts, flat, np.ones(len(flat), np.int32), np.zeros(0, np.float32), step, layer, time, layers,
                  np.zeros(step[-1] + 1, np.uint8), tuple(names))


def _layers(names: list[Any], given: list[set[Any]]) -> np.ndarray:
    pairs = all(isinstance(name, tuple) and len(name) == 2 and isinstance(name[0], int | np.integer) and name[0] >= 0
                for name in names)
    if pairs and all(len({layer for layer, _ in one}) <= 1 for one in given):
        return np.array([layer for layer, _ in names])
    return np.zeros(len(names), dtype=np.int64)


def of_trace(trace: RoutingTrace, batching: Any = 1, seed: int = 0) -> Events:
    """Return the events of *trace*, its token rows put together to passes by *batching*.

    *batching* is a part, its name, or a mapping with its name and parameters; a number is the ``size`` of
    ``continuous``. Raises ``CacheError`` or ``registry.UnknownPart``.
    """
    if isinstance(batching, int) and not isinstance(batching, bool):
        batching = {"name": "continuous", "size": batching}
    return _put_together(trace, registry.make("batching", batching), seed)


@lru_cache(maxsize=4)  # whoever replays one trace with many policies asks for the same few batches again and again
def _put_together(trace: RoutingTrace, part: Any, seed: int) -> Events:
    events = of_choices(trace, trace.chosen, part.passes(trace, seed))
    return dataclasses.replace(events, batching=registry.dump(part))


def of_choices(trace: RoutingTrace, chosen: np.ndarray, passes: Passes) -> Events:
    """Return the events of *chosen* [T, L, K], -1 for none, in the place of what *trace* chose, pass by pass."""
    weights = np.zeros((0, 0, 0), np.float32)
    if trace.probs is not None and chosen.dtype == trace.experts.dtype:
        used = trace.probs[:, :, :trace.top_k].astype(np.float32)
        weights = used / np.maximum(used.sum(axis=2, keepdims=True), np.float32(1e-9))
    starts, keys, uses, best = _gather(np.ascontiguousarray(chosen), passes.rows, passes.starts, trace.n_experts,
                                       weights)
    n_passes, layers = len(passes.starts) - 1, trace.n_layers
    step, layer = np.repeat(np.arange(n_passes), layers), np.tile(np.arange(layers), n_passes)
    return Events(starts, keys, uses, best, step, layer, step * float(layers) + layer,
                  np.repeat(np.arange(layers), trace.n_experts), passes.fresh, (), trace, passes)


def on_device(events: Events, held: np.ndarray) -> Events:
    """Return what *events*, of all experts, ask of those *held* [M, E] on a device, which are numbered without gaps."""
    kept = held.ravel() > 0
    number = np.cumsum(kept) - 1
    mine = kept[events.keys]
    starts = np.append(0, mine.cumsum())[events.starts]
    return dataclasses.replace(events, starts=starts, keys=number[events.keys[mine]].astype(np.int32),
                               uses=events.uses[mine], weights=events.weights[:0],
                               layer_of=np.repeat(np.arange(len(held)), held.sum(axis=1)))


@njit(cache=True, nogil=True)
def _gather(chosen: np.ndarray, rows: np.ndarray, passes: np.ndarray, n_experts: int,
            weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    n_layers, top_k = chosen.shape[1:]
    starts = np.zeros((len(passes) - 1) * n_layers + 1, np.int64)
    keys = np.zeros(len(rows) * n_layers * top_k, np.int32)
    uses, best = np.zeros(len(keys), np.int32), np.zeros(len(keys) if weights.size else 0, np.float32)
    count, heaviest = np.zeros(n_experts, np.int32), np.zeros(n_experts, np.float32)
    met = np.zeros(n_experts, np.int32)
    at = 0
    for p in range(len(passes) - 1):
        for layer in range(n_layers):
            n = 0
            for r in rows[passes[p]:passes[p + 1]]:
                for m in range(top_k):
                    e = chosen[r, layer, m]
                    if e < 0:
                        continue
                    if count[e] == 0:
                        met[n] = e
                        n += 1
                        heaviest[e] = 0
                    count[e] += 1
                    if len(best):
                        heaviest[e] = max(heaviest[e], weights[r, layer, m])
            met[:n].sort()
            for e in met[:n]:
                keys[at], uses[at] = layer * n_experts + e, count[e]
                if len(best):
                    best[at] = heaviest[e]
                count[e] = 0
                at += 1
            starts[p * n_layers + layer + 1] = at
    return starts, keys[:at].copy(), uses[:at].copy(), best[:min(at, len(best))].copy()


@njit(cache=True, nogil=True)
def _next_uses(starts: np.ndarray, keys: np.ndarray, time: np.ndarray,
               n_keys: int) -> tuple[np.ndarray, np.ndarray]:
    nexts, upcoming = np.zeros(len(keys)), np.full(n_keys, np.inf)
    for i in range(len(time) - 1, -1, -1):
        for j in range(starts[i], starts[i + 1]):
            nexts[j] = upcoming[keys[j]]
            upcoming[keys[j]] = time[i]
    return nexts, upcoming
