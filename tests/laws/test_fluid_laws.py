"""Laws of fluid flows: shares are fair, bytes are conserved, time scales, splitting loads links like spraying."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from math import gcd, lcm
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from moesim import registry
from moesim.network import LeafSpine, Network, Switch, fluid, run_flows
from moesim.network.balancing.split import Split
from moesim.network.collective import Constants
from moesim.network.ends import Ends
from moesim.network.pieces import Pieces, ends_of
from moesim.network.pieces import spread as spread_ends

FABRIC = LeafSpine(leaves=4, spines=3, hosts_per_leaf=4, link="400 Gbit/s")
BALANCING = registry.names("balancing")


def some_flows(n: int, seed: int = 0, hosts: int = 16, starts: tuple[float, ...] = (0.0,)) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    src = rng.integers(hosts, size=n)
    return pd.DataFrame({"src": src, "dst": (src + rng.integers(1, hosts, size=n)) % hosts,
                         "bytes": rng.lognormal(14, 1, n), "start_s": rng.choice(starts, n)})


def spread(fabric: Any, flows: pd.DataFrame, balancing: str, seed: int) -> Pieces:
    return spread_ends(ends_of(fabric, flows.assign(port=0)), registry.make("balancing", balancing), seed)


def all_pairs(hosts: int, size: float = 2.0**20) -> pd.DataFrame:
    src, dst = np.divmod(np.arange(hosts * hosts), hosts)
    return pd.DataFrame({"src": src, "dst": dst, "bytes": size, "start_s": 0.0})[src != dst].reset_index(drop=True)


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_every_flow_has_a_reason_to_be_no_faster(seed: int, n: int, m: int) -> None:
    """Optimality: links hold; each flow is at its limit, or some full link gives nobody there a higher level."""
    rng = np.random.default_rng(seed)
    usage = rng.choice([0, 0, 0, 0.25, 1], (n, m))
    usage[np.arange(n), rng.integers(m, size=n)] = 1
    capacity, weight = rng.uniform(1, 10, m), rng.choice([0.1, 0.5, 1, 1, 7], n)
    limit = np.where(rng.random(n) < 0.2, rng.uniform(0.01, 3, n), np.inf)
    rate, bottleneck = fluid.rates(fluid.Paths.of(sparse.csr_array(usage)), capacity, weight, limit)
    load = rate @ usage
    assert (load <= capacity * (1 + 1e-9)).all() and (rate <= limit * (1 + 1e-12)).all() and (rate > 0).all()
    level = rate / weight
    for f, l in enumerate(bottleneck):
        if l < 0:
            assert rate[f] == pytest.approx(limit[f], rel=1e-12)
        else:
            assert usage[f, l] > 0 and load[l] == pytest.approx(capacity[l], rel=1e-9)
            assert level[f] >= level[usage[:, l] > 0].max() * (1 - 1e-9)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_splitting_loads_every_link_as_spraying(f: int, s: int, seed: int) -> None:
    """Theorem 1 of arXiv 2407.00550: f flows of F bytes put f F / s on each of s spines, in q s + lcm(r, s) pieces."""
    fabric = LeafSpine(leaves=2, spines=s, hosts_per_leaf=f)
    flows = pd.DataFrame({"src": 0, "dst": f + np.random.default_rng(seed).permutation(f), "bytes": 6e6, "start_s": 0})
    pieces = spread(fabric, flows, "split", seed)
    load = (pieces.share * 6e6) @ pieces.usage
    hosts = 2 * fabric.n_hosts
    assert load[hosts:hosts + s] == pytest.approx(np.full(s, f * 6e6 / s), rel=1e-12)        # leaf 0 to spines
    assert load[hosts + 3 * s:] == pytest.approx(np.full(s, f * 6e6 / s), rel=1e-12)         # spines to leaf 1
    q, r = divmod(f, s)
    assert len(pieces.flow) == q * s + (lcm(r, s) if r else 0)
    of_flow = np.bincount(pieces.flow)
    assert sorted(of_flow) == [1] * (q * s) + [s // gcd(r, s)] * r
    assert np.bincount(pieces.flow, pieces.share) == pytest.approx(np.ones(f))


def test_splitting_deals_every_leaf_and_start_on_its_own() -> None:
    flows = pd.concat([all_pairs(16), all_pairs(16).assign(start_s=1.0)], ignore_index=True)
    for start in (0.0, 1.0):
        pieces = spread(FABRIC, flows, "split", 7)
        now = flows["start_s"].to_numpy()[pieces.flow] == start
        load = pieces.share[now] @ pieces.usage[now]
        assert load[32:] == pytest.approx(np.full(24, 4 * 12 / 3), rel=1e-12)
    choice = Split().paths(Ends.of(FABRIC, np.zeros(4, int), np.arange(4, 8)), 0)
    assert np.sort(choice.share).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1, 1, 1])


@pytest.mark.parametrize("balancing", BALANCING)
def test_bytes_are_conserved(balancing: str) -> None:
    flows = some_flows(300)
    pieces, size = spread(FABRIC, flows, balancing, 3), flows["bytes"].to_numpy()
    assert np.bincount(pieces.flow, pieces.share) == pytest.approx(np.ones(300), rel=1e-12)
    load = pd.Series((size[pieces.flow] * pieces.share) @ pieces.usage).groupby(FABRIC.links()["class"]).sum()
    far = size[(flows["src"] // 4 != flows["dst"] // 4).to_numpy()].sum()
    assert load[["nic_out", "nic_in"]].to_numpy() == pytest.approx(size.sum(), rel=1e-12)
    assert load[["leaf_up", "leaf_down"]].to_numpy() == pytest.approx(far, rel=1e-12)


@pytest.mark.parametrize("balancing", BALANCING)
def test_no_link_carries_more_than_it_can(balancing: str) -> None:
    flows = some_flows(200, starts=(0.0, 1e-4))
    done = run_flows(FABRIC, flows, balancing)
    alone = [run_flows(FABRIC, flows[i:i + 1], balancing)["finish_s"].iloc[0] for i in range(0, 200, 20)]
    assert (done["finish_s"].to_numpy()[::20] >= np.array(alone) * (1 - 1e-12)).all()
    pieces = spread(FABRIC, flows, balancing, 0)
    load = (flows["bytes"].to_numpy()[pieces.flow] * pieces.share) @ pieces.usage
    assert done["finish_s"].max() >= (load / 50e9).max() * (1 - 1e-12)


@pytest.mark.parametrize("balancing", [b for b in BALANCING if b != "flowlet"])  # whose bursts collide in turn
@pytest.mark.parametrize("uplink", ["400 Gbit/s", "100 Gbit/s"])
def test_closed_form_where_both_apply(balancing: str, uplink: str) -> None:
    """Equal flows that start together keep their first rates, so the busiest link is busy to the end."""
    fabric = LeafSpine(leaves=4, spines=3, hosts_per_leaf=4, link="400 Gbit/s", uplink=uplink, latency="1 us")
    perfect = Constants(bandwidth=50e9, efficiency=1.0, startup=0.0, ramp=0.0)
    for seed in range(3):
        network = Network(16, 1, perfect, fabric, perfect, balancing, seed)
        closed = network.all_to_all(np.full((16, 16), 2.0**20)).time_s
        flows = run_flows(fabric, all_pairs(16), balancing, seed)
        assert flows["finish_s"].max() == pytest.approx(float(closed), rel=1e-9)


def test_equal_flows_are_solved_once() -> None:
    """Those that end first have the highest level; nobody slower has a link where that makes room to gain."""
    for balancing in BALANCING:
        pieces = spread(FABRIC, all_pairs(16), balancing, 0)
        n = len(pieces.flow)
        course = fluid.run(fluid.Paths.of(pieces.usage), np.full(56, 50e9), pieces.share * 1e6, np.zeros(n),
                           weight=pieces.share)
        assert course.solved == n and course.events <= n


@given(st.integers(0, 10_000), st.sampled_from([0.001, 8.0]), st.sampled_from(BALANCING))
@settings(max_examples=30, deadline=None)
def test_time_scales_with_bytes_and_bandwidth(seed: int, factor: float, balancing: str) -> None:
    flows = some_flows(80, seed, starts=(0.0, 2e-5))
    base = run_flows(FABRIC, flows, balancing, seed)["finish_s"].to_numpy()
    longer = flows.assign(bytes=flows["bytes"] * factor, start_s=flows["start_s"] * factor)
    assert run_flows(FABRIC, longer, balancing, seed)["finish_s"].to_numpy() == pytest.approx(base * factor, rel=1e-9)
    faster = LeafSpine(leaves=4, spines=3, hosts_per_leaf=4, link=f"{400 * factor} Gbit/s")
    sooner = flows.assign(start_s=flows["start_s"] / factor)
    assert run_flows(faster, sooner, balancing, seed)["finish_s"].to_numpy() == pytest.approx(base / factor, rel=1e-9)
    later = flows.assign(start_s=flows["start_s"] + 1.0)
    assert run_flows(FABRIC, later, balancing, seed)["finish_s"].to_numpy() == pytest.approx(base + 1.0, rel=1e-9)


@given(st.integers(0, 10_000), st.sampled_from(BALANCING))
@settings(max_examples=30, deadline=None)
def test_order_of_rows_does_not_matter(seed: int, balancing: str) -> None:
    flows = some_flows(80, seed, starts=(0.0, 2e-5)).drop_duplicates(["src", "dst", "start_s"])
    order = np.random.default_rng(seed).permutation(len(flows))
    base = run_flows(FABRIC, flows, balancing)["finish_s"].to_numpy()
    mixed = run_flows(FABRIC, flows.iloc[order], balancing)["finish_s"].to_numpy()
    assert mixed == pytest.approx(base[order], rel=1e-9)


@pytest.mark.slow
def test_a_tolerance_costs_little_and_saves_events() -> None:
    flows = some_flows(2000, seed=2)
    exact = run_flows(FABRIC, flows)["finish_s"]
    for tolerance in (1e-4, 1e-3, 1e-2):
        error = run_flows(FABRIC, flows, tolerance=tolerance)["finish_s"] / exact - 1
        assert np.abs(error).max() <= 2 * tolerance and np.abs(error).mean() <= tolerance
    pieces = spread(FABRIC, flows, "ecmp", 0)
    events = [fluid.run(fluid.Paths.of(pieces.usage), np.full(56, 50e9), flows["bytes"].to_numpy(), np.zeros(2000),
                        tolerance=t).events for t in (0.0, 1e-2)]
    assert events[0] == 2000 and events[1] < 500


def test_one_piece_of_mprdma_is_ecmp_and_many_come_close_to_spraying() -> None:
    flows, wide = all_pairs(64), LeafSpine(leaves=8, spines=4, hosts_per_leaf=8)
    one = run_flows(wide, flows, {"name": "mprdma", "pieces": 1}, 5)
    pd.testing.assert_frame_equal(one, run_flows(wide, flows, "ecmp", 5))
    last: Any = [run_flows(wide, flows, {"name": "mprdma", "pieces": x}, 5)["finish_s"].max() for x in (1, 4, 64)]
    spray = run_flows(wide, flows, "spray")["finish_s"].max()
    assert last[0] > last[1] > last[2] and last[2] == pytest.approx(spray, rel=0.05)
    assert run_flows(wide, flows, "split")["finish_s"].max() == pytest.approx(spray, rel=1e-12)


def test_same_seed_same_bytes_in_every_process(other_hash_seed: str) -> None:
    """Another process with other hashes of text: the same bytes for every balancing."""
    code = ("import sys; sys.path.insert(0, 'tests/laws'); import test_fluid_laws as t; print(t.digests())")
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": other_hash_seed}).stdout
    assert other == f"{digests()}\n"


def digests() -> list[str]:
    """Return a digest of the ends of 200 flows for every balancing."""
    ends = (run_flows(FABRIC, some_flows(200), b, seed=9)["finish_s"] for b in BALANCING)
    return [hashlib.sha256(end.to_numpy().tobytes()).hexdigest() for end in ends]


@pytest.mark.parametrize("balancing", ["ecmp", "mprdma", "flowlet"])
def test_another_seed_hashes_otherwise(balancing: str) -> None:
    first, second = (run_flows(FABRIC, some_flows(200), balancing, seed)["finish_s"] for seed in (9, 10))
    assert not first.equals(second)


def test_a_switch_has_nothing_to_balance() -> None:
    flows = some_flows(100)
    results = [run_flows(Switch(hosts=16), flows, balancing)["finish_s"] for balancing in BALANCING]
    for result in results:  # bursts add up to the same, but for rounding
        np.testing.assert_allclose(result, results[0], rtol=1e-12)
