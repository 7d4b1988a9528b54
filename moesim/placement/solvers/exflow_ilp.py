"""ExFlow's integer program, exact on small instances, warm-started and honest at its time limit.

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
from typing import Any

import numpy as np
from pydantic import Field

from moesim.placement.bounds import lower_bound
from moesim.placement.objective import Pairs, Problem, Profile, transition_cost
from moesim.placement.objectives.transitions import Transitions
from moesim.placement.placement import Placement, PlacementError
from moesim.placement.solvers._claims import gap
from moesim.placement.solvers.affinity_sweep import AffinitySweep
from moesim.registry import part
from moesim.units import Seconds


@part
class ExflowIlp:
    """Minimise the mean transition distance with PuLP and HiGHS (ExFlow, arXiv 2401.08383; per-token variables
    aggregated to transition counts).

    ``status`` is "optimal" (bound proved, gap 0) or "feasible" (stopped at *time_limit*); ``bound`` is the program's
    or that of bounds.py, whichever is higher. The start is affinity_sweep's answer, and the result is never worse
    than it. At the time limit the answer depends on the speed of the machine. Raises ``PlacementError`` for more than
    *max_constraints*: beyond about 8 experts x 4 layers no optimum is proved within minutes anyway.
    """

    time_limit: Seconds = 60.0
    pairs: Pairs = "top1"
    max_constraints: int = Field(default=200_000, ge=1)

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; *seed* draws the warm start and the solver's own choices."""
        transitions, crossing = profile.transitions(self.pairs), Transitions(pairs=self.pairs)
        need = int((transitions > 0).sum()) * sum(int(group_of.max()) + 1 for group_of, _ in problem.levels)
        if need > self.max_constraints:
            raise PlacementError(f"the integer program needs {need} constraints, {need - self.max_constraints} more "
                                 f"than max_constraints = {self.max_constraints}; use affinity_sweep or joint, "
                                 "fewer layers, or a higher max_constraints")
        start = AffinitySweep(pairs=self.pairs).solve(profile, problem, seed).device_of
        before = transition_cost(transitions, start, problem.distance)
        if before == 0.0:  # nothing crosses, or there is nothing to cross: optimal without a program
            outcome = _Outcome(start, 0.0, True, 0)
        else:
            outcome = _Model(transitions, problem, canonical(start, problem)).solve(self.time_limit, seed)
        objective = transition_cost(transitions, outcome.device_of, problem.distance)
        relaxed = 0.0 if outcome.proved else lower_bound(crossing.costs(profile, problem), profile, problem)
        bound = objective if outcome.proved else max(outcome.bound / int(transitions.sum()), relaxed)
        status = "optimal" if outcome.proved else "feasible"
        return Placement.from_device_of(outcome.device_of, problem.n_devices, minimises=f"cross_{self.pairs}",
                                        objective=objective, status=status, **gap(objective, bound),
                                        warm_start_objective=before, constraints=outcome.constraints)


def canonical(device_of: np.ndarray, problem: Problem) -> np.ndarray:
    """Return the placement with devices renamed by first appearance in layer 0 (within nodes, and nodes likewise).

    Costs do not change: devices of a node are alike, and so are nodes. It satisfies the symmetry breaking.
    """
    order = list(dict.fromkeys(device_of[0].tolist() + list(range(problem.n_devices))))
    nodes = list(dict.fromkeys(problem.node_of[order].tolist()))
    order.sort(key=lambda d: nodes.index(problem.node_of[d]))  # stable: keeps the order inside a node
    return np.argsort(order)[device_of]


@dataclasses.dataclass(frozen=True)
class _Outcome:
    device_of: np.ndarray
    bound: float
    proved: bool
    constraints: int


