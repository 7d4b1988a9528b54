"""From the experts that a step's tokens chose to tokens per expert slot and messages between devices.

Letters: T tokens of the step, L layers with experts, k experts per token, D devices, S slots of a device
(the experts it holds in a layer, in ascending order). One function per way that tokens meet experts
(docs/background/expert-parallelism.md): all are loops compiled by numba, with plain twins in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from moesim.placement.placement import Placement

_BLOCK = 64  # tokens: 64 of 48 layers and top-8 are 48 KB, and stay in a core's second cache


@dataclass(frozen=True)
class SlotMap:
    """Where the replicas of each expert are.

    ``device``: int32 [L, E, R], the devices of an expert's replicas, -1 where it has fewer than R. ``slot``: int32 of
    the same shape, which slot of that device. ``n_slots``: S, the most slots of a device in a layer.
    """

    device: np.ndarray
    slot: np.ndarray
    n_slots: int

    @classmethod
    def none(cls) -> SlotMap:
        """Return the slots of a model without experts."""
        empty = np.empty((0, 0, 0), np.int32)
        return cls(empty, empty, 0)

    @classmethod
    def of(cls, placement: Placement) -> SlotMap:
        """Return the slots of *placement*."""
        replicas = placement.replicas
        n_replicas = replicas.sum(axis=2)
        shape = (*replicas.shape[:2], int(n_replicas.max()))
        device, slot = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
        slot_of = np.cumsum(replicas, axis=1) - 1
        layer, expert, where = np.nonzero(replicas)
        first = np.cumsum(n_replicas.ravel()) - n_replicas.ravel()
        rank = np.arange(len(where)) - np.repeat(first, n_replicas.ravel())
        device[layer, expert, rank] = where
        slot[layer, expert, rank] = slot_of[layer, expert, where]
        return cls(device, slot, int(replicas.sum(axis=1).max()))


@njit(cache=True)
def _replica(device: np.ndarray, l: int, e: int, here: int, per_node: int, turns: np.ndarray) -> int:
    """Return the replica of expert *e* that a token on *here* uses: one here, else one of its node, else any.

    Where there are several, the tokens of a node take *turns* (int32 [E, nodes], counted per layer), so that replicas
    share the load.
    """
    n = device.shape[2]
    if n == 1:
        return 0
    node = here // per_node
    near = 0
    for r in range(device.shape[2]):
        d = device[l, e, r]
        if d < 0:
            n = r
            break
        if d == here:
            return r
        near += d // per_node == node
    turn = turns[e, node]
    turns[e, node] += 1
    if near == 0:
        return turn % n
    wanted = turn % near
    for r in range(n):
        if device[l, e, r] // per_node == node:
            if wanted == 0:
                return r
            wanted -= 1
    return 0


def dispatch(experts, home, device, slot, per_node, deduplicate, tokens, copies, visits):  # type: ignore[no-untyped-def]
    """Count tokens per slot and copies per pair of devices for tokens that return *home* after every layer.

    *experts* uint16 [T, L, k], *home* int32 [T], *device* and *slot*: of a ``SlotMap``; adds to *tokens*
    [L, D, S] and *copies* [L, D, D] (from, to; the diagonal holds what stays), both int32. With *deduplicate* a token
    is copied once to a device that holds several of its experts. *visits* int32 [L, D, N]: a token once per node that
    it visits, its own too. None for either: not asked for. The same messages come back.
    """
    if device.shape[2] == 1 and visits is None:  # the usual case, several times as fast
        _dispatch_single(experts, home, device[:, :, 0], slot[:, :, 0], deduplicate, tokens, copies)
    else:
        _dispatch(experts, home, device, slot, per_node, deduplicate, tokens, copies, visits)


@njit(cache=True)
def _dispatch_single(experts, home, device, slot, deduplicate, tokens, copies):  # type: ignore[no-untyped-def]
    """As ``dispatch``, where every expert has one replica."""
    n_tokens, n_layers, k = experts.shape
    seen = np.full(tokens.shape[1], -1, np.int64)
    count = np.zeros(device.shape, np.int32)  # tokens per expert: counted first, put in their slots once
    for first in range(0, n_tokens, _BLOCK):
        for l in range(n_layers):  # layer by layer: the counts of one layer, and all of a block, stay in cache
            of, of_layer = device[l], count[l]
            for t in range(first, min(first + _BLOCK, n_tokens)):
                visit = l * n_tokens + t
                for j in range(k):
                    e = experts[t, l, j]
                    of_layer[e] += 1
                    if copies is not None:  # compiled apart: None costs nothing
                        d = of[e]
                        if not deduplicate or seen[d] != visit:
                            copies[l, home[t], d] += 1
                            seen[d] = visit
    for l in range(n_layers):
        for e in range(count.shape[1]):
            if count[l, e]:
                tokens[l, device[l, e], slot[l, e]] += count[l, e]


@njit(cache=True)
def _dispatch(experts, home, device, slot, per_node, deduplicate, tokens, copies, visits):  # type: ignore[no-untyped-def]
    """As ``dispatch``, where experts may have replicas."""
    n_tokens, n_layers, k = experts.shape
    seen = np.full(tokens.shape[1], -1, np.int64)
    visited = np.full(tokens.shape[1] // per_node, -1, np.int64)
    turns = np.zeros((device.shape[1], tokens.shape[1] // per_node), np.int32)
    for l in range(n_layers):
        turns[:] = 0
        for t in range(n_tokens):
            here = home[t]
            visit = l * n_tokens + t
            for j in range(k):
                e = experts[t, l, j]
                r = _replica(device, l, e, here, per_node, turns)
                d = device[l, e, r]
                tokens[l, d, slot[l, e, r]] += 1
                if copies is not None:
                    if not deduplicate or seen[d] != visit:
                        copies[l, here, d] += 1
                        seen[d] = visit
                if visits is not None and visited[d // per_node] != visit:
                    visits[l, here, d // per_node] += 1
                    visited[d // per_node] = visit


@dataclass(frozen=True)
class Routes:
    """The tokens of a step, where they are and where their experts may be: as ``dispatch`` wants it."""

    experts: np.ndarray
    home: np.ndarray
    slots: SlotMap
    per_node: int

    def count(self, deduplicate: bool, tokens: np.ndarray, copies: np.ndarray | None, visits: np.ndarray | None
              ) -> None:
        """Add to *tokens*, *copies* and *visits* as ``dispatch`` does."""
        dispatch(self.experts, self.home, self.slots.device, self.slots.slot, self.per_node, deduplicate, tokens,
                 copies, visits)

    def ranks(self, shape: tuple[int, ...], weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of each slot by the rank that they give it, and the largest of their *weights* [T, L, k].

        int32 and float32, [L, D, S, k] and [L, D, S], in the *shape* [L, holders, slots] of as many slots.
        """
        k, n_layers = self.experts.shape[2], shape[0]
        n_slots = self.slots.n_slots
        n_devices = int(np.prod(shape[1:])) // n_slots
        ranks = np.zeros((n_layers, n_devices, n_slots, k), np.int32)
        largest = np.zeros((n_layers, n_devices, n_slots), np.float32)
        given = np.zeros((0, 0, 0), np.float32) if weights is None else weights
        _rank(self.experts, self.home, self.slots.device, self.slots.slot, self.per_node, given, ranks, largest)
        return ranks.reshape(*shape, k), largest.reshape(shape)


