"""Paths of tiny fabrics written out by hand, and the laws that the paths of any fabric keep."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.network.balancing.ecmp import Ecmp
from moesim.network.balancing.split import Split
from moesim.network.ends import Ends, every
from moesim.network.topologies.fat_tree import FatTree
from moesim.network.topologies.leaf_spine import LeafSpine
from moesim.network.topologies.multi_plane import MultiPlane
from moesim.network.topologies.nvlink import NvLink
from moesim.network.topologies.rail_optimised import RailOptimised
from moesim.network.topologies.switch import Switch

SMALL = st.integers(1, 3)
FABRICS = st.one_of(
    st.builds(LeafSpine, SMALL, SMALL, SMALL, latency=st.just("1 us")),
    st.builds(Switch, st.integers(2, 5), latency=st.just("1 us")),
    st.builds(RailOptimised, SMALL, SMALL, SMALL, st.integers(0, 3), latency=st.just("1 us")),
    st.builds(FatTree, SMALL, SMALL, SMALL, SMALL, SMALL, latency=st.just("1 us")),
    st.builds(MultiPlane, SMALL, SMALL, SMALL, SMALL, st.sampled_from(["one", "all"]), latency=st.just("1 us")),
    st.builds(NvLink, st.integers(2, 5), SMALL, link=st.just("450 GB/s"), latency=st.just("1 us")))


def all_paths(fabric: Any, src: Any, dst: Any) -> tuple[np.ndarray, list[list[str]]]:
    """Return the flow of every path of every pair, and the path's links by name."""
    src, dst = np.atleast_1d(src).astype(np.int64), np.atleast_1d(dst).astype(np.int64)
    flow, choice = every(fabric.widths(src, dst).prod(axis=1))
    names = fabric.links()["name"].to_numpy()
    return flow, [names[row[row >= 0]].tolist() for row in fabric.path(src[flow], dst[flow], choice)]


def by_hand(*paths: str) -> list[list[str]]:
    """Return [["a->b", "b->c"]] for "a b c"."""
    return [[f"{a}->{b}" for a, b in pairwise(path.split())] for path in paths]


def test_rail_optimised() -> None:
    fabric = RailOptimised(pods=2, nodes_per_pod=2, rails=2, spines=2)
    assert fabric.switch_of(np.arange(8)).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]  # nodes: 01 23 | 45 67
    assert all_paths(fabric, 0, 2)[1] == by_hand("host0 leaf0 host2")  # one rail of one pod
    assert all_paths(fabric, 0, 1)[1] == by_hand(  # two positions of one node
        "host0 leaf0 spine0 leaf1 host1", "host0 leaf0 spine1 leaf1 host1")
    assert all_paths(fabric, 7, 1)[1] == by_hand(  # one rail, two pods
        "host7 leaf3 spine0 leaf1 host1", "host7 leaf3 spine1 leaf1 host1")
    assert fabric.links()["class"].value_counts(sort=False).to_dict() == {
        "nic_out": 8, "nic_in": 8, "leaf_up": 8, "leaf_down": 8}


def test_rails_alone() -> None:
    fabric = RailOptimised(pods=1, nodes_per_pod=2, rails=2, spines=0, latency="1 us")
    assert (len(fabric.links()), fabric.oversubscription, fabric.path_latency_s) == (8, float("inf"), 2e-6)
    src, dst = np.array([0, 0]), np.array([2, 3])
    assert fabric.widths(src, dst).tolist() == [[1], [0]]
    assert fabric.path(src, dst, np.array([0, 0])).tolist() == [[0, -1, -1, 6], [-1, -1, -1, -1]]


def test_fat_tree() -> None:
    fabric = FatTree(pods=2, leaves=2, hosts_per_leaf=2, aggs=2, cores_per_agg=2)
    assert all_paths(fabric, 1, 0)[1] == by_hand("host1 leaf0 host0")
    assert all_paths(fabric, 1, 2)[1] == by_hand("host1 leaf0 agg0 leaf1 host2", "host1 leaf0 agg1 leaf1 host2")
    assert all_paths(fabric, 1, 6)[1] == by_hand(  # pod 1 has agg2 and agg3; core0 and core1 join the first of each pod
        "host1 leaf0 agg0 core0 agg2 leaf3 host6", "host1 leaf0 agg0 core1 agg2 leaf3 host6",
        "host1 leaf0 agg1 core2 agg3 leaf3 host6", "host1 leaf0 agg1 core3 agg3 leaf3 host6")


