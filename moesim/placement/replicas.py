"""Replicas as experts of their own, each with its part of the tokens: what is known of single experts serves for them.

A token that stays is at the device of its first choice and uses the replica there; if there is none, replicas of its
node take turns, else all: the rule of ``evaluate`` and of the simulation. From sums over tokens alone follows how much
each replica gets from each one of the layer before, if where a token goes depends on its last expert only (a Markov
chain). Tokens that come from all devices alike (load, fan-out) use the replicas of an expert evenly.

Letters: L MoE layers, E experts, C replicas of the layer with most, D devices, K experts in a set.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np

from moesim.placement.objective import Problem, Profile, Sets
from moesim.placement.placement import Placement

FEW_SETS = 4000  # of replicas, that tokens of a layer meet together, are all looked at: chosen, a second or two
# What ``info`` says of the numbers of a placement with replicas.
RULE = ("tokens that stay use the replica on their device, else those of their node in turn, else all in turn, as a "
        "Markov chain; tokens from all devices use all evenly. The bound holds for all placements of as many replicas")


def replicate(weights: np.ndarray, slots: int, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the item of each slot and its load: each extra slot goes to the item with the most load per replica.

    The rule of deepseek-ai/EPLB (MIT, d52c72d), and no other makes the largest load smaller. No item gets more than
    *most* slots; with few items fewer slots are used.
    """
    copies = np.ones(len(weights), dtype=np.int64)
    item = list(range(len(weights)))
    for _ in range(slots - len(weights)):
        load = weights / copies.astype(weights.dtype)
        if most is not None:
            load[copies >= most] = -1
        if load.max() < 0:
            break
        item.append(int(load.argmax()))
        copies[item[-1]] += 1
    return np.array(item), (weights / copies.astype(weights.dtype))[item]


