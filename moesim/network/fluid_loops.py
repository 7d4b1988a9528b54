"""The hot loops of fluid flows. Numba is imported with this module, so import it inside functions.

Letters: f a flow, l a link, e an entry (one link of one flow). A flow's *level* is its rate over its weight; flows
that share a bottleneck have the same level, so filling all links by one rising level gives the max-min fair rates.
Here ``usage`` of a path is multiplied by the flow's weight: what each entry takes of its link per unit of level.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from moesim.network.fluid import Flows, Paths

ROOM, DEMAND, COUNT, LOAD = 0, 1, 2, 3  # columns of Links.filling
WAITING, OPEN, FIXED, DONE = 0, 1, 2, 3  # a flow that has not started; whose rate is sought; is known; that has ended
ROUNDING = 1e-12  # flows that end within this share of their duration end together: their times differ by rounding
TIE = 1e-9        # levels this close may be one level reached through two links


class Links(NamedTuple):
    """Links while they fill: capacity, the flows on each (l: ``members[offset[l] :][: length[l]]``), what is left.

    ``filling`` [links, 4] side by side, for they are used together: bytes/s not given away, usage of the open flows,
    number of open flows, usage of all flows that run.
    """

    capacity: np.ndarray
    offset: np.ndarray
    members: np.ndarray
    length: np.ndarray
    filling: np.ndarray


class State(NamedTuple):
    """Flows while they run: level, status, the link that limits each (-1: its own limit), and space for a heap."""

    level: np.ndarray
    status: np.ndarray
    bottleneck: np.ndarray
    heap_key: np.ndarray
    heap_id: np.ndarray


@njit(cache=True, nogil=True, error_model="numpy")
def prepare(paths: Paths, capacity: np.ndarray) -> tuple[Links, State]:
    """Return links without flows, with space for all of them, and flows that wait."""
    n_flows, n_links = len(paths.first) - 1, len(capacity)
    offset = np.zeros(n_links + 1, np.int64)
    for l in paths.link:
        offset[l + 1] += 1
    links = Links(capacity, np.cumsum(offset), np.empty(len(paths.link), np.int32), np.zeros(n_links, np.int64),
                  np.zeros((n_links, 4)))
    state = State(np.full(n_flows, np.inf), np.zeros(n_flows, np.uint8), np.full(n_flows, -1, np.int32),
                  np.empty(n_links + n_flows), np.empty(n_links + n_flows, np.int64))
    return links, state


@njit(cache=True, nogil=True, error_model="numpy")
def join(f: int, paths: Paths, links: Links, state: State) -> None:
    """Let flow *f* begin: put it on its links, its rate unknown."""
    state.status[f], state.level[f] = OPEN, np.inf
    for e in range(paths.first[f], paths.first[f + 1]):
        l = paths.link[e]
        links.members[links.offset[l] + links.length[l]] = f
        links.length[l] += 1
        links.filling[l, LOAD] += paths.usage[e]


@njit(cache=True, nogil=True, error_model="numpy")
def sink(key: np.ndarray, ids: np.ndarray, n: int, at: int) -> None:
    """Move the entry *at* of the heap of *n* entries down to its place (smallest key on top)."""
    k, i = key[at], ids[at]
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and key[child + 1] < key[child]:
            child += 1
        if key[child] >= k:
            break
        key[at], ids[at] = key[child], ids[child]
        at = child
    key[at], ids[at] = k, i


@njit(cache=True, nogil=True, error_model="numpy")
def open_up(running: np.ndarray, paths: Paths, links: Links, state: State) -> None:
    """Set what open flows among the *running* find: the room that the others leave, and their own demand."""
    filling = links.filling
    for l in range(len(links.capacity)):
        filling[l, ROOM], filling[l, DEMAND], filling[l, COUNT] = links.capacity[l], 0.0, 0.0
    for f in running:
        if state.status[f] == OPEN:
            for e in range(paths.first[f], paths.first[f + 1]):
                filling[paths.link[e], DEMAND] += paths.usage[e]
                filling[paths.link[e], COUNT] += 1
        else:
            for e in range(paths.first[f], paths.first[f + 1]):
                filling[paths.link[e], ROOM] -= paths.usage[e] * state.level[f]


@njit(cache=True, nogil=True, error_model="numpy")
def build_heap(running: np.ndarray, flows: Flows, links: Links, state: State) -> int:
    """Fill the heap with the level at which each link, and each flow with a limit, would stop; return its size."""
    n, n_links = 0, len(links.capacity)
    for l in range(n_links):
        if links.filling[l, COUNT] > 0:
            state.heap_key[n], state.heap_id[n] = max(links.filling[l, ROOM], 0.0) / links.filling[l, DEMAND], l
            n += 1
    for f in running:
        if state.status[f] == OPEN and flows.limit[f] < np.inf:
            state.heap_key[n], state.heap_id[n] = flows.limit[f] / flows.weight[f], n_links + f
            n += 1
    for at in range(n // 2 - 1, -1, -1):
        sink(state.heap_key, state.heap_id, n, at)
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def fix(f: int, level: float, paths: Paths, links: Links, state: State) -> None:
    """Give flow *f* its final *level* and take its rate off its links."""
    state.level[f], state.status[f] = level, FIXED
    for e in range(paths.first[f], paths.first[f + 1]):
        l, usage = paths.link[e], paths.usage[e]
        links.filling[l, ROOM] -= usage * level
        links.filling[l, DEMAND] -= usage
        links.filling[l, COUNT] -= 1


@njit(cache=True, nogil=True, error_model="numpy")
def saturate(l: int, level: float, paths: Paths, links: Links, state: State) -> None:
    """Fix all open flows of link *l* at *level*; forget those that have ended."""
    k, end = links.offset[l], links.offset[l] + links.length[l]
    while k < end:
        f = links.members[k]
        if state.status[f] == DONE:
            end -= 1
            links.members[k] = links.members[end]
            continue
        if state.status[f] == OPEN:
            fix(f, level, paths, links, state)
            state.bottleneck[f] = l
        k += 1
    links.length[l] = end - links.offset[l]


@njit(cache=True, nogil=True, error_model="numpy")
def fill(running: np.ndarray, paths: Paths, flows: Flows, links: Links, state: State) -> None:
    """Raise the level of all open flows until each meets a full link or its own limit: progressive filling.

    The level at which a link fills up only grows while others fill, so a key in the heap is a lower bound: the top is
    refreshed before it counts, and nothing else is ever updated.
    """
    open_up(running, paths, links, state)
    n = build_heap(running, flows, links, state)
    key, ids, n_links = state.heap_key, state.heap_id, len(links.capacity)
    while n > 0:
        top = ids[0]
        if top >= n_links:
            f = top - n_links
            if state.status[f] == OPEN:
                fix(f, key[0], paths, links, state)
                state.bottleneck[f] = -1
        elif links.filling[top, COUNT] > 0:
            level = max(links.filling[top, ROOM], 0.0) / links.filling[top, DEMAND]
            if level > key[0]:
                key[0] = level
                sink(key, ids, n, 0)
                continue
            saturate(top, level, paths, links, state)
        n -= 1
        key[0], ids[0] = key[n], ids[n]
        sink(key, ids, n, 0)


@njit(cache=True, nogil=True, error_model="numpy")
def solve(paths: Paths, flows: Flows, capacity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the max-min fair rate (bytes/s) and the bottleneck of every flow when all run at once."""
    links, state = prepare(paths, capacity)
    for f in range(len(flows.weight)):
        join(f, paths, links, state)
    fill(np.arange(len(flows.weight)), paths, flows, links, state)
    return state.level * flows.weight, state.bottleneck
