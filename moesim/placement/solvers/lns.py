"""Integer programs over a few layers or two devices, the rest fixed, that improve another solver's answer.

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> follows = np.array([[[5, 4, 1, 0], [0, 1, 4, 5], [4, 5, 0, 1], [1, 0, 5, 4]]])
>>> profile = Profile(np.full((2, 4), 10), 40, lambda top1: follows)
>>> info = Lns(start="linear", balance=0.0).solve(profile, Problem(n_experts=4, n_devices=2), seed=0).info
>>> info["start_objective"], info["objective"], info["status"]  # the whole fits into one program: proved
(0.5, 0.1, 'optimal')
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from moesim.placement.costs import total
from moesim.placement.objective import Pairs, Problem, Profile
from moesim.placement.placement import Placement, PlacementError
from moesim.placement.solvers._chain import IMPROVES, Chain
from moesim.placement.solvers._claims import claims, gap
from moesim.placement.solvers._program import Program
from moesim.placement.solvers._task import Task
from moesim.placement.solvers.joint import Joint
from moesim.registry import Part, part

PROVED = 1e-9  # gap, as a share of the objective, below which the answer is called optimal: rounding


@part
class Lns:
    """Minimise what ``joint`` does (transitions + *balance* x load max/mean) by large neighbourhood search.

    In turn all experts of *layers* neighbouring layers are free, on as many devices as fit into a program, and those
    of two devices, in as many layers as fit; all others stay. With *layers* = 0 as many as fit with all devices, 2 at
    least. A program has at most about *variables* variables (more only if two devices of two layers need them) and
    gives up after *nodes* nodes of HiGHS's tree, not after a time, so that the same seed gives the same answer on
    every machine. It starts from what is there, which gives way to whatever is better. Ends after *programs* drawn,
    or at a proof.

    *start* is a solver whose answer is improved, left out joint with the same balance and pairs.
    """

    balance: float = Field(default=0.3, ge=0, allow_inf_nan=False)
    pairs: Pairs = "top1"
    start: Annotated[Any, Part("solver", optional=True)] = None
    layers: int = Field(default=0, ge=0)
    choices: int = Field(default=50, ge=1)
    nodes: int = Field(default=20, ge=0)
    programs: int = Field(default=40, ge=0)
    bound_rounds: int | None = Field(default=None, ge=0)

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; *seed* draws the start, the neighbourhoods and HiGHS's own choices.

        Raises ``PlacementError`` if the start has replicas.
        """
        aim = Joint(balance=self.balance, pairs=self.pairs)
        begin = (self.start or aim).solve(profile, dataclasses.replace(problem, bound=False), seed)
        if (begin.replicas.sum(axis=2) > 1).any():
            raise PlacementError("lns places every expert once, but its start has replicas; start from a solver "
                                 "without, such as joint")
        search = _Search(aim, profile, problem, begin.device_of)
        rng, start_objective = np.random.default_rng(seed), search.cost
        draws, distinct = self._draws(search, rng)
        while search.programs < self.programs and len(search.tried) < distinct and not search.optimal:
            free = next(draws)
            if free not in search.tried:
                search.improve(free, int(rng.integers(2**31)), self.nodes)
        placement = Placement.from_device_of(search.devices, problem.n_devices, profile.sizes)
        info = claims(aim.minimised(), placement, profile, problem, self.bound_rounds)
        if problem.bound or search.optimal:
            own = info["objective"] if search.optimal else search.bound
            info |= gap(info["objective"], max(info.get("bound", 0.0), own))
        status = "optimal" if info.get("gap", 1.0) <= PROVED else "heuristic"
        return placement.with_info(**info | {"status": status},
                                   start_objective=start_objective, programs=search.programs,
                                   programs_proved=search.proved, improvements=search.improvements)

    def _draws(self, search: _Search, rng: np.random.Generator) -> tuple[Iterator[Free], int]:
        """Return neighbourhoods without end, of either shape in turn, and how many distinct ones there are."""
        n_layers, n_devices = search.chain.n_layers, search.problem.n_devices

        def fits(layers: int, devices: int) -> bool:
            return search.choices(layers, devices) <= self.choices

        deep = max([min(2, n_layers), *(n for n in range(1, n_layers + 1) if fits(n, n_devices))])
        deep = min(self.layers or deep, n_layers)
        wide = max([min(2, n_devices), *(n for n in range(1, n_devices + 1) if fits(deep, n))])
        long = max([min(2, n_layers), *(n for n in range(1, n_layers + 1) if fits(n, 2))])
        shapes = list(dict.fromkeys([(deep, wide), (long, min(2, n_devices))]))

        def draws() -> Iterator[Free]:
            firsts = [_turns(n_layers - layers + 1, rng) for layers, _ in shapes]
            while True:
                for (layers, devices), first in zip(shapes, firsts, strict=True):
                    start, chosen = next(first), rng.choice(n_devices, devices, replace=False)
                    yield Free(range(start, start + layers), tuple(np.sort(chosen).tolist()))

        return draws(), sum((n_layers - layers + 1) * math.comb(n_devices, devices) for layers, devices in shapes)


