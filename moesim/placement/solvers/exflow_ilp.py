"""ExFlow's integer program, whole or in stages (nodes, halves); warm-started and honest at its time limit.

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> follows = np.array([[[5, 1, 4, 0], [4, 5, 0, 1], [1, 0, 5, 4], [0, 4, 1, 5]]])
>>> profile = Profile(np.full((2, 4), 10), 40, lambda top1: follows)
>>> info = ExflowIlp().solve(profile, Problem(n_experts=4, n_devices=2), seed=0).info
>>> info["status"], info["objective"], info["bound"]  # a quarter must cross: proved
('optimal', 0.25, 0.25)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from moesim.placement.bounds import lower_bound
from moesim.placement.costs import Levels
from moesim.placement.objective import Pairs, Problem, Profile, transition_cost
from moesim.placement.objectives.transitions import Transitions
from moesim.placement.placement import Placement, PlacementError
from moesim.placement.solvers._claims import gap
from moesim.placement.solvers._program import Outcome, Program
from moesim.placement.solvers._task import Task, assigned, constraints
from moesim.placement.solvers.affinity_sweep import AffinitySweep
from moesim.registry import part
from moesim.units import Seconds

IMPROVES = 1e-6  # transitions: costs lower by less differ by rounding
PROVED = 1e-9  # gap, as a share of the objective, below which the answer is called optimal: rounding


class Split(NamedTuple):
    """A stage: the devices of each part that experts are divided into, and the levels of the parts."""

    name: str
    parts: list[np.ndarray]
    levels: Levels

    @property
    def first(self) -> int:
        """Return the device that the experts of the stage are on before it."""
        return int(self.parts[0][0])


@part
class ExflowIlp:
    """Minimise the mean transition distance with PuLP and HiGHS (ExFlow, arXiv 2401.08383; per-token variables
    aggregated to transition counts).

    *by* "whole": one program. "nodes": experts to nodes for the fewest transitions between nodes, then inside each
    node to its devices, as the paper does. "bisection": devices (a power of two) in halves, these in halves, and so
    on, as the released code does. A stage sees the transitions among the experts that it divides only: those that
    enter from other nodes or halves cross wherever it puts them. The stages of a level share an equal share of
    *time_limit*.

    The start is affinity_sweep's answer (in stages: what the stages before have left of it, settled), and the result
    is never worse than it; if the stages end worse it is returned. ``status`` is "optimal" if the objective is proved
    to be the ``bound`` of the whole problem, else "feasible". The bound is the program's or that of the first stage
    (what crosses there crosses devices), or that of bounds.py if it is higher. ``stages`` says of each what it found,
    as shares of all transitions, and whether that is proved for the stage.

    At the time limit the answer depends on the speed of the machine. Raises ``PlacementError`` for a program of more
    than *max_constraints*, and if the devices have no nodes or no halves.
    """

    time_limit: Seconds = 60.0
    pairs: Pairs = "top1"
    max_constraints: int = Field(default=200_000, ge=1)
    by: Literal["whole", "nodes", "bisection"] = "whole"

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; *seed* draws the warm start and the solver's own choices."""
        transitions, splits = profile.transitions(self.pairs), self._splits(problem)
        for split in splits[0] if splits else []:
            self._check(split, transitions)  # before the start, which may take a while
        quick = dataclasses.replace(problem, bound=False)
        start = AffinitySweep(pairs=self.pairs).solve(profile, quick, seed).device_of
        home, stages = np.where(start < 0, -1, 0), []
        for level in splits:
            limit_s = self.time_limit / len(splits) / len(level)
            for split in level:
                task = self._task(split, home, start, transitions, problem.rooms(profile.sizes))
                outcome = Program(task, pairs=True).solve(seed, time_limit=limit_s) if task.cost(task.start) else \
                    Outcome(task.start, 0.0, True)  # nothing crosses, or there is nothing to cross
                for row, places in zip(home, outcome.places, strict=True):
                    row[row == split.first] = np.array([devices[0] for devices in split.parts])[places]
                stages.append(_said(split, task, outcome, max(int(transitions.sum()), 1)))
        before, found = (transition_cost(transitions, device_of, problem.distance) for device_of in (start, home))
        proof = gap(min(before, found), stages[0]["bound"] if stages else 0.0)
        if proof["gap"] > PROVED and problem.bound:
            costs = Transitions(pairs=self.pairs).costs(profile, problem)
            proof = gap(min(before, found), max(proof["bound"], lower_bound(costs, profile, problem)))
        return Placement.from_device_of(home if found <= before else start, problem.n_devices, profile.sizes,
                                        minimises=f"cross_{self.pairs}", objective=min(before, found),
                                        status="optimal" if proof["gap"] <= PROVED else "feasible", **proof,
                                        warm_start_objective=before, stages_objective=found, stages=stages)

    def _splits(self, problem: Problem) -> list[list[Split]]:
        """Return the stages, level by level; each divides the experts that are on the first device of its first part.

        Raises ``PlacementError`` if the machine has no such stages.
        """
        devices = np.arange(problem.n_devices)
        if self.by == "whole":
            levels = [[Split("whole", list(devices[:, None]), problem.levels)]]
        elif self.by == "nodes":
            if problem.devices_per_node is None:
                raise PlacementError("exflow_ilp by nodes needs nodes; give devices_per_node, or use by = bisection "
                                     "or whole")
            nodes = np.split(devices, problem.n_nodes)
            levels = [[_equal("nodes", nodes)], [_equal(f"node {n}", list(node[:, None])) for n, node in
                                                 enumerate(nodes)]]
        else:
            if problem.n_devices & (problem.n_devices - 1):
                raise PlacementError(f"exflow_ilp by bisection halves the devices, but {problem.n_devices} is no power "
                                     "of two; use by = nodes or whole, or another number of devices")
            levels, blocks = [], [devices]
            while len(blocks[0]) > 1:
                levels.append([_equal(f"devices {b[0]}-{b[-1]}", np.split(b, 2)) for b in blocks])
                blocks = [half for split in levels[-1] for half in split.parts]
        return [level for level in levels if len(level[0].parts) > 1]

    def _check(self, split: Split, flows: Iterable[np.ndarray]) -> None:
        need = constraints(flows, split.levels)
        if need > self.max_constraints:
            raise PlacementError(f"the integer program ({split.name}) needs {need} constraints, "
                                 f"{need - self.max_constraints} more than max_constraints = {self.max_constraints}; "
                                 "use affinity_sweep or joint, fewer layers, or a higher max_constraints")

    def _task(self, split: Split, home: np.ndarray, start: np.ndarray, transitions: np.ndarray,
              rooms: np.ndarray) -> Task:
        """Return the problem of a stage; it starts as near to *start* as the rooms allow, settled."""
        members = [np.flatnonzero(row == split.first) for row in home]
        flows = [flow[np.ix_(a, b)] for flow, a, b in zip(transitions, members, members[1:], strict=False)]
        self._check(split, flows)
        room = np.multiply.outer(rooms, [len(devices) for devices in split.parts])
        near = [assigned(-np.stack([np.isin(row[who], devices) for devices in split.parts], axis=1).astype(float), r)
                for row, who, r in zip(start, members, room, strict=True)]
        return settled(Task(near, room, flows, split.levels, alike=True))


def _equal(name: str, parts: list[np.ndarray]) -> Split:
    return Split(name, parts, [(np.arange(len(parts)), 1.0)])


def settled(task: Task) -> Task:
    """Return *task*, which is of flows only, with a start whose layers are each the best for their neighbours."""
    places = list(task.start)
    while True:
        before = list(places)
        for layer, at in enumerate(before):
            cost = np.zeros((len(at), len(task.distance)))
            if layer:
                cost += task.flows[layer - 1].T @ task.distance[places[layer - 1]]
            if layer + 1 < len(places):
                cost += task.flows[layer] @ task.distance[places[layer + 1]]
            new, expert = assigned(cost, task.rooms[layer]), np.arange(len(at))
            if cost[expert, new].sum() < cost[expert, at].sum() - IMPROVES:
                places[layer] = new
        if all(a is b for a, b in zip(before, places, strict=True)):
            return dataclasses.replace(task, start=places)


def _said(split: Split, task: Task, outcome: Outcome, total: int) -> dict[str, Any]:
    objective, bound = task.cost(outcome.places) / total, outcome.bound / total
    return {"name": split.name, "status": "optimal" if outcome.proved else "feasible", "objective": objective,
            "bound": objective if outcome.proved else min(bound, objective)}
