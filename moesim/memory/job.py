"""One replay to do: events, the caches that they ask, and what policies and prefetchers may look at."""

from __future__ import annotations

import dataclasses

import numpy as np

from moesim.memory.arrays import Found, Given, Store, Stream, make_found, make_store
from moesim.memory.events import Events
from moesim.memory.loops import insert, run
from moesim.memory.terms import CacheError, Rule

_NOTHING = {kind: np.zeros(0, kind) for kind in (np.float64, np.int64, np.int32, np.uint8)}
_NO_VALUES = np.zeros((0, 0), np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Forecast:
    """Say what a prefetcher expects of every event.

    starts, keys  of event i: keys[starts[i]:starts[i + 1]], the surest first; int64 [N + 1], int32
    horizon       events ahead that are loaded, the coming one included
    crosses       whether it knows anything of the next pass
    oracle        it was made from what really happens, exactly or with errors
    """

    starts: np.ndarray
    keys: np.ndarray
    horizon: int = 1
    crosses: bool = False
    oracle: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """Hold what one replay is about.

    whole     what is asked for, layer by layer of each pass
    events    the same in the contract of the replay
    cache_of  which cache holds each key, int64 [keys]
    rooms     room of each cache, int64 [caches]: experts, or bytes
    size      what each key takes of it, int64 [keys]
    fit       events of other requests, from which a policy may learn; None if there are none
    seed      of everything that is drawn
    forecast  what the prefetcher expects; None without one
    live      the events are one pass of a run that goes on: nothing else may be known of it
    """

    whole: Events
    events: Events
    cache_of: np.ndarray
    rooms: np.ndarray
    size: np.ndarray
    fit: Events | None = None
    seed: int = 0
    forecast: Forecast | None = None
    live: bool = False

    def fitted(self, who: str) -> Events:
        """Return the events from which *who* may learn. Raises ``CacheError`` if there are none, or of other keys."""
        if self.fit is None:
            raise CacheError(f"{who} learns from requests that it does not replay; give fit=, e.g. trace.profile() "
                             "(moesim cache: --profile-fraction above 0)")
        if self.fit.names != self.events.names or len(self.fit.layer_of) != len(self.events.layer_of):
            raise CacheError("fit has other layers or experts than the events; give requests of the same model")
        return self.fit

    @property
    def popularity(self) -> np.ndarray:
        """Return how many tokens use each key, float64 [keys]: in the replay, or in ``fit`` while a run goes on."""
        seen, keys = self.fit if self.live else self.whole, len(self.whole.layer_of)
        if seen is None:
            return np.ones(keys)
        if "popularity" not in seen.memo:
            seen.memo["popularity"] = np.bincount(seen.keys, weights=seen.uses, minlength=keys)
        return seen.memo["popularity"]

    def expecting(self, starts: np.ndarray, keys: np.ndarray, horizon: int = 1, crosses: bool = False,
                  oracle: bool = False) -> Forecast:
        """Return the forecast that expects keys[starts[i]:starts[i + 1]] of event i of ``whole``; see ``Forecast``.

        In the sequential contract it is known at the first access of the event. Raises ``CacheError`` if it loads
        further ahead there.
        """
        if self.events is not self.whole:
            if horizon > 1:
                raise CacheError("the sequential contract loads for one layer ahead only; shorten the prefetcher's "
                                 "horizon, or use the contract 'event'")
            event = np.repeat(np.arange(len(self.whole.time)), np.diff(self.whole.starts))
            first = np.concatenate([[True], event[1:] != event[:-1]])
            starts = np.append(starts[event + ~first], starts[-1])
        return Forecast(np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(keys, np.int32), horizon, crosses,
                        oracle)

    def play(self, rule: Rule, dropped: bool = False, hits: bool = False) -> Found:
        """Replay the events under *rule*; say which accesses hit and which were dropped before the next, if asked."""
        events = self.events
        n = len(events.keys)
        found = make_found(events.n_layers, n * hits, n * dropped)
        run(rule.score, self._stream(rule.resets), self.given(rule), self.store(rule), found)
        return found

    def store(self, rule: Rule) -> Store:
        """Return the caches as a replay begins: empty, but for what *rule* holds."""
        firsts = self.events.first_uses if rule.nexts else _NOTHING[np.float64]
        store = make_store(self.events.layer_of, self.size, self.rooms, firsts)
        for k in () if rule.held is None else rule.held.tolist():
            insert(k, int(self.cache_of[k]), store)
        return store

    def _stream(self, resets: bool) -> Stream:
        events = self.events
        first = events.keys[np.minimum(events.starts[:-1], len(events.keys) - 1)]
        return Stream(events.starts, events.keys, events.time, events.step, events.layer, self.cache_of[first],
                      events.fresh[events.step] * np.uint8(resets))

    def given(self, rule: Rule) -> Given:
        """Return what *rule* and the prefetcher know."""
        ahead = self.forecast
        options = [rule.bypass, ahead.horizon if ahead else 1, ahead.crosses if ahead else 0, self.seed,
                   self.events.n_layers, 0]
        return Given(self.events.next_uses if rule.nexts else _NOTHING[np.float64],
                     _NOTHING[np.uint8] if rule.flags is None else np.ascontiguousarray(rule.flags, np.uint8),
                     _NO_VALUES if rule.values is None else np.ascontiguousarray(rule.values, np.float32),
                     np.array(rule.parameters, np.float64), np.array(options, np.int64),
                     ahead.starts if ahead else _NOTHING[np.int64], ahead.keys if ahead else _NOTHING[np.int32])
