"""The hot loop of fluid events: flows start, share links, end. Numba is imported with this module.

Between events all rates are constant, so a flow's end is known as soon as its rate is; it is computed anew only when
its rate changes. An event re-solves only the levels that it can reach (see ``reopen``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from moesim.network.fluid import Flows, Paths
from moesim.network.fluid_loops import DONE, FIXED, LOAD, OPEN, ROUNDING, TIE, Links, State, fill, join, prepare


class Clock(NamedTuple):
    """When flows end at their present rates, [flows]: ``end_s``; ``left`` bytes at the time ``since_s``."""

    end_s: np.ndarray
    left: np.ndarray
    since_s: np.ndarray


class Run(NamedTuple):
    """All that a run of flows knows."""

    paths: Paths
    flows: Flows
    links: Links
    state: State
    clock: Clock


@njit(cache=True, nogil=True, error_model="numpy")
def lowest_level(f: int, paths: Paths, links: Links) -> float:
    """Return a level below which flow *f*, just begun, can change nothing: no link of its fills up sooner."""
    level = np.inf
    for e in range(paths.first[f], paths.first[f + 1]):
        level = min(level, links.capacity[paths.link[e]] / links.filling[paths.link[e], LOAD])
    return level


@njit(cache=True, nogil=True, error_model="numpy")
def reopen(running: np.ndarray, floor: float, state: State) -> int:
    """Open all flows at or above the level *floor*; return the number of open flows.

    Filling is the same up to the lowest level of a flow that ended, and up to the lowest level at which a link of a
    flow that began can fill up. What was fixed below that stays.
    """
    n_open = 0
    for f in running:
        if state.status[f] == FIXED and state.level[f] >= floor * (1 - TIE):
            state.status[f] = OPEN
        if state.status[f] == OPEN:
            n_open += 1
    return n_open


@njit(cache=True, nogil=True, error_model="numpy")
def refresh(reached: np.ndarray, before: np.ndarray, now: float, run: Run) -> None:
    """Compute the end of the flows *reached* whose level is no longer the one *before*."""
    clock, weight, level = run.clock, run.flows.weight, run.state.level
    for i, f in enumerate(reached):
        if before[i] == level[f]:
            continue
        if before[i] < np.inf:
            clock.left[f] = max(clock.left[f] - weight[f] * before[i] * (now - clock.since_s[f]), 0.0)
        clock.since_s[f] = now
        clock.end_s[f] = now + clock.left[f] / (weight[f] * level[f])


@njit(cache=True, nogil=True, error_model="numpy")
def settle(running: np.ndarray, floor: float, now: float, run: Run) -> int:
    """Solve the levels from *floor* up, compute the ends that move; return the number of flows solved."""
    n_open = reopen(running, floor, run.state)
    if n_open == 0:
        return 0
    reached, i = np.empty(n_open, np.int64), 0
    for f in running:
        if run.state.status[f] == OPEN:
            reached[i] = f
            i += 1
    before = run.state.level[reached]
    fill(running, run.paths, run.flows, run.links, run.state)
    refresh(reached, before, now, run)
    return n_open


@njit(cache=True, nogil=True, error_model="numpy")
def next_stop(running: np.ndarray, arrival: float, tolerance: float, start_s: np.ndarray, end_s: np.ndarray) -> float:
    """Return until when rates stay: the last end that is close enough to the first, or the next *arrival*.

    Close enough: an end that comes after the first by at most *tolerance* of its flow's whole duration.
    """
    first, bar = np.inf, arrival
    for f in running:
        first = min(first, end_s[f])
    if arrival <= first:
        return arrival
    for f in running:
        if end_s[f] - first > tolerance * (end_s[f] - start_s[f]):
            bar = min(bar, end_s[f])
    last = first
    for f in running:
        if last < end_s[f] < bar:
            last = end_s[f]
    return last


@njit(cache=True, nogil=True, error_model="numpy")
def leave(running: np.ndarray, now: float, run: Run) -> tuple[int, float]:
    """Take the flows that have ended by *now* off the links; return how many still run, and the lowest level freed."""
    n, floor = 0, np.inf
    for f in running:
        if run.clock.end_s[f] > now:
            running[n] = f
            n += 1
            continue
        run.state.status[f] = DONE
        floor = min(floor, run.state.level[f])
        for e in range(run.paths.first[f], run.paths.first[f + 1]):
            run.links.filling[run.paths.link[e], LOAD] -= run.paths.usage[e]
    return n, floor


@njit(cache=True, nogil=True, error_model="numpy")
def simulate(paths: Paths, flows: Flows, capacity: np.ndarray, order: np.ndarray,
             tolerance: float) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Run all flows to their end; *order* sorts them by start.

    Return their ends (s), the link that limited each at the end, the number of events, and the number of rates solved.
    """
    links, state = prepare(paths, capacity)
    clock = Clock(np.full(len(order), np.inf), flows.size.copy(), np.zeros(len(order)))
    run = Run(paths, flows, links, state, clock)
    running = np.empty(len(order), np.int64)
    n = begun = events = solved = 0
    now, floor = flows.start_s[order[0]], np.inf
    while n > 0 or begun < len(order):
        came = begun
        while begun < len(order) and flows.start_s[order[begun]] <= now:
            join(order[begun], paths, links, state)
            running[n] = order[begun]
            begun, n = begun + 1, n + 1
        for f in order[came:begun]:
            floor = min(floor, lowest_level(f, paths, links))
        solved += settle(running[:n], floor, now, run)
        events += 1
        arrival = flows.start_s[order[begun]] if begun < len(order) else np.inf
        now = next_stop(running[:n], arrival, max(tolerance, ROUNDING), flows.start_s, clock.end_s)
        n, floor = leave(running[:n], now, run)
    return clock.end_s, state.bottleneck, events, solved
