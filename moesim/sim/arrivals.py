"""When experts arrive that are fetched on demand or ahead of it: a recurrence over the layers of one pass, compiled.

A *line* is what chunks pass one after the other: a copy engine, or the bandwidth of a memory. Copies of a level pass
all its lines (side by side), those from further below the lines of every level, the lowest first. Demand goes first;
what has begun is not interrupted; what is expected uses the time that is left, in the order in which it was asked for.
On a line that devices share they take turns. Chunks that a line moves side by side (``lanes``) begin and end together.

Letters: K lines, D devices, M layers with experts, Q copies ahead of use.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from moesim.sim.steps import advance

HIT, STOPPED = 1, 2  # what becomes of what was expected: used, or it has left its cache and need not come


class Lines(NamedTuple):
    """Say what copies pass, the lowest level first; level 1 is that of the tier below a device's first."""

    level: np.ndarray  # int64 [K]
    span: np.ndarray  # int64 [K]: devices that share it
    lanes: np.ndarray  # int64 [K]
    terms: np.ndarray  # float64 [K, 4]: setup, seconds per byte, half, bytes of an expert
    chunks: int  # of an expert that is fetched ahead
    slowed: float  # seconds by which a byte that comes slows the device's own kernels


class Queue(NamedTuple):
    """Say what is asked for ahead of use, device by device; entries of a device from ``first[d]`` on, in turn."""

    first: np.ndarray  # int64 [D + 1]
    event: np.ndarray  # int64 [Q]: layer before which it is asked for; -1: in an earlier pass
    left: np.ndarray  # int64 [K, Q]: chunks that have still to pass each line
    ready: np.ndarray  # float64 [Q]: when it was asked for
    came: np.ndarray  # float64 [K, Q]: when it had passed each line
    head: np.ndarray  # int64 [K, D]: the first that may have something left
    free: np.ndarray  # float64 [K, D]: when each line has nothing in service
    met: np.ndarray  # int64 [D * M + 1]: where those begin that a layer on a device comes upon
    met_entry: np.ndarray  # int64
    met_as: np.ndarray  # int64: HIT or STOPPED
    late: np.ndarray  # uint8 [Q]: was expected and had not come as its layer asked, filled in


class Asked(NamedTuple):
    """Say what is missed: experts and bytes that pass each line, by layer and device."""

    copies: np.ndarray  # int64 [K, M, D]
    bytes: np.ndarray  # float64 [K, M, D]
    waits: np.ndarray  # float64 [M, D]: what a layer waits, filled in
    moved: np.ndarray  # float64 [D]: bytes ahead of use since the last layer that waited


class Pass(NamedTuple):
    """Say what a device does in a pass: as ``StepCost``; ``moe``: layers with experts; ``at``: phase ``fetch``."""

    seconds: np.ndarray
    present: np.ndarray
    sync: np.ndarray
    tp: int
    moe: np.ndarray
    at: int


@njit(cache=True)
def wait(step: Pass, lines: Lines, queue: Queue, asked: Asked) -> None:
    """Fill in *asked* what the layers of the pass *step*, which begins at 0 s, wait for."""
    n_devices = step.seconds.shape[2]
    ready, scratch, l, at = np.zeros(n_devices), np.empty_like(step.seconds), 0, step.at
    _serve_all(ready, lines, queue, np.zeros(n_devices))  # since the last pass nobody was held up
    _issue(0, ready, lines, queue)
    for i in range(len(step.moe)):
        end = step.moe[i]
        advance(step.seconds[l:end], step.present[l:end], step.sync, step.tp, ready, scratch[l:end])
        advance(step.seconds[end:end + 1, :at], step.present[end:end + 1, :at], step.sync[:at], step.tp, ready,
                scratch[end:end + 1, :at])
        _issue(i + 1, _layer(i, ready, lines, queue, asked), lines, queue)
        advance(step.seconds[end:end + 1, at:], step.present[end:end + 1, at:], step.sync[at:], step.tp, ready,
                scratch[end:end + 1, at:])
        l = end + 1
    advance(step.seconds[l:], step.present[l:], step.sync, step.tp, ready, scratch[l:])
    _serve_all(np.full(n_devices, ready.max()), lines, queue, asked.moved)


@njit(cache=True)
def _issue(event: int, at_s: np.ndarray, lines: Lines, queue: Queue) -> None:
    """Let what is asked for before *event* be asked for at *at_s* [D]."""
    for d in range(len(at_s)):
        for q in range(queue.first[d], queue.first[d + 1]):
            if queue.event[q] == event:
                queue.ready[q] = at_s[d]


@njit(cache=True)
def _layer(i: int, ready: np.ndarray, lines: Lines, queue: Queue, asked: Asked) -> np.ndarray:
    """Let layer *i* of all devices wait, which have come to it at *ready*; move *ready*; return when it asks, [D]."""
    asks = ready.copy()
    while True:  # what comes holds kernels up, and more comes meanwhile
        before = asked.moved.sum()
        _serve_all(asks, lines, queue, asked.moved)
        asks[:] = ready + asked.moved * lines.slowed
        if asked.moved.sum() == before:
            break
    asked.moved[:] = 0
    rests, come = _rests(i, asks, lines, queue, asked)
    there = _demand(i, asks, rests, come, (lines, queue, asked))
    asked.waits[i] = there - ready
    ready[:] = there
    return asks


@njit(cache=True)
def _serve_all(until: np.ndarray, lines: Lines, queue: Queue, moved: np.ndarray) -> None:
    """Let all lines serve what is expected, as far as it begins before *until* [D]."""
    for k in range(len(lines.level)):
        span = lines.span[k]
        for first in range(0, len(until), span):
            _serve(k, first, until[first:first + span].max(), lines, queue, moved)


