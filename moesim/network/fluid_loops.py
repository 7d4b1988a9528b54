"""The hot loops of fluid flows. Numba is imported with this module, so import it inside functions.

Letters: f a flow, l a link, e an entry (one link of one flow). A flow's *level* is its rate over its weight; flows
that share a bottleneck have the same level, so filling all links by one rising level gives the max-min fair rates.
Here ``usage`` of a path is multiplied by the flow's weight: what each entry takes of its link per unit of level. It is
empty where all entries take the weight of their flow. These loops wait for memory, so less of it is faster: numbers of
flows and links are unsigned and short (numba also skips the test for negative indices then).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from moesim.network.fluid import Flows, Paths

ROOM, DEMAND, COUNT, LOAD = 0, 1, 2, 3  # columns of Links.filling
WAITING, OPEN, FIXED, DONE = 0, 1, 2, 3  # a flow that has not started; whose rate is sought; is known; that has ended
HELD, STUCK = 4, 5  # waits for the end of another; crosses a link without capacity
ROUNDING = 1e-12  # flows that end within this share of their duration end together: their times differ by rounding
TIE = 1e-9        # levels this close may be one level reached through two links


class Links(NamedTuple):
    """Links while they fill: capacity, the flows on each (l: ``members[start[l] : end[l]]``), what is left.

    ``filling`` [links, 4] side by side, for they are used together: bytes/s not given away, usage of the open flows,
    number of open flows, usage of all flows that run.
    """

    capacity: np.ndarray
    start: np.ndarray
    end: np.ndarray
    members: np.ndarray
    filling: np.ndarray


class State(NamedTuple):
    """Flows while they run: level, status, the link that limits each (-1: its own limit).

    Space for those that a full link stops, and for a heap of links and, if there are limits, flows.
    """

    level: np.ndarray
    status: np.ndarray
    bottleneck: np.ndarray
    stopped: np.ndarray
    heap_key: np.ndarray
    heap_id: np.ndarray


@njit(cache=True, nogil=True, error_model="numpy")
def prepare(paths: Paths, flows: Flows, capacity: np.ndarray) -> tuple[Links, State]:
    """Return links without flows, with space for all of them, and flows that wait."""
    n_flows, n_links = len(flows.weight), len(capacity)
    space = np.zeros(n_links + 1, np.int64)
    for l in paths.link:
        space[l + 1] += 1
    start = np.cumsum(space)
    links = Links(capacity, start, start[:-1].copy(), np.empty(len(paths.link), np.uint32), np.zeros((n_links, 4)))
    n_keys = n_links
    for limit in flows.limit:
        if limit < np.inf:
            n_keys = n_links + n_flows
            break
    state = State(np.full(n_flows, np.inf), np.zeros(n_flows, np.uint8), np.full(n_flows, -1, np.int32),
                  np.empty(n_flows, np.uint32), np.empty(n_keys), np.empty(n_keys, np.int64))
    if n_links > 0 and capacity.min() <= 0:
        block(paths, capacity, state)
    return links, state


@njit(cache=True, nogil=True, error_model="numpy")
def block(paths: Paths, capacity: np.ndarray, state: State) -> None:
    """Mark the flows that can never move, for one of their links has no capacity."""
    for f in range(len(state.status)):
        for e in range(paths.first[f], paths.first[f + 1]):
            if capacity[paths.link[e]] <= 0:
                state.status[f], state.level[f], state.bottleneck[f] = STUCK, 0.0, paths.link[e]
                break


@njit(cache=True, nogil=True, error_model="numpy")
def join(f: int, paths: Paths, flows: Flows, links: Links, state: State) -> None:
    """Let flow *f* begin: put it on its links, its rate unknown."""
    state.status[f], state.level[f] = OPEN, np.inf
    mixed, usage = len(paths.usage) > 0, flows.weight[f]
    for e in range(paths.first[f], paths.first[f + 1]):
        l = paths.link[e]
        if mixed:
            usage = paths.usage[e]
        links.members[links.end[l]] = f
        links.end[l] += 1
        links.filling[l, LOAD] += usage


@njit(cache=True, nogil=True, error_model="numpy")
def sink(key: np.ndarray, ids: np.ndarray, n: int, at: int) -> None:
    """Move the entry *at* of the heap of *n* entries down to its place (smallest key on top)."""
    k, i = key[at], ids[at]
    child = 2 * at + 1
    while child + 1 < n:
        child += key[child + 1] < key[child]  # no branch: which of the two is smaller cannot be guessed
        if key[child] >= k:
            break
        key[at], ids[at] = key[child], ids[child]
        at, child = child, 2 * child + 1
    if child + 1 == n and key[child] < k:  # an only child
        key[at], ids[at] = key[child], ids[child]
        at = child
    key[at], ids[at] = k, i


@njit(cache=True, nogil=True, error_model="numpy")
def open_up(running: np.ndarray, paths: Paths, flows: Flows, links: Links, state: State) -> None:
    """Set what open flows among the *running* find: the room that the others leave, and their own demand."""
    filling, mixed = links.filling, len(paths.usage) > 0
    for l in range(len(links.capacity)):
        filling[l, ROOM], filling[l, DEMAND], filling[l, COUNT] = links.capacity[l], 0.0, 0.0
    for f in running:
        usage, level, is_open = flows.weight[f], state.level[f], state.status[f] == OPEN
        for e in range(paths.first[f], paths.first[f + 1]):
            l = paths.link[e]
            if mixed:
                usage = paths.usage[e]
            if is_open:
                filling[l, DEMAND] += usage
                filling[l, COUNT] += 1
            else:
                filling[l, ROOM] -= usage * level


@njit(cache=True, nogil=True, error_model="numpy")
def build_heap(opened: np.ndarray, flows: Flows, links: Links, state: State) -> int:
    """Fill the heap with the level at which each link, and each flow with a limit, would stop; return its size."""
    n, n_links = 0, len(links.capacity)
    for l in range(n_links):
        if links.filling[l, COUNT] > 0:
            state.heap_key[n], state.heap_id[n] = max(links.filling[l, ROOM], 0.0) / links.filling[l, DEMAND], l
            n += 1
    if len(state.heap_key) > n_links:
        for f in opened:
            if flows.limit[f] < np.inf:
                state.heap_key[n], state.heap_id[n] = flows.limit[f] / flows.weight[f], n_links + f
                n += 1
    for at in range(n // 2 - 1, -1, -1):
        sink(state.heap_key, state.heap_id, n, at)
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def fix(f: int, level: float, paths: Paths, flows: Flows, links: Links, state: State) -> None:
    """Give flow *f* its final *level* and take its rate off its links."""
    state.level[f], state.status[f] = level, FIXED
    mixed, usage = len(paths.usage) > 0, flows.weight[f]
    for e in range(paths.first[f], paths.first[f + 1]):
        l = paths.link[e]
        if mixed:
            usage = paths.usage[e]
        links.filling[l, ROOM] -= usage * level
        links.filling[l, DEMAND] -= usage
        links.filling[l, COUNT] -= 1


@njit(cache=True, nogil=True, error_model="numpy")
def saturate(l: int, level: float, paths: Paths, flows: Flows, links: Links, state: State) -> int:
    """Fix all open flows of link *l* at *level*, return their number; forget those that have ended.

    They are found first, without a branch that the processor would guess wrong, and fixed then.
    """
    kept, n = links.start[l], 0
    for k in range(links.start[l], links.end[l]):
        f = links.members[k]
        status = state.status[f]
        links.members[kept], state.stopped[n] = f, f
        kept += status != DONE
        n += status == OPEN
    links.end[l] = kept
    for f in state.stopped[:n]:
        fix(f, level, paths, flows, links, state)
        state.bottleneck[f] = l
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def fill(opened: np.ndarray, paths: Paths, flows: Flows, links: Links, state: State) -> None:
    """Raise the level of the *opened* flows until each meets a full link or its own limit: progressive filling.

    The level at which a link fills up only grows while others fill, so a key in the heap is a lower bound: the top is
    refreshed before it counts, and nothing else is ever updated.
    """
    n, still_open = build_heap(opened, flows, links, state), len(opened)
    key, ids, n_links = state.heap_key, state.heap_id, len(links.capacity)
    while n > 0 and still_open > 0:
        top = ids[0]
        if top >= n_links:
            f = top - n_links
            if state.status[f] == OPEN:
                fix(f, key[0], paths, flows, links, state)
                state.bottleneck[f] = -1
                still_open -= 1
        elif links.filling[top, COUNT] > 0:
            level = max(links.filling[top, ROOM], 0.0) / links.filling[top, DEMAND]
            if level > key[0]:
                key[0] = level
                sink(key, ids, n, 0)
                continue
            still_open -= saturate(top, level, paths, flows, links, state)
        n -= 1
        while n > 1 and ids[n] < n_links and links.filling[ids[n], COUNT] == 0:  # has nobody left: no need to move it
            n -= 1
        key[0], ids[0] = key[n], ids[n]
        sink(key, ids, n, 0)


@njit(cache=True, nogil=True, error_model="numpy")
def solve(paths: Paths, flows: Flows, capacity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the max-min fair rate (bytes/s) and the bottleneck of every flow when all run at once."""
    links, state = prepare(paths, flows, capacity)
    opened, n = np.empty(len(flows.weight), np.uint32), 0
    for f in range(len(flows.weight)):
        if state.status[f] != STUCK:
            join(f, paths, flows, links, state)
            opened[n] = f
            n += 1
    for l in range(len(capacity)):  # as ``open_up`` with nobody fixed
        links.filling[l, ROOM], links.filling[l, DEMAND] = capacity[l], links.filling[l, LOAD]
        links.filling[l, COUNT] = links.end[l] - links.start[l]
    fill(opened[:n], paths, flows, links, state)
    return state.level * flows.weight, state.bottleneck