@njit(cache=True)
def _rank(experts, home, device, slot, per_node, weights, ranks, largest):  # type: ignore[no-untyped-def]
    """Count what ``Routes.ranks`` returns; replicas take turns as in ``dispatch``."""
    n_tokens, n_layers, k = experts.shape
    turns = np.zeros((device.shape[1], (ranks.shape[1] - 1) // per_node + 1), np.int32)
    for l in range(n_layers):
        turns[:] = 0
        for t in range(n_tokens):
            for j in range(k):
                e = experts[t, l, j]
                r = _replica(device, l, e, home[t], per_node, turns)
                d, s = device[l, e, r], slot[l, e, r]
                ranks[l, d, s, j] += 1
                if len(weights):
                    largest[l, d, s] = max(largest[l, d, s], weights[t, l, j])


@njit(cache=True)
def work(tokens):  # type: ignore[no-untyped-def]
    """Return what *tokens* per slot [L, D, S] come to: all of a device, and its slots that have any; int64 [L, D]."""
    n_layers, n_devices, n_slots = tokens.shape
    load, active = np.zeros((2, n_layers, n_devices), np.int64)
    for l in range(n_layers):
        for d in range(n_devices):
            for s in range(n_slots):
                load[l, d] += tokens[l, d, s]
                active[l, d] += tokens[l, d, s] > 0
    return load, active


@njit(cache=True)
def uneven(load):  # type: ignore[no-untyped-def]
    """Return the largest *load* [L, D] of a layer over the mean, float64 [L]."""
    found = np.empty(len(load))
    for l in range(len(load)):
        found[l] = load[l].max() / (load[l].sum() / load.shape[1])
    return found


@njit(cache=True)
def follow(experts, where, device, slot, per_node, tokens, copies, returns):  # type: ignore[no-untyped-def]
    """Count the same for tokens that stay where their first expert is (context-coherent, ExFlow).

    *where* int32 [T, L + 1] has in its first column the device where each token starts; the others are filled with
    where it is after each layer. *copies* go to the devices of its experts; *returns* are partial sums that these send
    to the device of its first expert (both int32 [L, D, D]).
    """
    n_tokens, n_layers, k = experts.shape
    seen = np.full(tokens.shape[1], -1, np.int64)
    turns = np.zeros((device.shape[1], tokens.shape[1] // per_node), np.int32)
    for l in range(n_layers):
        turns[:] = 0
        for t in range(n_tokens):
            here = where[t, l]
            first = here
            visit = l * n_tokens + t
            for j in range(k):
                e = experts[t, l, j]
                r = _replica(device, l, e, here, per_node, turns)
                d = device[l, e, r]
                tokens[l, d, slot[l, e, r]] += 1
                if j == 0:
                    first = d
                if seen[d] != visit:
                    seen[d] = visit
                    copies[l, here, d] += 1
                    if d != first:
                        returns[l, d, first] += 1
            where[t, l + 1] = first


@njit(cache=True)
def owned(experts, device, slot, tokens):  # type: ignore[no-untyped-def]
    """Add to *tokens* int32 [L, D, S] the work of tokens that every device has: each runs its own experts.

    The replicas of an expert take turns.
    """
    n_tokens, n_layers, k = experts.shape
    turns = np.zeros(device.shape[1], np.int32)
    for l in range(n_layers):
        turns[:] = 0
        for t in range(n_tokens):
            for j in range(k):
                e = experts[t, l, j]
                n = device.shape[2]
                while device[l, e, n - 1] < 0:
                    n -= 1
                r = turns[e] % n
                turns[e] += 1
                tokens[l, device[l, e, r], slot[l, e, r]] += 1