class _Model:
    """Hold the integer program: x[l,e,d] = 1 if expert e of layer l is on device d; y[l,i,j] >= 1 if apart.

    y needs one direction of x[l,i,d] - x[l+1,j,d] only, because every expert is on exactly one device. With
    nodes a second y tells whether the nodes differ; it costs the weight's rest.
    """

    def __init__(self, transitions: np.ndarray, problem: Problem, start: np.ndarray) -> None:
        import pulp  # a quarter of a second to import: only when needed

        self.problem, self.start, self.pulp = problem, start, pulp
        self.program = pulp.LpProblem("exflow", pulp.LpMinimize)
        n_layers, n_experts = start.shape
        self.room = int(problem.rooms(np.array([n_experts]))[0])
        self.x = [[[self.program.add_variable(f"x_{layer}_{expert}_{device}", cat="Binary")
                    for device in range(problem.n_devices)] for expert in range(n_experts)]
                  for layer in range(n_layers)]
        self.values: dict[str, float] = {}  # of every variable, at the start
        self._place_experts()
        cost: list[tuple[Any, float]] = []
        self.unit = problem.levels[0][1]  # costs are counted in crossings of the lowest level: mostly whole numbers
        for number, (group_of, weight) in enumerate(problem.levels):
            for layer, flows in enumerate(transitions):
                apart = self._add_apart(f"y{number}_{layer}", layer, np.argwhere(flows > 0), group_of)
                cost += [(y, round(weight / self.unit, 9) * float(flows[i, j])) for (i, j), y in apart.items()]
        self.program.setObjective(pulp.LpAffineExpression(cost))
        # With whole costs an objective less than one above the bound is proved optimal.
        self.step = 0.999 if all(value.is_integer() for _, value in cost) else 0.0

    def _place_experts(self) -> None:
        pulp, problem = self.pulp, self.problem
        even = len(self.x[0]) % problem.n_devices == 0
        for layer, rows in enumerate(self.x):
            for expert, row in enumerate(rows):
                self.program += pulp.lpSum(row) == 1
                self.values |= {v.name: float(d == self.start[layer, expert]) for d, v in enumerate(row)}
            for column in zip(*rows, strict=True):
                held = pulp.lpSum(column)
                self.program += (held == self.room) if even else (held <= self.room)
        # Symmetry: devices are alike, so number them by first appearance in layer 0. Nodes make that coarser.
        for expert, row in enumerate(self.x[0][:1] if problem.n_nodes > 1 else self.x[0]):
            for variable in row[expert + 1:]:
                variable.upBound = 0

    def _add_apart(self, name: str, layer: int, where: np.ndarray, group_of: np.ndarray) -> dict[tuple[int, int], Any]:
        pulp = self.pulp
        groups = [np.flatnonzero(group_of == g) for g in range(int(group_of.max()) + 1)]
        inside = [[[pulp.lpSum([row[d] for d in group]) for group in groups] for row in rows]
                  for rows in self.x[layer:layer + 2]]
        apart = {}
        for i, j in where.tolist():
            y = apart[i, j] = self.program.add_variable(f"{name}_{i}_{j}", 0, 1)
            differ = group_of[self.start[layer, i]] != group_of[self.start[layer + 1, j]]
            self.values[y.name] = float(differ)
            for here, there in zip(inside[0][i], inside[1][j], strict=True):
                self.program += y >= here - there
        # A group holds `room` experts of the next layer, so an expert is apart from all partners but that many.
        # Without this the linear relaxation is 0 (every expert spread evenly) and so is every bound.
        room = self.room * len(groups[0])
        for axis in (0, 1):
            for expert in np.unique(where[:, axis]).tolist():
                partners = [y for pair, y in apart.items() if pair[axis] == expert]
                if len(partners) > room:
                    self.program += pulp.lpSum(partners) >= len(partners) - room
        return apart

    def solve(self, time_limit_s: float, seed: int) -> _Outcome:
        pulp, values = self.pulp, self.values

        class WarmHighs(pulp.HiGHS):  # type: ignore[name-defined, misc]
            """HiGHS with a start: PuLP's own warmStart is ignored by its HiGHS interface (seen in 3.3.2)."""

            def callSolver(self, lp: Any) -> None:
                import highspy

                start = highspy.HighsSolution()
                start.col_value = [values[v.name] for v in lp.variables()]
                lp.solverModel.setSolution(start)
                lp.solverModel.run()

        self.program.solve(WarmHighs(msg=False, timeLimit=time_limit_s, gapRel=0.0, gapAbs=self.step,
                                     random_seed=seed % 2**31))
        info = self.program.solverModel.getInfo()
        status = self.program.sol_status  # not .status, which says "Optimal" at a time limit too
        if status in (pulp.LpSolutionInfeasible, pulp.LpSolutionUnbounded):
            raise RuntimeError("the integer program has no solution, yet its start is one: a bug in exflow_ilp")
        device_of = self.start if status == pulp.LpSolutionNoSolutionFound else self._device_of()
        proved = status == pulp.LpSolutionOptimal
        bound = max(float(info.mip_dual_bound), 0.0) * self.unit
        return _Outcome(device_of, bound, proved, self.program.numConstraints())

    def _device_of(self) -> np.ndarray:
        value = np.array([[[v.value() for v in row] for row in rows] for rows in self.x])
        return value.argmax(axis=2)
