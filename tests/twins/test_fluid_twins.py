"""The same fair rates by other means: numpy (all local minima at once), a lexicographic linear program, SimGrid."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from moesim.network import LeafSpine, fluid, run_flows


class Case(NamedTuple):
    """Usage [flows, links], capacity [links], weight and limit [flows]."""

    usage: np.ndarray
    capacity: np.ndarray
    weight: np.ndarray
    limit: np.ndarray

    @property
    def paths(self) -> fluid.Paths:
        return fluid.Paths.of(sparse.csr_array(self.usage))


@st.composite
def cases(draw: Any, flows: int = 8, links: int = 6) -> Case:
    n, m = draw(st.integers(1, flows)), draw(st.integers(1, links))
    share = st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.5, 1 / 3])
    usage = np.array(draw(st.lists(share, min_size=n * m, max_size=n * m))).reshape(n, m)
    usage[np.arange(n), draw(st.lists(st.integers(0, m - 1), min_size=n, max_size=n))] = 1.0

    def some(values: list[float], count: int) -> np.ndarray:
        return np.array(draw(st.lists(st.sampled_from(values), min_size=count, max_size=count)))

    return Case(usage, some([1.0, 2.0, 3.0, 10.0], m), some([1.0, 1.0, 0.5, 0.25, 3.0], n),
                some([np.inf, np.inf, 0.3, 1.0, 5.0], n))


def by_local_minima(case: Case) -> np.ndarray:
    """Return the fair rates: fix the flows of every link that is the tightest of all its flows, until none is open."""
    level, still = np.zeros(len(case.weight)), np.ones(len(case.weight), bool)
    on, own = case.usage > 0, case.limit / case.weight
    while still.any():
        room = case.capacity - case.usage.T @ np.where(still, 0, case.weight * level)
        demand = case.usage.T @ (case.weight * still)
        share = np.divide(room, demand, out=np.full(len(room), np.inf), where=(on & still[:, None]).any(axis=0))
        lowest = np.minimum(np.where(on, share, np.inf).min(axis=1), own)
        tightest = np.where(on & still[:, None], lowest[:, None], np.inf).min(axis=0)
        local = np.isfinite(share) & (share <= tightest * (1 + 1e-12))
        fixed = still & ((on & local).any(axis=1) | (own <= lowest))
        level[fixed], still = lowest[fixed], still & ~fixed
    return level * case.weight


def by_linear_programs(case: Case) -> np.ndarray:
    """Return the fair rates: raise the lowest level as far as it goes, fix who cannot rise further, repeat."""
    fixed = np.full(len(case.weight), np.nan)
    while np.isnan(fixed).any():
        level = best(case, fixed, None, 0.0)
        stuck = [f for f in np.flatnonzero(np.isnan(fixed)) if best(case, fixed, f, level) <= level * (1 + 1e-6)]
        assert stuck
        fixed[stuck] = level
    return fixed * case.weight


def best(case: Case, fixed: np.ndarray, favourite: int | None, floor: float) -> float:
    """Maximise the lowest level of the flows not *fixed*, or that of the *favourite* with the others above *floor*."""
    problem = pulp.LpProblem("fair", pulp.LpMaximize)
    level = [problem.add_variable(f"level{f}", floor) for f in range(len(fixed))]
    goal = problem.add_variable("goal")
    problem += goal
    for f, known in enumerate(fixed):
        if not np.isnan(known):
            level[f] = float(known)
        elif favourite in (None, f):
            problem += goal <= level[f]
        if np.isnan(known) and np.isfinite(case.limit[f]):
            problem += float(case.weight[f]) * level[f] <= float(case.limit[f]) * (1 + 1e-9)
    for l in range(len(case.capacity)):
        problem += (pulp.lpSum(float(case.usage[f, l] * case.weight[f]) * level[f] for f in range(len(fixed)))
                    <= case.capacity[l] * (1 + 1e-9))
    status = problem.solve(pulp.HiGHS(msg=False))
    assert status == pulp.LpStatusOptimal
    return float(goal.value())


@given(cases(flows=30, links=12))
@settings(max_examples=150, deadline=None)
def test_heap_equals_local_minima(case: Case) -> None:
    rate, _ = fluid.rates(case.paths, case.capacity, case.weight, case.limit)
    assert rate == pytest.approx(by_local_minima(case), rel=1e-9)


@given(cases())
@settings(max_examples=25, deadline=None)
def test_heap_equals_linear_programs(case: Case) -> None:
    rate, _ = fluid.rates(case.paths, case.capacity, case.weight, case.limit)
    assert rate == pytest.approx(by_linear_programs(case), rel=1e-5)


def step_by_step(case: Case, size: np.ndarray, start: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the ends of flows, all rates solved anew with numpy at every start and end."""
    left, end, now = size.copy(), np.full(len(size), np.nan), start.min()
    while np.isnan(end).any():
        runs = np.flatnonzero((start <= now) & np.isnan(end) & ((after < 0) | ~np.isnan(end[after])))
        coming = start[start > now].min(initial=np.inf)
        rate = by_local_minima(Case(case.usage[runs], case.capacity, case.weight[runs], case.limit[runs]))
        until = min(now + (left[runs] / rate).min(initial=np.inf), coming)
        left[runs] -= rate * (until - now)
        done = runs[left[runs] <= 1e-9 * size[runs]]
        end[done], now = until, until
    return end