class Free(NamedTuple):
    """A neighbourhood: the experts of these layers that are on these devices may go to any of them."""

    layers: range
    devices: tuple[int, ...]


class _Search:
    """Hold the best placement so far, and what was tried to improve it."""

    def __init__(self, aim: Joint, profile: Profile, problem: Problem, devices: np.ndarray) -> None:
        self.problem, self.flows, self.devices = problem, profile.transitions(aim.pairs), devices.copy()
        costs = total(o.costs(profile, problem) for o in aim.minimised() if o.weight)
        self.chain = Chain(costs, profile, problem)
        self.cost = float(self.chain.all_terms(self.devices).sum())
        self.scale = max(int(self.flows.sum()), 1)  # programs count transitions: mostly whole numbers
        self.loads = None if costs.loads is None else self.scale * costs.loads
        self.tried: set[Free] = set()
        self.programs = self.proved = self.improvements = 0
        self.bound, self.optimal = 0.0, problem.n_devices == 1  # of the whole problem, if a program covers it

    def choices(self, layers: int, devices: int) -> int:
        """Return how many binary variables a program of the largest layers has that others do not imply."""
        return layers * min(max(self.chain.rooms) * devices, self.chain.n_experts) * (devices - 1)

    def improve(self, free: Free, seed: int, nodes: int) -> None:
        """Solve the program of *free* and take its answer if it is not worse."""
        task = self.task(free)
        outcome = Program(task, pairs=False).solve(seed, mip_max_nodes=nodes)
        trial = self.devices.copy()
        for layer, places in zip(free.layers, outcome.places, strict=True):
            trial[layer, np.isin(trial[layer], free.devices)] = np.array(free.devices)[places]
        cost = float(self.chain.all_terms(trial).sum())
        self.programs, self.proved = self.programs + 1, self.proved + outcome.proved
        if cost < self.cost - IMPROVES:
            self.improvements += 1
            near = range(free.layers.start - 1, free.layers.stop + 1)
            self.tried = {old for old in self.tried if old.layers.stop <= near.start or near.stop <= old.layers.start}
        if cost <= self.cost:
            self.devices, self.cost = trial, cost
        self.tried.add(free)
        if len(free.layers) == self.chain.n_layers and len(free.devices) == self.problem.n_devices:
            self.bound, self.optimal = outcome.bound / self.scale, outcome.proved

    def task(self, free: Free) -> Task:
        """Return the problem of the experts that *free* frees, all others fixed."""
        devices, rows = np.array(free.devices), [self.chain.row(self.devices, layer) for layer in free.layers]
        who = [np.flatnonzero(np.isin(row, devices)) for row in rows]
        flows = [self.flows[layer][np.ix_(a, b)] for layer, a, b in zip(free.layers, who, who[1:], strict=False)]
        levels = [(np.unique(group_of[devices], return_inverse=True)[1], weight)
                  for group_of, weight in self.problem.levels]
        table = [self._table(layer, mine, free) for layer, mine in zip(free.layers, who, strict=True)]
        loads, floor = None, None
        if self.loads is not None:
            loads = [self.loads[layer, mine] for layer, mine in zip(free.layers, who, strict=True)]
            others = [np.delete(np.bincount(row, self.loads[layer, :len(row)], self.problem.n_devices), devices)
                      for layer, row in zip(free.layers, rows, strict=True)]
            floor = np.array([other.max(initial=0.0) for other in others])
        alike = len(devices) in (2, self.problem.n_devices) and all((t == t[:, :1]).all() for t in table)
        rooms = np.repeat(np.array(self.chain.rooms)[list(free.layers), None], len(devices), axis=1)
        return Task([np.searchsorted(devices, row[mine]) for row, mine in zip(rows, who, strict=True)], rooms, flows,
                    [level for level in levels if level[0].any()], table, loads, floor, alike)

    def _table(self, layer: int, mine: np.ndarray, free: Free) -> np.ndarray:
        """Return what the experts *mine* pay on the free devices for their fixed neighbours, [N, P]."""
        cost = np.zeros((len(mine), len(free.devices)))
        for other, flows in ((layer - 1, lambda: self.flows[layer - 1].T), (layer + 1, lambda: self.flows[layer])):
            if 0 <= other < self.chain.n_layers:
                row, places = self.chain.row(self.devices, other), np.array(free.devices)
                fixed = np.flatnonzero(~np.isin(row, places) | (other not in free.layers))
                apart = self.problem.distance[np.ix_(row[fixed], places)]
                cost += flows()[np.ix_(mine, fixed)] @ apart
        return cost


def _turns(choices: int, rng: np.random.Generator) -> Iterator[int]:
    """Return each of *choices* numbers once in random order, again and again."""
    while True:
        yield from rng.permutation(choices).tolist()