@dataclasses.dataclass(frozen=True, eq=False)
class Replicas:
    """Hold which expert each replica is of, and where it is.

    expert  int64 [L, C], ascending; behind them -1, where there is none
    device  int64 [L, C]; -1 while it is not known yet: then tokens that stay take turns too
    sizes   int64 [L], replicas of each layer; counted are some that are none, but may become one
    """

    expert: np.ndarray
    device: np.ndarray
    sizes: np.ndarray

    @classmethod
    def heaviest(cls, profile: Profile, sizes: np.ndarray, redundant: int, n_devices: int) -> Replicas:
        """Return *redundant* more replicas per layer than experts, by ``replicate``, not placed yet."""
        expert = np.full((profile.n_layers, int(sizes.max())), -1)
        for row, counts, size in zip(expert, profile.counts, profile.sizes.tolist(), strict=True):
            items = np.sort(replicate(counts[:size].astype(float), size + redundant, n_devices)[0])
            row[:len(items)] = items
        return cls(expert, np.full(expert.shape, -1), sizes)

    @classmethod
    def of(cls, replicas: np.ndarray, rooms: np.ndarray | None = None, sizes: np.ndarray | None = None) -> Replicas:
        """Return those of *replicas* [L, E, D]; with *sizes*, as many, some of them none and in free *rooms* [L]."""
        number = replicas.sum(axis=(1, 2))
        sizes = number if sizes is None else sizes
        expert, device = np.full((2, len(sizes), int(sizes.max())), -1)
        for layer, (held, n, size) in enumerate(zip(replicas, number.tolist(), sizes.tolist(), strict=True)):
            expert[layer, :n], device[layer, :n] = np.nonzero(held)
            if n < size and rooms is not None:
                device[layer, n:size] = np.repeat(np.arange(held.shape[1]), rooms[layer] - held.sum(axis=0))[:size - n]
        return cls(expert, device, sizes)

    def placement(self, device: np.ndarray, problem: Problem, profile: Profile) -> Placement:
        """Return the placement with each replica on its *device* [L, C]; two of an expert on one device are one."""
        held = np.zeros((*profile.counts.shape, problem.n_devices), dtype=bool)
        layer, copy = np.nonzero(self.expert >= 0)
        held[layer, self.expert[layer, copy], device[layer, copy]] = True
        return Placement(held, sizes=profile.sizes)

    @cached_property
    def even(self) -> np.ndarray:
        """Return the part of its expert's tokens that each replica gets if they take turns, float64 [L, C]."""
        return np.stack([even(row) for row in self.expert])

    def profile(self, profile: Profile, problem: Problem, share: np.ndarray | None = None) -> Profile:
        """Return *profile* with replicas for experts; each gets its *share* [L, C] of the tokens, left out evenly."""
        share = self.even if share is None else share
        counts = np.take_along_axis(profile.counts, np.maximum(self.expert, 0), axis=1) * share
        return Profile(counts, profile.n_tokens,
                       lambda top1: self.flows(profile.transitions("top1" if top1 else "all"), problem)[0],
                       None if profile.count_sets is None else lambda layer: self._sets(profile.sets[layer], layer),
                       self.sizes)

    def problem(self, problem: Problem) -> Problem:
        """Return *problem* with replicas for experts."""
        previous = problem.previous
        if previous is not None:
            held = np.take_along_axis(previous.replicas, np.maximum(self.expert, 0)[:, :, None], axis=1)
            held = held | (self.expert < 0)[:, :, None]  # what is no replica costs nothing anywhere
            held &= (np.arange(held.shape[1]) < self.sizes[:, None])[:, :, None]
            previous = Placement(held, sizes=self.sizes)
        return dataclasses.replace(problem, n_experts=self.expert.shape[1], previous=previous)

    def flows(self, flows: np.ndarray, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        """Return *flows* [L-1, E, E] between replicas, float64 [L-1, C, C], and the share of its expert's tokens that
        each gets, float64 [L, C]."""
        n_copies, share = self.expert.shape[1], self.even.copy()
        found = np.zeros((len(flows), n_copies, n_copies))
        for layer, flow in enumerate(flows):
            here, there = self.expert[layer], self.expert[layer + 1]
            way = self.even[layer + 1]
            if (self.device[layer + 1] >= 0).any():
                way = ways(self.device[layer], there, self.device[layer + 1], problem)
            found[layer] = flow[np.ix_(here, there)] * share[layer][:, None] * way
            share[layer + 1] = shares(found[layer].sum(axis=0), there)
        return found, share

    def _sets(self, sets: Sets, layer: int) -> Sets:
        """Return the sets of replicas that the tokens of *sets* meet, each expert's in turn, and the tokens of each.

        Beyond ``FEW_SETS``, or as many as there are without replicas, they are of as many tokens, drawn evenly from the
        tokens in the order of their sets: what the search takes is proportional.
        """
        members, tokens = sets
        most = max(len(members), FEW_SETS)
        number = np.bincount(self.expert[layer][self.expert[layer] >= 0], minlength=int(members.max()) + 1)
        first, ways = np.cumsum(number) - number, number[members].prod(axis=1)
        start = np.cumsum(ways) - ways
        if ways.sum() <= most:
            which = np.repeat(np.arange(len(members)), ways)
            way, weight = np.arange(len(which)) - start[which], tokens[which] / ways[which]
        else:
            drawn, after = (np.arange(most) + 0.5) * tokens.sum() / most, tokens.cumsum()
            which = np.searchsorted(after, drawn, side="right")
            way = ((drawn - after[which] + tokens[which]) / tokens[which] * ways[which]).astype(np.int64)
            weight = np.full(most, tokens.sum() / most)
        chosen = np.empty((len(which), members.shape[1]), dtype=np.int32)
        for k in range(members.shape[1]):
            expert = members[which, k]
            chosen[:, k] = first[expert] + way % number[expert]
            way //= number[expert]
        return chosen, weight


def single(placement: Placement, profile: Profile, problem: Problem) -> tuple[Placement, Profile]:
    """Return both with every replica as an expert of its own; as they are if no expert is replicated."""
    if not (placement.replicas.sum(axis=2) > 1).any():
        return placement, profile
    mine = Replicas.of(placement.replicas)
    return (Placement.from_device_of(mine.device, problem.n_devices, mine.sizes), mine.profile(profile, problem))


def ways(device: np.ndarray, expert: np.ndarray, at: np.ndarray, problem: Problem) -> np.ndarray:
    """Return which part of the tokens on each *device* [N] that go to the expert of a replica use it, float64 [N, C].

    *expert* [C] is of each replica of the next layer (-1: it is none), *at* [C] its device.
    """
    there, node_of = expert >= 0, problem.node_of
    near = np.zeros((int(expert.max()) + 1, problem.n_nodes))
    held = np.zeros((len(near), problem.n_devices), dtype=bool)
    np.add.at(near, (expert[there], node_of[at[there]]), 1)
    held[expert[there], at[there]] = True
    in_node = near[expert][:, node_of[device]].T
    turn = np.where(in_node > 0, (node_of[device][:, None] == node_of[at]) / np.maximum(in_node, 1), even(expert))
    return np.where(held[expert][:, device].T, device[:, None] == at, turn) * there


def even(expert: np.ndarray) -> np.ndarray:
    """Return the part of its expert's tokens that each replica gets if they take turns: float64, 0 for what is none."""
    number = np.bincount(expert[expert >= 0])
    return np.where(expert >= 0, 1 / number[expert], 0.0)


def shares(arriving: np.ndarray, expert: np.ndarray) -> np.ndarray:
    """Return the part of its expert's tokens that each replica gets, of the tokens *arriving* [C]; even without any."""
    there = expert >= 0
    total = np.bincount(expert[there], arriving[there])[expert]
    return np.where((total > 0) & there, arriving / np.where(total > 0, total, 1.0), even(expert))