def test_every_host_in_one_plane() -> None:
    fabric = MultiPlane(planes=2, leaves=2, spines=2, hosts_per_leaf=2, ports="one")
    assert fabric.switch_of(np.arange(8)).tolist() == [0, 2, 0, 2, 1, 3, 1, 3]  # leaves 0, 1: plane 0; 2, 3: plane 1
    assert all_paths(fabric, 0, 2)[1] == by_hand("host0 plane0.leaf0 host2")
    assert all_paths(fabric, 7, 1)[1] == by_hand("host7 plane1.leaf1 plane1.spine0 plane1.leaf0 host1",
                                                 "host7 plane1.leaf1 plane1.spine1 plane1.leaf0 host1")
    assert all_paths(fabric, 0, 1)[1] == []
    assert fabric.path(np.array([0]), np.array([5]), np.array([0])).tolist() == [[-1, -1, -1, -1]]


def test_every_host_in_all_planes() -> None:
    fabric = MultiPlane(planes=2, leaves=2, spines=2, hosts_per_leaf=2, ports="all")
    assert all_paths(fabric, 0, 1)[1] == by_hand("host0 plane0.leaf0 host1", "host0 plane1.leaf0 host1")
    assert all_paths(fabric, 3, 0)[1] == by_hand(
        "host3 plane0.leaf1 plane0.spine0 plane0.leaf0 host0", "host3 plane0.leaf1 plane0.spine1 plane0.leaf0 host0",
        "host3 plane1.leaf1 plane1.spine0 plane1.leaf0 host0", "host3 plane1.leaf1 plane1.spine1 plane1.leaf0 host0")
    assert fabric.links()["name"].tolist()[:3] == ["host0->plane0.leaf0", "host0->plane1.leaf0", "host1->plane0.leaf0"]
    with pytest.raises(ValueError, match='a host is in every plane; only ports "one"'):
        fabric.plane_of(0)


def test_nvlink() -> None:
    fabric = NvLink(devices=3, switches=2, link="450 GB/s")
    assert all_paths(fabric, 2, 0)[1] == by_hand("host2 chip0 host0", "host2 chip1 host0")
    assert set(fabric.links()["capacity_bytes_per_s"]) == {225e9}


def test_capacities_by_class() -> None:
    def capacities(fabric: Any) -> dict[str, float]:
        by_class = fabric.links().groupby("class", sort=False)["capacity_bytes_per_s"]
        assert (by_class.nunique() == 1).all()
        return (by_class.first() / 1e9).to_dict()

    ports = {"nic_out": 50.0, "nic_in": 50.0}
    assert capacities(RailOptimised(2, 2, 2, 2, uplink="800 Gbit/s")) == ports | {"leaf_up": 100.0, "leaf_down": 100.0}
    assert capacities(FatTree(2, 2, 2, 2, 2, uplink="800 Gbit/s")) == ports | {
        "leaf_up": 100.0, "leaf_down": 100.0, "agg_up": 100.0, "agg_down": 100.0}
    assert capacities(FatTree(2, 2, 2, 2, 2, core_link="200 Gbit/s"))["agg_up"] == 25.0
    assert set(capacities(MultiPlane(4, 2, 2, 2, ports="one")).values()) == {50.0}
    assert set(capacities(MultiPlane(4, 2, 2, 2, ports="all")).values()) == {12.5}  # 400 Gbit/s in four ports


def test_fabrics_of_papers() -> None:
    # arXiv 2407.00550: k = 8, 16 devices and 4 uplinks of 1.6 Tbit/s per leaf; 4 paths in a pod, 16 between pods.
    fabric = FatTree(pods=8, leaves=4, hosts_per_leaf=16, aggs=4, cores_per_agg=4, uplink="1.6 Tbit/s", latency="1 us")
    assert (fabric.n_hosts, fabric.oversubscription, fabric.core_oversubscription) == (512, 1.0, 1.0)
    assert fabric.widths(np.array([0, 0]), np.array([16, 511])).prod(axis=1).tolist() == [4, 16]
    assert fabric.path_latency_s == pytest.approx(6e-6)
    names = fabric.links()["name"].str.extract(r"->(core\d+)")[0].dropna()
    assert names.nunique() == 16 and (names.value_counts() == 8).all()  # every core has one link to every pod
    # arXiv 2505.09343: 16,384 devices in eight planes of two tiers of 64-port switches, each device in one plane.
    planes = MultiPlane(planes=8, leaves=64, spines=32, hosts_per_leaf=32, ports="one")
    assert (planes.n_hosts, planes.oversubscription) == (16384, 1.0)
    assert (planes.plane_of(np.arange(16)) == np.arange(16) % 8).all() and planes.plane_of(16383) == 7
    # NVIDIA GB200 NVL72: 72 devices, 18 links of 50 GB/s per direction each, to 18 chips of 72 ports.
    rack = NvLink(devices=72, switches=18, link="900 GB/s")
    assert set(rack.links()["capacity_bytes_per_s"]) == {50e9} and len(rack.links()) == 2 * 72 * 18


