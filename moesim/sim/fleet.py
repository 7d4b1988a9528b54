"""Islands that do the same work: all of a machine, or its pool that only prefills, or the one that only decodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moesim.serving.group import Group, Requests
from moesim.serving.pool import Pool, PrefixPool
from moesim.sim.inputs import Inputs
from moesim.sim.island import Island
from moesim.sim.pipeline import Pipeline

MakeGroup = Callable[[Requests, Pool], Group]


class Fleet:
    """The islands of *inputs*' scenario, which serve the requests *live*; ``first``: the number of its first device.

    *capacity*: KV tokens that there is room for [groups of an island], or one number for all.
    """

    def __init__(self, inputs: Inputs, live: Requests, capacity: np.ndarray, first: int = 0, make: MakeGroup = Group):
        self.inputs, self.live, self.first = inputs, live, first
        self.scenario = scenario = inputs.scenario
        kind = Island if scenario.parallelism.pp == 1 else Pipeline
        self.islands = [kind(inputs.of_island, live, self._groups(capacity, make), first + number)
                        for number in range(scenario.n_islands)]
        self.groups = [group for island in self.islands for group in island.groups]
        self._even = len({group.pool.capacity for group in self.groups}) == 1
        self._routed = 0  # requests that have been given a group

    def _groups(self, capacity: np.ndarray, make: MakeGroup) -> list[Group]:
        """Return the groups of an island."""
        pools = [self._pool(int(tokens)) for tokens in capacity]
        if len(pools) < self.scenario.groups_per_island:  # every device holds the KV of all
            pools *= self.scenario.groups_per_island
        groups = [make(self.live, pool) for pool in pools]
        if getattr(self.scenario.scheduler, "knows_experts", False):
            for group in groups:
                group.demand = self.inputs.demand
        return groups

    def _pool(self, tokens: int) -> Pool:
        kv = self.scenario.kv
        if kv.prefix_cache:
            return PrefixPool(tokens // kv.block, kv.block, len(self.live), self.inputs.hashes)
        return Pool(tokens // kv.block, kv.block, len(self.live))

    def choose(self, request: int, seen: Sequence[Group] | None = None) -> int:
        """Return the number of the group that the router gives *request*: one that can hold it.

        *seen*: the groups as the router sees them, if not as they are.
        """
        groups = self.groups if seen is None else seen
        able = list(range(len(groups)))
        if not self._even:
            blocks = groups[0].pool.blocks(int(self.live.stored[request]))
            able = [g for g in able if groups[g].pool.capacity >= blocks]
            groups = [groups[g] for g in able]
        chosen = able[self.scenario.request_router.choose(request, groups, self._routed)]
        self._routed += 1
        self.live.group[request] = chosen
        return chosen

    def island_of(self, group: int) -> Island:
        """Return the island that has the group of that number."""
        return self.islands[group // self.scenario.groups_per_island]

    def devices_of(self, group: int, stage: int) -> np.ndarray:
        """Return the devices of the group of that number in a pipeline *stage*, int64 [tp], numbered through all."""
        scenario, (island, here) = self.scenario, divmod(group, self.scenario.groups_per_island)
        before = island * scenario.island_size + stage * scenario.stage_size + here * scenario.parallelism.tp
        return self.first + before + np.arange(scenario.parallelism.tp)

    def add(self, request: int, group: int) -> None:
        """Let *request*, which arrives, wait in the *group* that it was given."""
        self.island_of(group).add(request, group % self.scenario.groups_per_island)

    def kv_peak_bytes(self) -> np.ndarray:
        """Return the most bytes of KV on every device: a group's blocks, of the layers of each of its stages."""
        scenario, tp = self.scenario, self.scenario.parallelism.tp
        per_token = np.array([scenario.model.kv_bytes_per_token_on_device(tp, layers) for layers in scenario.stages])
        others = [0] * scenario.parallelism.expert_devices
        return np.concatenate([np.outer(per_token, [*np.repeat(island.peak, tp), *others]).ravel() * scenario.kv.block
                               for island in self.islands])