@given(cases(flows=12, links=8), st.integers(0, 10_000), st.booleans())
@settings(max_examples=100, deadline=None)
def test_partial_solves_equal_whole_ones(case: Case, seed: int, together: bool) -> None:
    rng = np.random.default_rng(seed)
    n = len(case.weight)
    size, start = rng.choice([1.0, 2.0, 5.0], n), np.zeros(n) if together else rng.choice([0.0, 0.5, 1.0, 4.0], n)
    found = fluid.run(case.paths, case.capacity, size, start, weight=case.weight, limit=case.limit)
    assert found.end_s == pytest.approx(step_by_step(case, size, start, np.full(n, -1)), rel=1e-7)
    assert found.solved <= found.events * n


@given(cases(flows=12, links=8), st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_flows_in_turn_equal_whole_solves(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = len(case.weight)
    size, start = rng.choice([1.0, 2.0, 5.0], n), rng.choice([0.0, 0.0, 0.5, 4.0], n)
    after, row = np.full(n, -1), rng.permutation(n)
    after[row[1:]] = np.where(rng.random(n - 1) < 0.6, row[:-1], -1)
    found = fluid.run(case.paths, case.capacity, size, start, weight=case.weight, limit=case.limit, after=after)
    assert found.end_s == pytest.approx(step_by_step(case, size, start, after), rel=1e-7)
    assert (found.left_bytes == 0).all()


def simgrid_ends(fabric: LeafSpine, flows: pd.DataFrame) -> list[float]:
    """Return the ends of pinned flows that start at 0, by SimGrid's CM02 network model without its TCP corrections."""
    simgrid = pytest.importorskip("simgrid", reason="SimGrid is not installed (apt-get install python3-simgrid)")
    options = ["network/model:CM02", "network/TCP-gamma:0", "network/crosstraffic:0", "network/weight-S:0",
               "network/latency-factor:1", "network/bandwidth-factor:1", "surf/precision:1e-12",
               "maxmin/precision:1e-9"]
    engine = simgrid.Engine(["twin", "--log=root.thresh:critical", *(f"--cfg={option}" for option in options)])
    zone = simgrid.NetZone.create_full_zone("fabric")
    links = [zone.create_link(f"link{l}", float(c)).set_latency(0.0).seal()
             for l, c in enumerate(fabric.links()["capacity_bytes_per_s"])]
    end: list[float] = [0.0] * len(flows)

    def sender(box: Any, size: int) -> None:
        box.put("x", size)

    def receiver(box: Any, which: int) -> None:
        box.get()
        end[which] = engine.clock

    usage = sparse.csr_array(usage_of(fabric, flows))
    for i, size in enumerate(flows["bytes"]):  # a pair of hosts per flow: SimGrid has one route per pair
        a, b = (zone.create_host(f"{side}{i}", 1e9).seal() for side in ("from", "to"))
        used = [simgrid.LinkInRoute(links[l]) for l in usage.indices[usage.indptr[i]:usage.indptr[i + 1]]]
        zone.add_route(a.netpoint, b.netpoint, None, None, used, False)
        box = simgrid.Mailbox.by_name(f"box{i}")
        simgrid.Actor.create(f"send{i}", a, sender, box, int(size))
        simgrid.Actor.create(f"receive{i}", b, receiver, box, i)
    zone.seal()
    engine.run()
    return end


def usage_of(fabric: LeafSpine, flows: pd.DataFrame) -> sparse.coo_array:
    src, dst, spine = (flows[column].to_numpy() for column in ("src", "dst", "spine"))
    path = fabric.path(src, dst, np.maximum(spine, 0))
    flow, real = np.repeat(np.arange(len(flows)), path.shape[1]), path.ravel() >= 0
    return sparse.coo_array((np.ones(real.sum()), (flow[real], path.ravel()[real])),
                            shape=(len(flows), fabric.n_links))


def test_simgrid_agrees_on_a_random_case() -> None:
    fabric = LeafSpine(leaves=3, spines=2, hosts_per_leaf=3, link="10 GB/s", uplink="8 GB/s")
    rng = np.random.default_rng(5)
    pairs = np.array(list(itertools.permutations(range(9), 2)))[rng.permutation(72)[:50]]
    flows = pd.DataFrame(pairs, columns=["src", "dst"]).assign(bytes=rng.integers(1, 50, 50) * 1e6, start_s=0.0)
    near = flows["src"] // 3 == flows["dst"] // 3
    flows["spine"] = np.where(near, -1, rng.integers(0, 2, 50))
    expected = simgrid_ends(fabric, flows)
    assert run_flows(fabric, flows)["finish_s"].to_numpy() == pytest.approx(expected, rel=1e-6)