def test_equal_positions_of_a_pod_use_no_spine() -> None:
    fabric = RailOptimised(pods=2, nodes_per_pod=4, rails=8, spines=4)
    src, dst = (a.ravel() for a in np.meshgrid(np.arange(32), np.arange(32)))
    rail = (src % 8 == dst % 8) & (src != dst)
    assert (fabric.path(src, dst, np.zeros_like(src))[rail, 1:3] == -1).all()
    assert (fabric.widths(src, dst)[src % 8 != dst % 8] == 4).all()


FEWER: dict[str, Any] = {
    "rail_optimised": RailOptimised(pods=1, nodes_per_pod=4, rails=2, spines=2),
    "fat_tree": FatTree(pods=1, leaves=2, hosts_per_leaf=4, aggs=2, cores_per_agg=1),
    "multi_plane": MultiPlane(planes=1, leaves=2, spines=2, hosts_per_leaf=4, ports="one")}
SLOWER: dict[str, Any] = {
    "rail_optimised": RailOptimised(pods=1, nodes_per_pod=4, rails=2, spines=4, uplink="200 Gbit/s"),
    "fat_tree": FatTree(pods=1, leaves=2, hosts_per_leaf=4, aggs=4, cores_per_agg=1, uplink="200 Gbit/s"),
    "multi_plane": MultiPlane(planes=1, leaves=2, spines=4, hosts_per_leaf=4, ports="one", uplink="200 Gbit/s")}


def busiest(capacity: np.ndarray, path: np.ndarray, share: float = 1.0) -> float:
    """Return the seconds that the busiest link needs for share x 50 GB on each *path* [paths, K]."""
    return float((np.bincount(path[path >= 0], minlength=len(capacity)) * share * 50e9 / capacity).max())


@pytest.mark.parametrize("name", FEWER)
def test_fewer_uplinks_are_not_slower_uplinks(name: str) -> None:
    """Four flows of one second at full speed, from the hosts of one leaf to those of another, oversubscribed 2 : 1.

    Spread evenly they take 2 s either way. With dice, four balls fall in two bins: the fuller has 2, 3 or 4 in 6, 8 or
    2 of 16 cases, 2.75 s on average. In four bins of half the speed: 1, 2, 3 or 4 in 24, 180, 48 or 4 of 256, 4.25 s.
    """
    for fabric, paths, mean in ((FEWER[name], 2, 2.75), (SLOWER[name], 4, 4.25)):
        assert fabric.oversubscription == 2.0
        capacity, leaf = fabric.links()["capacity_bytes_per_s"].to_numpy(), fabric.switch_of(np.arange(8))
        src, dst = np.flatnonzero(leaf == 0), np.flatnonzero(leaf == 1)
        flow, choice = every(np.full(4, paths))
        assert busiest(capacity, fabric.path(src[flow], dst[flow], choice), 1 / paths) == 2.0
        dice = [busiest(capacity, fabric.path(src, dst, np.array(c))) for c in product(range(paths), repeat=4)]
        assert np.mean(dice) == mean
        ends = Ends.of(fabric, src, dst)
        hashed = [busiest(capacity, fabric.path(src, dst, Ecmp().paths(ends, seed).path)) for seed in range(400)]
        assert np.mean(hashed) == pytest.approx(mean, abs=4 * float(np.std(dice)) / 20)