@njit(cache=True)
def _serve(k: int, first: int, until: float, lines: Lines, queue: Queue, moved: np.ndarray) -> None:
    """Let line *k* of the devices from *first* on serve what is expected, in rounds that begin before *until*."""
    span, chunk = lines.span[k], lines.terms[k, 3] / lines.chunks
    counted = k + 1 == len(lines.level)  # the last one: into the device
    taken = np.empty(lines.lanes[k], np.int64)
    while True:
        soon = np.inf
        for d in range(first, first + span):
            soon = min(soon, _head(k, d, lines, queue))
        begin = max(queue.free[k, first], soon)
        if begin >= until:
            return
        n, more = 0, True
        while more and n < len(taken):
            more = False
            for d in range(first, first + span):
                if n < len(taken) and _head(k, d, lines, queue) <= begin:
                    q = queue.head[k, d]
                    queue.left[k, q] -= 1
                    taken[n] = q
                    n, more = n + 1, True
                    if counted:
                        moved[d] += chunk
        queue.free[k, first] = begin + _took(k, n, chunk, lines)
        for q in taken[:n]:
            queue.came[k, q] = queue.free[k, first]


@njit(cache=True)
def _head(k: int, d: int, lines: Lines, queue: Queue) -> float:
    """Return when the next copy of device *d* can begin on line *k*; infinite if there is none."""
    q, end = queue.head[k, d], queue.first[d + 1]
    while q < end and queue.left[k, q] == 0:
        q += 1
    queue.head[k, d] = q
    if q == end:
        return np.inf
    at = queue.ready[q]
    for other in range(k):
        if lines.level[other] == lines.level[k] + 1:
            at = max(at, queue.came[other, q] if queue.left[other, q] == 0 else np.inf)
    return at


@njit(cache=True)
def _rests(i: int, asks: np.ndarray, lines: Lines, queue: Queue, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Return what was expected for layer *i* and is not there as it *asks*; it is demand now.

    Chunks that have still to pass each line, int64 [K, D], and when those in service will have, float64 [K, D].
    """
    n_lines, n_devices = queue.free.shape
    rests, come = np.zeros((n_lines, n_devices), np.int64), np.zeros((n_lines, n_devices))
    for d in range(n_devices):
        begin = d * len(asked.waits) + i
        for m in range(queue.met[begin], queue.met[begin + 1]):
            q, late = queue.met_entry[m], False
            for k in range(n_lines):
                if queue.met_as[m] == HIT:
                    late = late or queue.left[k, q] > 0 or queue.came[k, q] > asks[d]
                    rests[k, d] += queue.left[k, q]
                    come[k, d] = max(come[k, d], queue.came[k, q])
                queue.left[k, q] = 0
            queue.late[q] = late
    return rests, come


@njit(cache=True)
def _demand(i: int, asks: np.ndarray, rests: np.ndarray, come: np.ndarray, of: tuple[Lines, Queue, Asked]
            ) -> np.ndarray:
    """Return when each device has all that layer *i* misses or still needs.

    What comes over two levels is there when the upper one has carried all, all that came from below since its first,
    or the last of that: a line of two machines (flow shop), chunk by chunk.
    """
    lines, queue, asked = of
    done, first_s, below_done, below_first, below = asks.copy(), asks.copy(), asks, asks, -1
    for k in range(len(lines.level)):
        if k and lines.level[k] < lines.level[k - 1]:
            below_done, below_first, below = done, first_s, k - 1
            done, first_s = asks.copy(), asks.copy()
        n, span = asked.copies[k, i], lines.span[k]
        for d in range(len(asks)):
            done[d] = max(done[d], come[k, d])
            if n[d] + rests[k, d] == 0:
                continue
            first = d // span * span
            chunk = lines.terms[k, 3] / lines.chunks
            size = asked.bytes[k, i, d] / n[d] if n[d] else chunk
            begin = max(queue.free[k, first], asks[d])
            there = begin + _took(k, _turns(n, d, span), size, lines) + _took(
                k, _turns(rests[k], d, span), chunk, lines)
            if below >= 0 and asked.copies[below, i, d] + rests[below, d] > 0:
                there = max(there, below_first[d] + _took(k, _turns(asked.copies[below, i], d, span), size, lines))
            if below >= 0:
                there = max(there, below_done[d] + _took(k, 1, size, lines) if below_done[d] > asks[d] else there)
            first_s[d] = max(first_s[d], begin + _took(k, 1, size, lines))
            done[d] = max(done[d], there)
        for first in range(0, len(asks), span):
            busy = (n + rests[k])[first:first + span] > 0
            if busy.any():
                queue.free[k, first] = max(queue.free[k, first], done[first:first + span][busy].max())
    return done


@njit(cache=True)
def _turns(n: np.ndarray, d: int, span: int) -> int:
    """Return what has gone over a line of *span* devices, which take turns, with the last of the *n* [D] of device *d*.
    """
    first, sum_ = d // span * span, 0
    for other in range(first, first + span):
        sum_ += min(n[d], n[other])
    return sum_


@njit(cache=True)
def _took(k: int, n: int, size: float, lines: Lines) -> float:
    """Return the seconds in which line *k* moves *n* chunks of *size* bytes that are all ready."""
    setup, per_byte, half = lines.terms[k, 0], lines.terms[k, 1], lines.terms[k, 2]
    lanes = lines.lanes[k]
    rest = n % lanes
    seconds = (n // lanes) * (setup + size * (lanes + half) * per_byte)
    return seconds + (setup + size * (rest + half) * per_byte if rest else 0.0)
