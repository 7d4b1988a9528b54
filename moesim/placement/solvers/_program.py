"""The integer program of a task: PuLP, solved by HiGHS from a start (shared by solvers).

x[l,e,p] = 1 if expert e of layer l is in place p. Letters: L layers, N experts of a layer, P places.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moesim.placement.solvers._task import Task, canonical, ranks

WHOLE = 1e-9  # costs this near to whole numbers are: they were counts, or counts over a level's weight
STEP = 0.999  # with whole costs an objective less than one above the bound is proved optimal
GAP = 1e-6    # HiGHS's own absolute gap, otherwise


class Outcome(NamedTuple):
    """What HiGHS found: no placement costs less than *bound*; *proved*: none less than *places*, rounding aside."""

    places: list[np.ndarray]
    bound: float
    proved: bool


class Program:
    """Hold the program of a task; inside, places that are alike have their canonical names.

    What crosses comes in two forms. With *pairs* y = 1 if a pair of experts of neighbouring layers is in different
    groups. Else k[i,g] is what expert i keeps in group g: at most what flows from i into it, and at most what flows
    to as many as it holds if i is in it, nothing if not. Pairs prove more, sums are solved faster (5 to 10 times,
    measured at 16 to 32 experts).
    """

    def __init__(self, task: Task, pairs: bool) -> None:
        import pulp  # a quarter of a second to import: only when needed

        self.task, self.pulp = task, pulp
        self.names = canonical(task.start[0], task.levels) if task.alike else np.arange(task.rooms.shape[1])
        self.start = [self.names[at] for at in task.start]
        self.program = pulp.LpProblem("placement", pulp.LpMinimize)
        self.values: dict[str, float] = {}  # of every variable, at the start
        self.x = [[[self._variable(f"x_{layer}_{expert}_{place}", float(at == place), cat="Binary")
                    for place in range(len(self.names))] for expert, at in enumerate(places)]
                  for layer, places in enumerate(self.start)]
        self._place_experts()
        self.unit = task.levels[0][1]  # costs are counted in the weight of the lowest level: mostly whole numbers
        self.whole = task.loads is None  # all costs are whole numbers
        cost = self._table() + self._loads()
        for number, (group_of, weight) in enumerate(task.levels):
            for layer, flows in enumerate(task.flows if weight else []):
                price = self._price(flows * round(weight / self.unit, 9))
                cost += (self._pairs if pairs else self._sums)(f"{number}_{layer}", layer, price, group_of)
        self.program.setObjective(pulp.LpAffineExpression(cost))

    def _variable(self, name: str, start: float, low: float = 0, high: float | None = 1,
                  cat: str = "Continuous") -> Any:
        self.values[name] = start
        return self.program.add_variable(name, low, high, cat)

    def _price(self, cost: np.ndarray) -> np.ndarray:
        whole = np.round(cost)
        if np.abs(cost - whole).max(initial=0.0) < WHOLE * max(1.0, cost.max(initial=0.0)):
            return whole
        self.whole = False
        return cost

    def _place_experts(self) -> None:
        pulp, rooms = self.pulp, self.task.rooms
        for layer, rows in enumerate(self.x):
            for row in rows:
                self.program += pulp.lpSum(row) == 1
            full = int(rooms[layer].sum()) == len(rows)
            for place, column in enumerate(zip(*rows, strict=True)):
                held, room = pulp.lpSum(column), int(rooms[layer, place])
                if full or room < len(rows):
                    self.program += (held == room) if full else (held <= room)
        if self.task.alike:  # names by first appearance: all others would be tried in vain
            for expert, row in enumerate(self.x[0]):
                for place in np.flatnonzero(ranks(self.task.levels) > expert).tolist():
                    row[place].upBound = 0

    def _inside(self, layer: int, group_of: np.ndarray) -> list[list[list[Any]]]:
        """Return the variables whose sum says whether an expert of *layer* is in a group: [N][G]."""
        groups = [np.flatnonzero(group_of == g).tolist() for g in range(int(group_of.max()) + 1)]
        return [[[row[p] for p in group] for group in groups] for row in self.x[layer]]

    def _room(self, layer: int, group_of: np.ndarray) -> int:
        """Return the most experts of *layer* in a group."""
        return int(np.bincount(group_of, self.task.rooms[layer]).max())

    def _pairs(self, name: str, layer: int, price: np.ndarray, group_of: np.ndarray) -> list[tuple[Any, float]]:
        """Add y in one direction only, because every expert is in exactly one place."""
        pulp, apart = self.pulp, {}
        here, there = ([[pulp.lpSum(g) for g in groups] for groups in self._inside(n, group_of)]
                       for n in (layer, layer + 1))
        at, to = (group_of[places] for places in self.start[layer:layer + 2])
        for i, j in np.argwhere(price > 0).tolist():
            y = apart[i, j] = self._variable(f"y{name}_{i}_{j}", float(at[i] != to[j]))
            for one, other in zip(here[i], there[j], strict=True):
                self.program += y >= one - other
        # A group holds at most so many experts of the other layer, so an expert is apart from all but those.
        # Without this the linear relaxation is 0 (every expert spread evenly) and so is every bound.
        for axis in (0, 1):
            room = self._room(layer + 1 - axis, group_of)
            for expert in range(price.shape[axis]):
                partners = [y for pair, y in apart.items() if pair[axis] == expert]
                if len(partners) > room:
                    self.program += pulp.lpSum(partners) >= len(partners) - room
        return [(y, float(price[pair])) for pair, y in apart.items()]

    def _sums(self, name: str, layer: int, price: np.ndarray, group_of: np.ndarray) -> list[tuple[Any, float]]:
        pulp, kept, stays = self.pulp, [], 0.0
        here, there = (self._inside(n, group_of) for n in (layer, layer + 1))
        at, to = (group_of[places] for places in self.start[layer:layer + 2])
        most = np.sort(price, axis=1)[:, ::-1][:, :self._room(layer + 1, group_of)].sum(axis=1).tolist()
        for i in np.flatnonzero(most).tolist():
            partners = np.flatnonzero(price[i]).tolist()
            for g, own in enumerate(here[i]):
                start = float(price[i, to == g].sum()) if at[i] == g else 0.0
                k = self._variable(f"k{name}_{i}_{g}", start, 0, None)
                into = [(x, float(price[i, j])) for j in partners for x in there[j][g]]
                self.program += k <= pulp.LpAffineExpression(into)
                self.program += k <= pulp.LpAffineExpression([(x, most[i]) for x in own])
                kept.append(k)
                stays += start
        crossing = self._variable(f"c{name}", float(price.sum()) - stays, 0, None)
        self.program += crossing + pulp.lpSum(kept) >= float(price.sum())
        return [(crossing, 1.0)]

    def _table(self) -> list[tuple[Any, float]]:
        return [(variable, float(cost)) for rows, table in zip(self.x, self.task.table or [], strict=False)
                for row, costs in zip(rows, self._price(table / self.unit), strict=True)
                for variable, cost in zip(row, costs, strict=True) if cost]

    def _loads(self) -> list[tuple[Any, float]]:
        highest = []
        for layer, loads in enumerate(self.task.loads or []):
            t = self._variable(f"t_{layer}", self.task.highest(layer, self.task.start[layer]),
                               self.task.lowest(layer), None)
            for column in zip(*self.x[layer], strict=True):
                self.program += t >= self.pulp.LpAffineExpression(list(zip(column, loads.tolist(), strict=True)))
            highest.append((t, 1.0 / self.unit))
        return highest

    def solve(self, seed: int, **limits: Any) -> Outcome:
        """Return the best placement within *limits*, options of HiGHS: ``time_limit`` or ``mip_max_nodes``.

        A limit on nodes gives the same answer on every machine.
        """
        import highspy

        solver = _from_start(self.pulp, self.values)(msg=False, gapRel=0.0, gapAbs=STEP if self.whole else GAP,
                                                     random_seed=seed % 2**31, parallel="off", **limits)
        self.program.solve(solver)
        highs, ends = self.program.solverModel, highspy.HighsModelStatus
        status, info = highs.getModelStatus(), highs.getInfo()
        if status not in (ends.kOptimal, ends.kTimeLimit, ends.kSolutionLimit):
            raise RuntimeError(f"the integer program ended as {highs.modelStatusToString(status)}, yet its start is "
                               "a solution: a bug in HiGHS or in _program.py")
        places = self.task.start
        if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
            value, place_of = highs.getSolution().col_value, np.argsort(self.names)
            chosen = [np.array([[value[x.index] for x in row] for row in rows]) for rows in self.x]
            places = [place_of[x.reshape(-1, len(place_of)).argmax(axis=1)] for x in chosen]
        return Outcome(places, max(float(info.mip_dual_bound), 0.0) * self.unit, status == ends.kOptimal)


def _from_start(pulp: Any, values: dict[str, float]) -> Any:
    """Return PuLP's interface to HiGHS, with a start; PuLP's own warmStart is ignored there (seen in 3.3.2)."""

    class FromStart(pulp.HiGHS):  # type: ignore[misc]
        def callSolver(self, lp: Any) -> None:
            import highspy

            start = highspy.HighsSolution()
            # PuLP adds a variable of its own to an empty objective.
            start.col_value = [values.get(v.name, 0.0) for v in lp.variables()]
            lp.solverModel.setSolution(start)
            lp.solverModel.run()

        def findSolutionValues(self, lp: Any) -> tuple[int, int]:
            """Read nothing: PuLP calls the end at a time limit optimal and fails at a limit on nodes (3.3.2)."""
            return pulp.LpStatusNotSolved, pulp.LpSolutionNoSolutionFound

    return FromStart