@given(FABRICS)
def test_every_path_leads_from_its_source_to_its_target(fabric: Any) -> None:
    src, dst = np.nonzero(~np.eye(fabric.n_hosts, dtype=bool))
    widths, links = fabric.widths(src, dst), fabric.links()
    assert widths.dtype == np.int64 and ((widths > 0).all(axis=1) | (widths == 0).all(axis=1)).all()
    flow, paths = all_paths(fabric, src, dst)
    classes = dict(zip(links["name"], links["class"], strict=True))
    for f, path in zip(flow, paths, strict=True):
        assert path[0].startswith(f"host{src[f]}->") and path[-1].endswith(f"->host{dst[f]}")
        assert (classes[path[0]], classes[path[-1]]) == ("nic_out", "nic_in")
        assert all(a.split("->")[1] == b.split("->")[0] for a, b in pairwise(path))
    assert len({(f, *path) for f, path in zip(flow, paths, strict=True)}) == len(paths) == widths.prod(axis=1).sum()
    if paths:
        assert max(len(path) for path in paths) * 1e-6 == pytest.approx(fabric.path_latency_s)
    rows = fabric.path(src, dst, np.zeros_like(src))
    assert rows.dtype == np.int64 and ((rows[:, [0, -1]] >= 0) == (widths[:, :1] > 0)).all()  # -1 only in between
    assert (rows[widths[:, 0] == 0] == -1).all()


@given(FABRICS)
def test_paths_are_the_shortest_ones_of_the_graph(fabric: Any) -> None:
    graph, rng = fabric.to_networkx(), np.random.default_rng(0)
    assert graph.number_of_edges() == len(fabric.links())
    for src, dst in rng.integers(0, fabric.n_hosts, (6, 2)):
        if src == dst:
            continue
        ends = f"host{src}", f"host{dst}"
        found = nx.all_shortest_paths(graph, *ends) if nx.has_path(graph, *ends) else []
        assert sorted(map(" ".join, found)) == sorted(
            " ".join([*(name.split("->")[0] for name in path), ends[1]]) for path in all_paths(fabric, src, dst)[1])


@given(FABRICS, st.integers(0, 100))
def test_splitting_loads_every_link_as_even_spreading_does(fabric: Any, seed: int) -> None:
    """What ``switch_of`` promises: dealing a source's flows to one switch (or host) in turn evens out all links."""
    src, dst = np.nonzero(~np.eye(fabric.n_hosts, dtype=bool))
    paths = fabric.widths(src, dst).prod(axis=1)
    src, dst, paths = src[paths > 0], dst[paths > 0], paths[paths > 0]

    def loads(flow: np.ndarray, choice: np.ndarray, share: np.ndarray) -> np.ndarray:
        links = fabric.path(src[flow], dst[flow], choice)
        share = np.broadcast_to(share[:, None], links.shape)
        return np.bincount(links[links >= 0], share[links >= 0], len(fabric.links()))

    flow, choice = every(paths)
    dealt = Split().paths(Ends.of(fabric, src, dst), seed)
    assert loads(*dealt) == pytest.approx(loads(flow, choice, 1 / paths[flow]))


@given(FABRICS)
def test_links_are_in_order(fabric: Any) -> None:
    links = fabric.links()
    assert list(links["link"]) == list(range(len(links))) and links["name"].is_unique
    out, back = (links[links["class"] == kind] for kind in ("nic_out", "nic_in"))
    ports = len(out) // fabric.n_hosts
    assert [*out["link"], *back["link"]] == list(range(2 * len(out)))
    assert [int(n.split("->")[0][4:]) for n in out["name"]] == sorted(list(range(fabric.n_hosts)) * ports)
    assert [f"{b}->{a}" for a, b in out["name"].str.split("->")] == back["name"].tolist()
    switches = fabric.switch_of(np.arange(fabric.n_hosts))
    if ports == 1 and not isinstance(fabric, Switch):  # one number per switch
        names = out["name"].str.split("->").str[1].to_numpy()
        assert ((switches[:, None] == switches) == (names[:, None] == names)).all()
    assert all(np.array_equal(fabric.switch_of(h), s) for h, s in enumerate(switches))


@pytest.mark.parametrize(("make", "fact"), [
    (lambda: FatTree(pods=0, leaves=1, hosts_per_leaf=1, aggs=1, cores_per_agg=1), "greater than 0"),
    (lambda: RailOptimised(1, 1, 1, spines=-1), "greater than or equal to 0"),
    (lambda: MultiPlane(2, 2, 2, 2, ports="some"), "'one' or 'all'"),  # type: ignore[arg-type]
    (lambda: NvLink(8, 4, link=450e9), "no unit")])
def test_wrong_parameters_are_refused(make: Any, fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        make()
