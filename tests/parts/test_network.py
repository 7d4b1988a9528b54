"""Laws of collectives and contracts of topologies and balancing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from moesim import registry
from moesim.network import LeafSpine, Network, Packet, run_flows
from moesim.network.balancing.ecmp import splitmix64
from moesim.network.collective import Constants
from moesim.network.ends import Ends, every
from moesim.network.loops import link_loads
from moesim.network.topologies.degraded import Degraded
from moesim.network.topologies.fat_tree import FatTree
from moesim.network.topologies.multi_plane import MultiPlane
from moesim.network.topologies.nvlink import NvLink
from moesim.network.topologies.rail_optimised import RailOptimised
from moesim.network.topologies.switch import Switch

IDEAL = Constants(bandwidth=450e9, efficiency=1.0, startup=0.0, ramp=0.0)
REAL = Constants(bandwidth=450e9, efficiency=0.776, startup=7.8e-6, ramp=10e-6)
FABRICS = {"leaf_spine": LeafSpine(4, 4, 4, link="400 Gbit/s", latency="1 us"), "switch": Switch(16, link="400 Gbit/s")}
FABRICS["rail_optimised"] = RailOptimised(pods=2, nodes_per_pod=2, rails=4, spines=2, latency="1 us")
FABRICS["fat_tree"] = FatTree(pods=2, leaves=2, hosts_per_leaf=4, aggs=2, cores_per_agg=2, latency="1 us")
FABRICS["multi_plane"] = MultiPlane(planes=2, leaves=2, spines=2, hosts_per_leaf=4, ports="one", latency="1 us")
FABRICS["nvlink"] = NvLink(devices=8, switches=4, link="450 GB/s", latency="1 us")
FABRICS["degraded"] = Degraded(FABRICS["leaf_spine"], {"spine0": 0.5})


def network(fabric: object = FABRICS["leaf_spine"], balancing: object = "spray", per_node: int = 4, up: object = IDEAL,
            seed: int = 0) -> Network:
    return Network(fabric.n_hosts, per_node, up, fabric, up, balancing, seed)  # type: ignore[attr-defined, arg-type]


def traffic(seed: int = 0, n: int = 16, batch: tuple[int, ...] = ()) -> np.ndarray:
    return np.random.default_rng(seed).exponential(1e6, (*batch, n, n))


@pytest.mark.parametrize("name", registry.names("topology"))
def test_topology_contract(name: str) -> None:
    fabric = FABRICS[name]
    links = fabric.links()
    assert list(links.columns) == ["link", "class", "name", "capacity_bytes_per_s", "latency_s", "alive"]
    assert list(links["link"]) == list(range(len(links))) and links["name"].is_unique
    assert fabric.n_links == len(links)
    src, dst = np.nonzero(~np.eye(fabric.n_hosts, dtype=bool))
    widths = fabric.widths(src, dst)
    assert widths.shape[0] == len(src) and (widths >= 0).all()
    flow, choice = every(widths.prod(axis=1))
    paths = fabric.path(src[flow], dst[flow], choice)
    names = links["name"].to_numpy()
    for f, path in zip(flow[:: len(flow) // 200 + 1], paths[:: len(flow) // 200 + 1], strict=True):
        hops = [names[link].split("->") for link in path if link >= 0]
        assert hops[0][0].split("port")[0] in (f"host{src[f]}", f"device{src[f]}")
        assert hops[-1][1].split("port")[0] in (f"host{dst[f]}", f"device{dst[f]}")
        assert all(a[1] == b[0] for a, b in zip(hops[:-1], hops[1:], strict=True))
    assert len(np.unique(np.column_stack([flow, np.sort(paths, axis=1)]), axis=0)) == len(flow)  # all different
    latency = np.append(links["latency_s"].to_numpy(), 0.0)[paths].sum(axis=1)
    assert latency.max() == pytest.approx(fabric.path_latency_s)
    assert fabric.to_networkx().number_of_edges() == len(links)
    assert registry.make("topology", registry.dump(fabric)) == fabric


@pytest.mark.parametrize("name", registry.names("balancing"))
def test_balancing_contract(name: str) -> None:
    part, fabric = registry.make("balancing", name), FABRICS["leaf_spine"]
    assert part.sent in ("apart", "together", "in_turn") and isinstance(part.sees_load, bool)
    src, dst = (a.ravel() for a in np.meshgrid(np.arange(4), np.arange(4, 16)))
    ends = Ends.of(fabric, src, dst)
    shares = share_matrix(part, ends)
    assert np.allclose(shares.sum(axis=1), 1)
    assert np.array_equal(share_matrix(part, ends), shares)
    if not part.sees_load:
        order = np.random.default_rng(0).permutation(len(src))  # the order of pairs does not matter
        assert np.array_equal(share_matrix(part, Ends.of(fabric, src[order], dst[order])), shares[order])


@pytest.mark.parametrize("name", registry.names("balancing"))
def test_dead_paths_are_avoided(name: str) -> None:
    part = registry.make("balancing", name)
    fabric = Degraded(FABRICS["leaf_spine"], {"spine1": 0, "leaf0->spine2": 0})
    src, dst = np.nonzero(~np.eye(16, dtype=bool))
    ends = Ends.of(fabric, src, dst)
    far = src // 4 != dst // 4
    assert set(ends.n_paths[far & (src < 4)]) == {2} and set(ends.n_paths[far & (src >= 4)]) == {3}
    flow, path, share = part.paths(ends, 3)
    assert (share > 0).all() and not ends.dead(flow, path).any()
    assert np.allclose(np.bincount(flow, share), 1)


def share_matrix(part: object, ends: Ends) -> np.ndarray:
    """Return the share of each flow on each of four paths."""
    flow, path, share = part.paths(ends, 1)  # type: ignore[attr-defined]
    shares = np.zeros((len(ends), 4))
    np.add.at(shares, (flow, path), share)
    return shares


@pytest.mark.parametrize("balancing", registry.names("balancing"))
def test_bytes_are_conserved(balancing: str) -> None:
    bytes_, net = traffic(), network(balancing=balancing)
    np.fill_diagonal(bytes_, 0)
    by_class = net.links().assign(load=net.all_to_all(bytes_).loads).groupby("class")["load"].sum()
    inside = np.kron(np.eye(4), np.ones((4, 4)))
    near, far = (bytes_ * inside).sum(), (bytes_ * (1 - inside)).sum()
    for kind in ("scale_up_out", "scale_up_in"):
        assert by_class[kind] == pytest.approx(near)
    for kind in ("nic_out", "nic_in", "leaf_up", "leaf_down"):  # nodes are leaves here: all of it crosses a spine
        assert by_class[kind] == pytest.approx(far)


@given(st.integers(0, 10_000), st.sampled_from([0.5, 2.0, 8.0]))
@settings(max_examples=20, deadline=None)
def test_time_scales_with_bytes_and_bandwidth(seed: int, factor: float) -> None:
    bytes_ = traffic(seed)
    slow = network().all_to_all(bytes_).time_s
    faster = Constants(bandwidth=450e9 * factor, efficiency=1.0, startup=0.0, ramp=0.0)
    fabric = LeafSpine(4, 4, 4, link=f"{400 * factor} Gbit/s", latency=f"{1 / factor} us")
    assert Network(16, 4, faster, fabric, faster).all_to_all(bytes_).time_s == pytest.approx(slow / factor)
    assert network().all_to_all(bytes_ * factor).time_s - 4e-6 == pytest.approx((slow - 4e-6) * factor)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_devices_of_a_node_are_alike(seed: int) -> None:
    bytes_ = traffic(seed)
    order = np.concatenate([4 * node + np.random.default_rng(seed + node).permutation(4) for node in range(4)])
    mixed = bytes_[np.ix_(order, order)]
    net = network(up=REAL)
    assert net.all_to_all(mixed).time_s == pytest.approx(net.all_to_all(bytes_).time_s, rel=1e-12)
    ports = slice(32, 48)
    assert np.allclose(net.all_to_all(mixed).loads[ports], net.all_to_all(bytes_).loads[ports][order])


def test_more_bytes_never_take_less() -> None:
    bytes_, net = traffic(), network(up=REAL)
    base = net.all_to_all(bytes_).time_s
    extra = np.repeat(bytes_[None], 256, axis=0)
    extra.reshape(256, 256)[np.arange(256), np.arange(256)] += 5e6
    assert (net.all_to_all(extra).time_s >= base).all()


def test_loop_equals_sparse_product() -> None:
    rng = np.random.default_rng(0)
    shares = sparse.random_array((30, 64), density=0.2, rng=rng, format="csr")
    for rows in (1, 4, 7):
        bytes_ = rng.random((rows, 64))
        loads = np.empty((rows, 30))
        link_loads(bytes_, shares.indptr, shares.indices, shares.data, loads)
        assert np.allclose(loads, (shares @ bytes_.T).T, rtol=1e-13)


def test_batches_are_evaluated_one_by_one() -> None:
    bytes_, net = traffic(batch=(3, 2)), network(up=REAL)
    together = net.all_to_all(bytes_)
    assert together.time_s.shape == (3, 2) and together.loads.shape == (3, 2, len(net.links()))
    alone = net.all_to_all(bytes_[1, 1])
    assert together.time_s[1, 1] == alone.time_s and np.allclose(together.loads[1, 1], alone.loads, rtol=1e-14)
    back = net.all_to_all(np.swapaxes(bytes_, -1, -2))  # combine: what went out comes home
    assert np.allclose(back.loads[..., 32:48], together.loads[..., 48:64])
    home = net.all_to_all(bytes_, reverse=True)
    assert (home.time_s == back.time_s).all() and (home.loads == back.loads).all()
    whole = np.floor(bytes_ / 1e3)
    assert np.allclose(net.all_to_all(whole.astype(np.int32), 1e3).loads, net.all_to_all(whole * 1e3).loads, rtol=1e-14)


def test_spray_is_even_and_bounds_ecmp() -> None:
    uniform = np.full((16, 16), 1e6)
    spray, up = network(), slice(64, 80)
    assert np.allclose(spray.all_to_all(uniform).loads[up], 4 * 12 * 1e6 / 4)
    ecmp = [network(balancing="ecmp", seed=s).all_to_all(uniform) for s in range(20)]
    assert all(c.time_s >= spray.all_to_all(uniform).time_s for c in ecmp)


def test_ecmp_collides_as_balls_in_bins() -> None:
    """Four leaves throw 4 * 12 = 48 pairs each at 4 spines: the fullest of 16 uplinks is as full as with dice."""
    uniform, up = np.full((16, 16), 1.0), slice(64, 80)
    most = [network(balancing="ecmp", seed=s).all_to_all(uniform).loads[up].max() for s in range(200)]
    dice = np.random.default_rng(0).multinomial(48, [0.25] * 4, size=(20_000, 4)).max(axis=(1, 2))
    assert np.mean(most) == pytest.approx(dice.mean(), abs=4 * dice.std() / np.sqrt(200))
    assert np.std(most) == pytest.approx(dice.std(), rel=0.25)


def test_ecmp_repeats_across_processes() -> None:
    code = ("import numpy as np; from moesim.network.balancing.ecmp import splitmix64;"
            "print(splitmix64(np.arange(3)).tolist())")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(splitmix64(np.arange(3)).tolist())
    assert int(splitmix64(0)) == 0xE220A8397B1DCDAF  # first output of the reference generator with seed 0


def test_oversubscription_slows_the_fabric() -> None:
    uniform = np.full((16, 16), 1e6)
    times = []
    for fabric in (LeafSpine(4, 4, 4), LeafSpine(4, 2, 4), LeafSpine(4, 4, 4, uplink="200 Gbit/s")):
        times.append(Network(16, 1, IDEAL, fabric, IDEAL).all_to_all(uniform).time_s)
    full, fewer, slower = times
    assert full == pytest.approx(15e6 / 50e9)                       # the ports bind: 15 peers
    assert fewer == slower == pytest.approx(4 * 12e6 / 2 / 50e9)    # the uplinks bind: half the capacity


def test_all_reduce_beats_no_lower_bound() -> None:
    net = network()
    for width in (2, 4, 8, 16):
        cost = net.all_reduce(np.full(16 // width, 1e8), width)
        assert cost.time_s.shape == (16 // width,) and cost.loads.shape == (16 // width, len(net.links()))
        assert (cost.time_s >= 2 * (width - 1) / width * 1e8 / 450e9 * (1 - 1e-12)).all()
    both = net.reduce_scatter(np.array([1e8]), 16).time_s + net.all_gather(np.full(16, 1e8 / 16)).time_s
    assert both == pytest.approx(net.all_reduce(np.array([1e8]), 16).time_s)


@pytest.mark.parametrize(("make", "fact", "remedy"), [
    (lambda: Network(10, 4, IDEAL), "10 devices do not fill nodes of 4", "multiple"),
    (lambda: Network(8, 4, IDEAL), "2 nodes need a fabric", "give both"),
    (lambda: Network(32, 4, IDEAL, FABRICS["switch"], IDEAL), "16 hosts for 32 devices", "larger fabric"),
    (lambda: network().all_to_all(np.zeros((4, 4))), "shape (4, 4)", "16 devices"),
    (lambda: network().all_to_all(np.full((16, 16), -1.0)), "negative", ">= 0"),
    (lambda: network().all_to_all(np.full((16, 16), np.nan)), "undefined", ">= 0"),
    (lambda: network().all_reduce(np.ones(16), 3), "groups of 3 do not fit", "divisor"),
    (lambda: network().all_reduce(np.ones(3), 4), "shape (3,)", "4 groups"),
    (lambda: LeafSpine(leaves=0, spines=1, hosts_per_leaf=1), "leaves", "greater than 0"),
    (lambda: LeafSpine(1, 1, 1, link=5e10), "no unit", "4.8 TB/s"),
    (lambda: network(balancing="ecpm").all_to_all(traffic()), "unknown balancing 'ecpm'", "ecmp"),
])
def test_wrong_input_says_what_to_do(make: object, fact: str, remedy: str) -> None:
    with pytest.raises(ValueError) as error:
        make()  # type: ignore[operator]
    assert fact in str(error.value) and remedy in str(error.value)


def test_headers_take_their_share_of_the_wire() -> None:
    bare, packed = Constants(bandwidth=450e9), Constants(bandwidth=450e9, packet=Packet(4096, 64))
    fabric = FABRICS["switch"]
    slow, fast = (Network(16, 4, c, fabric, c).all_to_all(traffic()).time_s for c in (packed, bare))
    assert slow == pytest.approx(fast * 4160 / 4096)
    flows = pd.DataFrame({"src": [0, 1], "dst": [2, 3], "bytes": [8192.0, 100.0], "start_s": 0.0})
    done = run_flows(fabric, flows, packet=Packet(4096, 64))["finish_s"]
    assert done.to_numpy() * 50e9 == pytest.approx([8320.0, 164.0])


def test_closed_form_with_a_dead_spine() -> None:
    fabric = Degraded(LeafSpine(4, 4, 4, link="400 Gbit/s"), {"spine0": 0})
    bytes_ = np.full((16, 16), 1e6)
    for balancing in ("spray", "split"):
        dead = Network.on(fabric, balancing).all_to_all(bytes_).time_s
        three = Network.on(LeafSpine(4, 3, 4, link="400 Gbit/s"), balancing).all_to_all(bytes_).time_s
        assert dead == pytest.approx(three)
        reduced = [Network.on(f, balancing).all_reduce(np.array([1e8]), 16).time_s
                   for f in (fabric, LeafSpine(4, 3, 4, link="400 Gbit/s"))]
        assert reduced[0] == pytest.approx(reduced[1])
