"""MoETuner's two integer programs: even clusters of experts per layer, then clusters to devices for the worst link.

>>> import numpy as np
>>> from moesim.placement.objective import Problem, Profile
>>> follows = np.array([[[0, 4, 0, 0], [5, 0, 0, 0], [0, 0, 5, 0], [0, 0, 0, 4]]])
>>> profile = Profile(np.array([[4, 5, 5, 4]] * 2), 18, lambda top1: follows)
>>> answer = Moetuner().solve(profile, Problem(n_experts=4, n_devices=2), seed=0)
>>> answer.info["imbalance"], answer.info["stages"]  # loads of 9 and 9 in both layers
([0.0, 0.0], {'balance': 'optimal', 'links': 'optimal'})
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from pydantic import Field
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linear_sum_assignment, milp

from moesim.placement.objective import Pairs, Problem, Profile
from moesim.placement.placement import Placement, PlacementError
from moesim.placement.solvers._packing import pack
from moesim.registry import part
from moesim.units import Seconds


@part
class Moetuner:
    """Balance the load of each layer's clusters, then minimise the sum over layers of the busiest link's time.

    Source: arXiv 2502.06643, with HiGHS. A cluster has at most ``capacity`` experts, so devices keep to it (the paper
    evens out the sum over layers instead). A link's time is its transitions times the distance, per transition.
    The programs start from nothing; what greedy rules find is kept where it is better. The stages share *time_limit*,
    half each; ``stages`` says whether each is "optimal" or only "feasible". The two together are a heuristic: other
    clusters may load links less, so there is no ``bound``; ``links_bound`` holds for these clusters.
    Raises ``PlacementError`` for more than *max_variables*: the second program has D**4 per layer.
    """

    time_limit: Seconds = 60.0
    pairs: Pairs = "top1"
    max_variables: int = Field(default=50_000, ge=1)

    def solve(self, profile: Profile, problem: Problem, seed: int) -> Placement:
        """Return the placement; *seed* plays no part."""
        n_layers, n_devices = profile.n_layers, problem.n_devices
        need = max(profile.n_experts * n_devices, (n_layers - 1) * n_devices**4)
        if need > self.max_variables:
            raise PlacementError(f"the second program needs {need} variables, {need - self.max_variables} more than "
                                 f"max_variables = {self.max_variables}; use joint, fewer devices (nodes first), "
                                 "fewer layers, or a higher max_variables")
        each_s = self.time_limit / 2 / n_layers
        balanced = [_cluster(counts[:size], n_devices, int(room), each_s) for counts, size, room in zip(
            profile.counts, profile.sizes, problem.rooms(profile.sizes), strict=True)]
        clusters = np.full(profile.counts.shape, n_devices)  # beyond the experts of a layer: a cluster that is none
        for row, stage in zip(clusters, balanced, strict=True):
            row[:len(stage.devices)] = stage.devices
        one = np.eye(n_devices + 1)[clusters][:, :, :n_devices]
        transitions = profile.transitions(self.pairs)
        traffic = np.einsum("lic,lij,ljd->lcd", one[:-1], transitions / max(int(transitions.sum()), 1), one[1:])
        distances = problem.distance if problem.distances is None else problem.distances
        linked = _label(traffic, distances, self.time_limit / 2)
        nowhere = np.full((n_layers, 1), -1)
        device_of = np.take_along_axis(np.append(linked.devices, nowhere, axis=1), clusters, axis=1)
        stages = {"balance": "optimal" if all(stage.proved for stage in balanced) else "feasible",
                  "links": "optimal" if linked.proved else "feasible"}
        return Placement.from_device_of(device_of, n_devices, profile.sizes, minimises=f"worst_link_{self.pairs}",
                                        objective=linked.objective, status="heuristic", stages=stages,
                                        links_bound=linked.bound, imbalance=[s.objective for s in balanced])


class Stage(NamedTuple):
    """What a program found: devices [E] of experts, or [L, D] of clusters; *proved*: no better one exists."""

    devices: np.ndarray
    objective: float
    bound: float
    proved: bool


def _cluster(counts: np.ndarray, n_devices: int, capacity: int, time_limit_s: float) -> Stage:
    """Return the clusters of a layer with the least sum of distances of their loads from the mean, in tokens."""
    n, mean = len(counts) * n_devices, counts.sum() / n_devices
    expert, cluster = np.divmod(np.arange(n), n_devices)
    load = sparse.csr_matrix((counts[expert].astype(float), (cluster, np.arange(n))), shape=(n_devices, n))
    size = sparse.csr_matrix((np.ones(n), (cluster, np.arange(n))))
    once = sparse.csr_matrix((np.ones(n), (expert, np.arange(n))))
    above, none = sparse.identity(n_devices), sparse.csr_matrix((len(counts), n_devices))
    limits = [LinearConstraint(sparse.hstack([once, none]), 1, 1),
              LinearConstraint(sparse.hstack([size, 0 * above]), min(1, len(counts) // n_devices), capacity),
              LinearConstraint(sparse.hstack([load, -above]), -np.inf, mean),
              LinearConstraint(sparse.hstack([load, above]), mean, np.inf)]
    found = _milp(np.r_[np.zeros(n), np.ones(n_devices)], n, limits, time_limit_s)
    start = pack(counts.astype(float), n_devices, capacity)[0]
    options = [start] if found.x is None else [found.x[:n].reshape(-1, n_devices).argmax(axis=1), start]
    costs = [float(np.abs(np.bincount(o, counts, n_devices) - mean).sum()) for o in options]
    best = int(np.argmin(costs))
    return Stage(options[best], costs[best], max(found.mip_dual_bound or 0.0, 0.0), found.status == 0)


def worst_links(traffic: np.ndarray, distances: np.ndarray, devices: np.ndarray) -> float:
    """Return the sum over layers of the largest traffic x distance on a pair of devices.

    traffic float64 [L-1, D, D] between clusters; distances [D, D]; devices int64 [L, D], those of the clusters.
    """
    return sum(float((flows * distances[np.ix_(here, there)]).max())
               for flows, here, there in zip(traffic, devices, devices[1:], strict=False))


def _label(traffic: np.ndarray, distances: np.ndarray, time_limit_s: float) -> Stage:
    """Return the devices of the clusters with the least ``worst_links``.

    y[l, c, g]: cluster c of layer l is on device g; z[l, c, g, c', g'] = y[l, c, g] y[l+1, c', g'] by its sums over
    g' and g (tighter than z >= y + y' - 1); t[l] is at least each link's time.
    """
    steps, d = len(traffic), len(distances)
    known = min((np.tile(np.arange(d), (steps + 1, 1)), _staying(traffic)),
               key=lambda devices: worst_links(traffic, distances, devices))
    start = worst_links(traffic, distances, known)
    if start == 0.0:
        return Stage(known, 0.0, 0.0, True)
    n_y, n_z = (steps + 1) * d * d, steps * d**4
    y = np.arange(n_y).reshape(steps + 1, d, d)
    z = n_y + np.arange(n_z).reshape(steps, d, d, d, d)
    t, columns = n_y + n_z + np.arange(steps), n_y + n_z + steps
    rows = [_sums(columns, y.reshape(-1, d)), _sums(columns, y.swapaxes(1, 2).reshape(-1, d))]
    limits: list[Any] = [LinearConstraint(row, 1, 1) for row in rows]
    if len(np.unique(distances[~np.eye(d, dtype=bool)])) == 1:  # devices are alike: name them by layer 0
        limits.append(LinearConstraint(_sums(columns, y[0].diagonal()[:, None]), 1, 1))
    ahead = np.repeat(y[:-1, :, :, None], d, axis=3).ravel()               # [l, c, g, c']
    behind = np.repeat(y[1:, None], d, axis=1).ravel()                     # [l, c, c', g']
    for parts, whole in ((z.reshape(-1, d), ahead), (z.transpose(0, 1, 3, 4, 2).reshape(-1, d), behind)):
        limits.append(LinearConstraint(_sums(columns, parts) - _sums(columns, whole[:, None]), 0, 0))
    pairs = z.transpose(0, 2, 4, 1, 3).reshape(steps * d * d, d * d)       # [l g g', c c']
    times = distances[None, :, :, None] * traffic.reshape(steps, 1, 1, d * d)
    link = _sums(columns, pairs, times.reshape(pairs.shape))
    limits.append(LinearConstraint(link - _sums(columns, np.repeat(t, d * d)[:, None]), -np.inf, 0))
    cost = np.zeros(columns)
    cost[t] = 1.0
    found = _milp(cost, n_y, limits, time_limit_s)
    bound = max(found.mip_dual_bound or 0.0, 0.0)  # none, or minus infinity, if the time was too short
    if found.x is not None:
        devices = found.x[:n_y].reshape(steps + 1, d, d).argmax(axis=2)
        if (worst := worst_links(traffic, distances, devices)) <= start:
            return Stage(devices, worst, min(bound, worst), found.status == 0)
    return Stage(known, start, min(bound, start), found.status == 0)


def _staying(traffic: np.ndarray) -> np.ndarray:
    """Return devices of clusters, [L, D], such that from layer to layer as much as possible stays where it is."""
    devices = [np.arange(traffic.shape[1])]
    for flows in traffic:
        cluster_on = np.argsort(devices[-1])
        device, cluster = linear_sum_assignment(-flows[cluster_on])
        devices.append(device[np.argsort(cluster)])
    return np.stack(devices)


def _sums(columns: int, members: np.ndarray, factors: np.ndarray | None = None) -> sparse.csr_matrix:
    """Return one row per row of *members*: the sum of those variables, times *factors* of the same shape."""
    values = np.ones(members.shape) if factors is None else factors
    row = np.repeat(np.arange(len(members)), members.shape[1])
    return sparse.csr_matrix((values.ravel(), (row, members.ravel())), shape=(len(members), columns))


def _milp(cost: np.ndarray, whole: int, limits: list[Any], time_limit_s: float) -> Any:
    """Solve a program whose first *whole* variables are 0 or 1 and the rest not negative."""
    upper = np.where(np.arange(len(cost)) < whole, 1.0, np.inf)
    found = milp(cost, integrality=(np.arange(len(cost)) < whole).astype(int), bounds=Bounds(0, upper),
                 constraints=limits, options={"time_limit": max(time_limit_s, 1e-3), "mip_rel_gap": 0.0})
    if found.status not in (0, 1):
        raise RuntimeError(f"the integer program ended with: {found.message}; yet it has a solution: a bug in moetuner")
    return found
