"""The compiled loops of moesim.sim.routing against plain Python that follows one token at a time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.placement.placement import Placement
from moesim.sim import routing


def a_placement(rng: np.random.Generator, layers: int, experts: int, devices: int, extra: int) -> Placement:
    """Return a random placement with *extra* replicas per layer beside the first ones."""
    replicas = np.zeros((layers, experts, devices), bool)
    for layer in range(layers):
        replicas[layer, np.arange(experts), rng.integers(devices, size=experts)] = True
        replicas[layer, rng.integers(experts, size=extra), rng.integers(devices, size=extra)] = True
    return Placement(replicas, {})


class Turns:
    """Whose turn it is among the replicas of an expert, for the tokens of each node, layer by layer."""

    def __init__(self, placement: Placement, per_node: int):
        self._placement, self._per_node = placement, per_node
        self._taken: Counter[tuple[int, int, int]] = Counter()

    def device(self, layer: int, expert: int, here: int) -> int:
        """Return the device whose replica a token on *here* uses: its own, one of its node, else any; in turn."""
        devices = np.flatnonzero(self._placement.replicas[layer, expert]).tolist()
        if here in devices:
            return here
        node = here // self._per_node
        choice = [d for d in devices if d // self._per_node == node] or devices
        if len(devices) == 1:
            return choice[0]
        self._taken[layer, expert, node] += 1
        return choice[(self._taken[layer, expert, node] - 1) % len(choice)]


# seed, layers, experts, devices, replicas beside the first
CASES = st.tuples(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 9), st.sampled_from([2, 4, 6]),
                  st.integers(0, 5))


@given(CASES, st.booleans())
@settings(max_examples=40, deadline=None)
def test_dispatch(case: tuple[int, int, int, int, int], deduplicate: bool) -> None:
    seed, layers, experts, devices, extra = case
    rng = np.random.default_rng(seed)
    placement, slots = _placed(rng, layers, experts, devices, extra)
    chosen = _chosen(rng, 17, layers, experts, min(3, experts))
    home = rng.integers(devices, size=17).astype(np.int32)
    tokens = np.zeros((layers, devices, slots.n_slots), np.int32)
    copies = np.zeros((layers, devices, devices), np.int32)
    visits = np.zeros((layers, devices, devices // 2), np.int32)
    routing.dispatch(chosen, home, slots.device, slots.slot, 2, deduplicate, tokens, copies, visits)
    again = np.zeros_like(tokens), np.zeros_like(copies)
    routing.dispatch(chosen, home, slots.device, slots.slot, 2, deduplicate, *again, None)
    assert (again[0] == tokens).all() and (again[1] == copies).all()
    alone = np.zeros_like(tokens)
    routing.dispatch(chosen, home, slots.device, slots.slot, 2, deduplicate, alone, None, None)
    assert (alone == tokens).all()
    load, active = routing.work(tokens)
    assert (load == tokens.sum(axis=2)).all() and (active == np.count_nonzero(tokens, axis=2)).all()

    load: Counter[tuple[int, int, int]] = Counter()
    sent: Counter[tuple[int, int, int]] = Counter()
    seen: Counter[tuple[int, int, int]] = Counter()
    turns = Turns(placement, 2)
    for here, row in zip(home, chosen, strict=True):
        for layer, picked in enumerate(row):
            where = [turns.device(layer, int(e), int(here)) for e in picked]
            load.update((layer, d, int(e)) for d, e in zip(where, picked, strict=True))
            sent.update((layer, int(here), d) for d in (set(where) if deduplicate else where))
            seen.update((layer, int(here), node) for node in {d // 2 for d in where})
    _compare(placement, tokens, load)
    assert {k: v for k, v in np.ndenumerate(copies) if v} == dict(sent)
    assert {k: v for k, v in np.ndenumerate(visits) if v} == dict(seen)
    assert tokens.sum() == chosen.size  # tokens x k = routed ids


@given(CASES)
@settings(max_examples=40, deadline=None)
def test_follow(case: tuple[int, int, int, int, int]) -> None:
    seed, layers, experts, devices, extra = case
    rng = np.random.default_rng(seed)
    placement, slots = _placed(rng, layers, experts, devices, extra)
    chosen = _chosen(rng, 17, layers, experts, min(3, experts))
    where = np.full((17, layers + 1), -1, np.int32)
    where[:, 0] = rng.integers(devices, size=17)
    tokens = np.zeros((layers, devices, slots.n_slots), np.int32)
    copies, returns = np.zeros((2, layers, devices, devices), np.int32)
    routing.follow(chosen, where, slots.device, slots.slot, 2, tokens, copies, returns)

    load: Counter[tuple[int, int, int]] = Counter()
    sent: Counter[tuple[int, int, int]] = Counter()
    back: Counter[tuple[int, int, int]] = Counter()
    turns = Turns(placement, 2)
    for t, row in enumerate(chosen):
        here = int(where[t, 0])
        for layer, picked in enumerate(row):
            devs = [turns.device(layer, int(e), here) for e in picked]
            load.update((layer, d, int(e)) for d, e in zip(devs, picked, strict=True))
            sent.update((layer, here, d) for d in set(devs))
            back.update((layer, d, devs[0]) for d in set(devs) - {devs[0]})
            here = devs[0]
            assert where[t, layer + 1] == here
    _compare(placement, tokens, load)
    assert {k: v for k, v in np.ndenumerate(copies) if v} == dict(sent)
    assert {k: v for k, v in np.ndenumerate(returns) if v} == dict(back)


@pytest.mark.parametrize("extra", [0, 4])
def test_owned(extra: int) -> None:
    rng = np.random.default_rng(0)
    placement, slots = _placed(rng, 3, 5, 4, extra)
    chosen = _chosen(rng, 29, 3, 5, 2)
    tokens = np.zeros((3, 4, slots.n_slots), np.int32)
    routing.owned(chosen, slots.device, slots.slot, tokens)
    load: Counter[tuple[int, int, int]] = Counter()
    taken: Counter[tuple[int, int]] = Counter()
    for row in chosen:
        for layer, picked in enumerate(row):
            for e in picked:
                devices = np.flatnonzero(placement.replicas[layer, e])
                load[layer, int(devices[taken[layer, int(e)] % len(devices)]), int(e)] += 1
                taken[layer, int(e)] += 1
    _compare(placement, tokens, load)


@pytest.mark.parametrize("layers", [1, 4])
def test_replicas_share_the_load(layers: int) -> None:
    """Two replicas of one expert, tokens from everywhere: each does half of what is not local to one of them."""
    replicas = np.zeros((layers, 2, 8), bool)
    replicas[:, 0, [2, 5]] = replicas[:, 1, 0] = True
    for per_node in (8, 4, 2):  # one node; one replica in each node; most nodes without one
        slots = routing.SlotMap.of(Placement(replicas, {}))
        tokens, copies = np.zeros((layers, 8, slots.n_slots), np.int32), np.zeros((layers, 8, 8), np.int32)
        home = np.repeat(np.arange(8), 1000).astype(np.int32)
        routing.dispatch(np.zeros((8000, layers, 1), np.uint16), home, slots.device, slots.slot, per_node, True, tokens,
                         copies, None)
        assert (tokens[:, 2].sum(axis=1) == 4000).all() and (tokens[:, 5].sum(axis=1) == 4000).all()


def _placed(rng: np.random.Generator, layers: int, experts: int, devices: int,
            extra: int) -> tuple[Placement, routing.SlotMap]:
    placement = a_placement(rng, layers, experts, devices, extra)
    return placement, routing.SlotMap.of(placement)


def _chosen(rng: np.random.Generator, tokens: int, layers: int, experts: int, k: int) -> np.ndarray:
    return np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :k].astype(np.uint16)


def _compare(placement: Placement, tokens: np.ndarray, load: Counter[tuple[int, int, int]]) -> None:
    """Check *tokens* [L, D, S] against *load*: slots of a device are its experts in ascending order."""
    found = {}
    for (layer, device, slot), n in np.ndenumerate(tokens):
        if n:
            found[layer, device, int(np.flatnonzero(placement.replicas[layer, :, device])[slot])] = int(n)
    assert found == dict(load)
