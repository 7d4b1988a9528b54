"""The hot loop of fluid events: flows start, share links, end. Numba is imported with this module.

Between events all rates are constant, so a flow's end is known as soon as its rate is; it is computed anew only when
its rate changes. An event re-solves only the levels that it can reach (see ``reopen``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from moesim.network.fluid import Flows, Paths, Stops
from moesim.network.fluid_loops import (
    DONE,
    HELD,
    LOAD,
    OPEN,
    ROUNDING,
    STUCK,
    TIE,
    WAITING,
    Links,
    State,
    fill,
    join,
    open_up,
    prepare,
)


class Clock(NamedTuple):
    """When flows end at their present rates, [flows]: ``end_s``; ``left`` bytes at ``since_s``; begun: ``begun_s``."""

    end_s: np.ndarray
    left: np.ndarray
    since_s: np.ndarray
    begun_s: np.ndarray


class Run(NamedTuple):
    """All that a run of flows knows, and space [flows] to note a few of them and their levels."""

    paths: Paths
    flows: Flows
    links: Links
    state: State
    clock: Clock
    noted: np.ndarray
    before: np.ndarray


@njit(cache=True, nogil=True, error_model="numpy")
def begin(f: int, now: float, run: Run) -> float:
    """Let flow *f* begin; return a level below which that can change nothing: no link of its fills up sooner."""
    join(f, run.paths, run.flows, run.links, run.state)
    run.clock.begun_s[f] = now
    level = np.inf
    for e in range(run.paths.first[f], run.paths.first[f + 1]):
        l = run.paths.link[e]
        level = min(level, run.links.capacity[l] / run.links.filling[l, LOAD])
    return level


@njit(cache=True, nogil=True, error_model="numpy")
def reopen(running: np.ndarray, floor: float, run: Run) -> int:
    """Open all flows at or above the level *floor*, note them and their levels; return their number.

    Filling is the same up to the lowest level of a flow that ended, and up to the lowest level at which a link of a
    flow that began can fill up. What was fixed below that stays. A flow that just began has the level inf.
    """
    level, n = run.state.level, 0
    for f in running:
        if level[f] >= floor * (1 - TIE):
            run.state.status[f] = OPEN
            run.noted[n], run.before[n] = f, level[f]
            n += 1
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def refresh(n: int, now: float, run: Run) -> None:
    """Compute the end of the *n* flows noted whose level is no longer the one ``before``."""
    clock, weight, level = run.clock, run.flows.weight, run.state.level
    for i, f in enumerate(run.noted[:n]):
        before = run.before[i]
        if before == level[f]:
            continue
        if before < np.inf:
            clock.left[f] = max(clock.left[f] - weight[f] * before * (now - clock.since_s[f]), 0.0)
        clock.since_s[f] = now
        clock.end_s[f] = now + clock.left[f] / (weight[f] * level[f])


@njit(cache=True, nogil=True, error_model="numpy")
def settle(running: np.ndarray, floor: float, now: float, run: Run) -> int:
    """Solve the levels from *floor* up, compute the ends that move; return the number of flows solved."""
    n = reopen(running, floor, run)
    if n > 0:
        open_up(running, run.paths, run.flows, run.links, run.state)
        fill(run.noted[:n], run.paths, run.flows, run.links, run.state)
        refresh(n, now, run)
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def next_stop(running: np.ndarray, bar: float, tolerance: float, run: Run) -> float:
    """Return until when rates stay: the last end that is close enough to the first, or the time *bar* if that is first.

    Close enough: an end that comes after the first by at most *tolerance* of its flow's whole duration.
    """
    first, end_s, begun_s = np.inf, run.clock.end_s, run.clock.begun_s
    for f in running:
        first = min(first, end_s[f])
    if bar <= first:
        return bar
    n = 0
    for f in running:
        if end_s[f] - first > tolerance * (end_s[f] - begun_s[f]):
            bar = min(bar, end_s[f])
        else:
            run.noted[n] = f
            n += 1
    last = first
    for f in run.noted[:n]:
        if last < end_s[f] < bar:
            last = end_s[f]
    return last


@njit(cache=True, nogil=True, error_model="numpy")
def leave(running: np.ndarray, now: float, run: Run) -> tuple[int, int, float]:
    """Take the flows that have ended by *now* off the links and note them.

    Return how many still run, how many ended, and the lowest level freed.
    """
    paths, mixed = run.paths, len(run.paths.usage) > 0
    n, gone, floor = 0, 0, np.inf
    for f in running:
        if run.clock.end_s[f] > now:
            running[n] = f
            n += 1
            continue
        run.noted[gone] = f
        gone += 1
        run.state.status[f], run.clock.left[f] = DONE, 0.0
        floor = min(floor, run.state.level[f])
        for e in range(paths.first[f], paths.first[f + 1]):
            run.links.filling[paths.link[e], LOAD] -= paths.usage[e] if mixed else run.flows.weight[f]
    return n, gone, floor


@njit(cache=True, nogil=True, error_model="numpy")
def follow(gone: int, now: float, running: np.ndarray, n: int, run: Run) -> tuple[int, float]:
    """Let the followers of the *gone* flows noted begin, or wait for their start.

    Return how many run then, and the lowest level that this can change.
    """
    floor, status = np.inf, run.state.status
    for f in run.noted[:gone]:
        next_one = run.flows.follower[f]
        if next_one >= 0 and status[next_one] == HELD:
            status[next_one] = WAITING
            if run.flows.start_s[next_one] <= now:
                floor = min(floor, begin(next_one, now, run))
                running[n] = next_one
                n += 1
    return n, floor


@njit(cache=True, nogil=True, error_model="numpy")
def stop(running: np.ndarray, stops: Stops, run: Run) -> None:
    """Leave the *running* flows as they are at ``until``: without an end, with the bytes that are left."""
    clock = run.clock
    for f in running:
        if clock.end_s[f] <= stops.until + stops.rounding:
            clock.left[f] = 0.0
            continue
        if run.state.level[f] == np.inf:  # begun just now: it has no rate yet
            clock.end_s[f] = np.inf
            continue
        rate = run.flows.weight[f] * run.state.level[f]
        clock.left[f] -= rate * (stops.until - clock.since_s[f])
        if clock.left[f] <= 0:  # by rounding: it has not ended
            clock.left[f] = rate * (clock.end_s[f] - stops.until)
        clock.end_s[f] = np.inf


@njit(cache=True, nogil=True, error_model="numpy")
def ready(paths: Paths, flows: Flows, capacity: np.ndarray) -> Run:
    """Return a run of which nothing has happened."""
    links, state = prepare(paths, flows, capacity)
    n = len(flows.weight)
    for f in flows.follower:
        if f >= 0 and state.status[f] != STUCK:
            state.status[f] = HELD
    clock = Clock(np.full(n, np.inf), flows.size.copy(), np.zeros(n), np.zeros(n))
    return Run(paths, flows, links, state, clock, np.empty(n, np.uint32), np.empty(n))


@njit(cache=True, nogil=True, error_model="numpy")
def simulate(paths: Paths, flows: Flows, capacity: np.ndarray, order: np.ndarray,
             stops: Stops) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Run all flows to their end, or to the end of the run; *order* sorts them by start.

    Return their ends (s), the link that limited each at the end, the bytes left, the number of events, and the number
    of rates solved.
    """
    run = ready(paths, flows, capacity)
    running = np.empty(len(order), np.uint32)
    n = begun = events = solved = 0
    now, floor = flows.start_s[order[0]], np.inf
    while (n > 0 or begun < len(order)) and now < stops.until:
        while begun < len(order) and flows.start_s[order[begun]] <= now:
            f = order[begun]
            if run.state.status[f] == WAITING:
                floor = min(floor, begin(f, now, run))
                running[n] = f
                n += 1
            begun += 1
        solved += settle(running[:n], floor, now, run)
        events += 1
        bar = min(stops.until, flows.start_s[order[begun]] if begun < len(order) else np.inf)
        now = next_stop(running[:n], bar, max(stops.tolerance, ROUNDING), run)
        n, gone, floor = leave(running[:n], now, run)
        if len(flows.follower) > 0:
            n, lowest = follow(gone, now, running, n, run)
            floor = min(floor, lowest)
    stop(running[:n], stops, run)
    return run.clock.end_s, run.state.bottleneck, run.clock.left, events, solved
