"""The replay loop: one pass over the events of a trace, whatever the policy. Its plain twin is in the tests.

An event is classified against what is resident when it begins; only then is room made and what was missed admitted.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from moesim.memory.arrays import (
    BYPASS,
    CROSSES,
    FETCHED,
    FIRST,
    FOUND,
    GIVEN,
    HITS,
    HORIZON,
    MISSED,
    MISSES,
    N_LAYERS,
    RESIDENT,
    SEED,
    STORE,
    STREAM,
    UNUSED,
    USED,
    Found,
    Given,
    Store,
    Stream,
)
from moesim.memory.swapping import PICK, TOKENS, USES, list_uses
from moesim.memory.terms import (
    COUNT,
    DRAW,
    DUE,
    FLAG,
    FLAGS,
    HERE,
    LAST,
    LAYER,
    LAYERS,
    MARK,
    NEXT,
    PHASE,
    SCORE,
    SEEN,
    SINCE,
    START,
    TIME,
    VALUE,
    mixed,
)


@njit(cache=True, nogil=True)
def insert(k: int, cache: int, store: Store) -> None:
    """Put key *k* into *cache*, which has room."""
    at = store.filled[cache]
    store.slots[cache, at] = k
    store.where[k] = at
    store.filled[cache] = at + 1
    store.free[cache] -= store.size[k]


@njit(cache=True, nogil=True)
def _drop(k: int, i: int, cache: int, store: Store, found: Found) -> None:
    """Take key *k* out of *cache*, or refuse it if it is not there."""
    at = store.where[k]
    if at >= 0:
        last = store.filled[cache] - 1
        moved = store.slots[cache, last]
        store.slots[cache, at] = moved
        store.where[moved] = at
        store.where[k] = -1
        store.filled[cache] = last
        store.free[cache] += store.size[k]
        if store.fresh[k]:
            store.fresh[k] = 0
            found.counts[int(store.of[k, LAYER]), UNUSED] += 1
    store.stamps[0, k] = i
    if store.of[k, MARK] == store.phase[cache]:
        store.phase[cache] += 1
    if len(found.dropped) and store.stamps[2, k] >= 0:
        found.dropped[store.stamps[2, k]] = 1


@njit(cache=True, nogil=True)
def _evict(score, n: int, need: int, i: int, cache: int, given: Given, store: Store, found: Found) -> int:  # type: ignore[no-untyped-def]
    """Drop those of the first *n* candidates that are worth least until *need* is met; return what is still needed."""
    keys, worth = store.candidates, store.worth
    store.now[PHASE] = store.phase[cache]
    score(keys, n, store.of, store.now, given.parameters, worth)
    draw = int(store.now[DRAW])
    while need > 0 and n > 0:
        best, least, drawn = 0, worth[0], -1
        for c in range(1, n):
            if worth[c] < least:
                best, least, drawn = c, worth[c], -1
            elif worth[c] == least:
                if drawn < 0:
                    drawn = mixed(draw, keys[best])
                other = mixed(draw, keys[c])
                if other < drawn:
                    best, drawn = c, other
        k = keys[best]
        n -= 1
        keys[best], worth[best] = keys[n], worth[n]
        need -= store.size[k]
        _drop(k, i, cache, store, found)
    return need


@njit(cache=True, nogil=True)
def _begin(i: int, stream: Stream, given: Given, store: Store) -> None:
    """Write down the facts of event *i*."""
    now, layers = store.now, given.options[N_LAYERS]
    if i == 0 or stream.step[i] != stream.step[i - 1]:
        now[SINCE] += 1
        if stream.resets[i]:
            now[SINCE] = 1
            store.of[:, COUNT] = 0
            store.of[:, FLAGS] = 0
        if len(given.values) > 1 or (i == 0 and len(given.values)):
            values = given.values[min(stream.step[i], len(given.values) - 1)]
            for k in range(len(values)):  # an array in place of the loop would compile words on its length: 2 s
                store.of[k, VALUE] = values[k]
    now[TIME], now[HERE], now[LAYERS] = stream.time[i], stream.layer[i], layers
    now[START] = stream.step[i] * layers
    now[DRAW] = mixed(given.options[SEED], given.options[FIRST] + i) >> 12  # a whole number that a float holds


@njit(cache=True, nogil=True)
def _expect(i: int, stream: Stream, given: Given, store: Store) -> int:
    """Note what is expected of event *i* and those after it; return the end of what is loaded for now."""
    end, mark = min(i + given.options[HORIZON], len(stream.time)), given.options[FIRST] + i
    if not given.options[CROSSES]:
        while stream.step[end - 1] != stream.step[i]:
            end -= 1
    for j in range(i, end):
        for k in given.ahead_keys[given.ahead_starts[j]:given.ahead_starts[j + 1]]:
            if store.stamps[1, k] != mark:
                store.stamps[1, k] = mark
                store.of[k, DUE] = stream.time[j]
    return end


@njit(cache=True, nogil=True)
def _fetch_ahead(score, i: int, stream: Stream, given: Given, store: Store, found: Found) -> None:  # type: ignore[no-untyped-def]
    """Load what is expected of the next events, the nearest first; what is expected does not make room for it."""
    mark = given.options[FIRST] + i
    for j in range(i, _expect(i, stream, given, store)):
        cache = stream.cache[j]
        for k in given.ahead_keys[given.ahead_starts[j]:given.ahead_starts[j + 1]]:
            if store.where[k] >= 0:
                continue
            need = store.size[k] - store.free[cache]
            if need > 0:
                n = int(np.int64(0))
                for at in range(store.filled[cache]):
                    other = store.slots[cache, at]
                    if store.stamps[1, other] != mark:
                        store.candidates[n] = other
                        n += 1
                need = _evict(score, n, need, i, cache, given, store, found)
            if need <= 0:
                insert(k, cache, store)
                store.fresh[k] = 1
                store.of[k, SEEN] = stream.time[i]
                found.counts[int(store.of[k, LAYER]), FETCHED] += 1
                if len(found.ahead):
                    found.ahead[found.noted[0], 0], found.ahead[found.noted[0], 1] = i, k
                    found.noted[0] += 1


@njit(cache=True, nogil=True)
def _classify(i: int, stream: Stream, given: Given, store: Store, found: Found) -> int:
    """Count hits and misses of event *i*, note its uses; return how much room what was missed takes."""
    wanted, of, cache = 0, store.of, stream.cache[i]
    counts = found.counts[stream.layer[i]]
    for j in range(stream.starts[i], stream.starts[i + 1]):
        k = stream.keys[j]
        store.stamps[0, k] = -1
        store.stamps[2, k] = j
        if store.where[k] >= 0:
            counts[HITS] += 1
            if len(found.hit):
                found.hit[j] = 1
            if store.fresh[k]:
                counts[USED] += 1
                store.fresh[k] = 0
        else:
            counts[MISSES] += 1
            wanted += store.size[k]
        of[k, LAST] = of[k, SEEN] = stream.time[i]
        of[k, COUNT] += 1
        of[k, MARK] = store.phase[cache]
        if len(given.nexts):
            of[k, NEXT] = given.nexts[j]
        if len(given.flags):
            of[k, FLAG] = given.flags[j]
            of[k, FLAGS] += given.flags[j]
    return wanted


@njit(cache=True, nogil=True)
def _gather(i: int, cache: int, stream: Stream, store: Store, which: int) -> int:
    """List candidates for eviction: RESIDENT, MISSED or both (their sum); return how many."""
    n = int(np.int64(0))  # not the constant 0, which would be compiled apart
    if which & RESIDENT:
        n = store.filled[cache]
        for at in range(n):
            store.candidates[at] = store.slots[cache, at]
    if which & MISSED:
        for k in stream.keys[stream.starts[i]:stream.starts[i + 1]]:
            if store.where[k] < 0 and store.stamps[0, k] != i:
                store.candidates[n] = k
                n += 1
    return n


@njit(cache=True, nogil=True)
def _admit(score, i: int, wanted: int, stream: Stream, given: Given, store: Store, found: Found) -> None:  # type: ignore[no-untyped-def]
    """Make room at the end of event *i* and admit what it missed, as far as the rule and the room allow."""
    cache = stream.cache[i]
    need, phase = wanted - store.free[cache], store.phase[cache]
    if need > 0:
        first = RESIDENT + MISSED if given.options[BYPASS] else RESIDENT
        need = _evict(score, _gather(i, cache, stream, store, first), need, i, cache, given, store, found)
        if need > 0:  # more than fits was missed at once: some of it passed through a workspace and is not kept
            _evict(score, _gather(i, cache, stream, store, MISSED), need, i, cache, given, store, found)
    for k in stream.keys[stream.starts[i]:stream.starts[i + 1]]:
        if store.where[k] < 0 and store.stamps[0, k] != i:
            insert(k, cache, store)
        if store.phase[cache] != phase:
            store.of[k, MARK] = store.phase[cache]


@njit(types.void(SCORE, STREAM, GIVEN, STORE, FOUND), cache=True, nogil=True)
def run(score, stream: Stream, given: Given, store: Store, found: Found) -> None:  # type: ignore[no-untyped-def]
    """Replay all events of *stream*."""
    for i in range(len(stream.time)):
        _begin(i, stream, given, store)
        if len(given.ahead_starts):
            _fetch_ahead(score, i, stream, given, store, found)
        wanted = _classify(i, stream, given, store, found)
        if wanted:
            _admit(score, i, wanted, stream, given, store, found)


@njit(types.void(SCORE, PICK, TOKENS, USES, STREAM, GIVEN, STORE, FOUND), cache=True, nogil=True)
def run_choosing(score, pick, tokens, passes, stream, given, store, found) -> None:  # type: ignore[no-untyped-def]
    """Replay as ``run``, nothing loaded ahead; what tokens use is decided as each event begins, by what is resident.

    Writes ``starts`` and ``keys`` of *stream*, and how many tokens of the *passes* use each key.
    """
    for i in range(len(stream.time)):
        list_uses(pick, i, tokens, passes, stream, store)
        _begin(i, stream, given, store)
        wanted = _classify(i, stream, given, store, found)
        if wanted:
            _admit(score, i, wanted, stream, given, store, found)
