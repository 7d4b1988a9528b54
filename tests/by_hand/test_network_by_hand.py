"""Two nodes of two devices on a leaf-spine fabric of two leaves and two spines, every load and time worked on paper.

Scale-up 100 GB/s at efficiency 0.5 -> 50 GB/s, startup 1 us, ramp 0.5 us. Fabric links 10 GB/s at 0.8 -> 8 GB/s,
startup 3 us, ramp 0.5 us, 0.1 us per link: 0.4 us for the longest path. Bytes below in thousands.
"""

from __future__ import annotations

import numpy as np
import pytest

from moesim.network import LeafSpine, Network
from moesim.network.collective import Constants
from moesim.network.ends import Choice, Ends

SCALE_UP = Constants(bandwidth=100e9, efficiency=0.5, startup=1e-6, ramp=0.5e-6)
SCALE_OUT = Constants(efficiency=0.8, startup=3e-6, ramp=0.5e-6)
LINKS = ["up 0", "up 1", "up 2", "up 3", "down 0", "down 1", "down 2", "down 3",            # device <-> scale-up switch
         "out 0", "out 1", "out 2", "out 3", "in 0", "in 1", "in 2", "in 3",                # device <-> leaf
         "0-s0", "0-s1", "1-s0", "1-s1", "s0-0", "s1-0", "s0-1", "s1-1"]                    # leaf <-> spine


def network(balancing: object = "spray") -> Network:
    fabric = LeafSpine(leaves=2, spines=2, hosts_per_leaf=2, link="10 GB/s", latency="100 ns")
    return Network(n_devices=4, devices_per_node=2, scale_up=SCALE_UP, fabric=fabric, scale_out=SCALE_OUT,
                   balancing=balancing)


TRAFFIC = 1e3 * np.array([[9, 4, 2, 6],
                          [8, 9, 0, 10],
                          [0, 12, 9, 14],
                          [2, 0, 16, 9]])


def kilobytes(loads: np.ndarray) -> list[float]:
    return [round(float(v) / 1e3, 9) for v in loads]


def test_links() -> None:
    links = network().links()
    assert list(links["class"]) == (["scale_up_out"] * 4 + ["scale_up_in"] * 4 + ["nic_out"] * 4 + ["nic_in"] * 4
                                    + ["leaf_up"] * 4 + ["leaf_down"] * 4)
    assert list(links["link"]) == list(range(len(LINKS)))
    assert list(links["capacity_bytes_per_s"]) == [100e9] * 8 + [10e9] * 16
    assert list(links["name"][[0, 4, 8, 12, 17, 21]]) == [
        "device0->switch0", "switch0->device0", "host0->leaf0", "leaf0->host0", "leaf0->spine1", "spine1->leaf0"]


def test_all_to_all() -> None:
    cost = network().all_to_all(TRAFFIC)
    assert dict(zip(LINKS, kilobytes(cost.loads), strict=True)) == {
        "up 0": 4, "up 1": 8, "up 2": 14, "up 3": 16,         # to the neighbour in the node
        "down 0": 8, "down 1": 4, "down 2": 16, "down 3": 14,
        "out 0": 2 + 6, "out 1": 0 + 10, "out 2": 0 + 12, "out 3": 2 + 0,
        "in 0": 0 + 2, "in 1": 12 + 0, "in 2": 2 + 0, "in 3": 6 + 10,
        "0-s0": 9, "0-s1": 9,                                 # leaf 0 sends 8 + 10 = 18, half over each spine
        "1-s0": 7, "1-s1": 7,                                 # leaf 1 sends 12 + 2 = 14
        "s0-0": 7, "s1-0": 7, "s0-1": 9, "s1-1": 9}
    # scale-up: x = 16 kB / 50 GB/s = 0.32 us; 1 + 0.32 + sqrt(0.5 * 0.32) = 1.72 us. Fabric: x = 16 kB / 8 GB/s = 2 us;
    # 3 + 0.4 + 2 + sqrt(0.5 * 2) = 6.4 us. The slower counts.
    assert cost.time_s == pytest.approx(6.4e-6)
    near = TRAFFIC * np.kron(np.eye(2), np.ones((2, 2)))
    assert network().all_to_all(near).time_s == pytest.approx(1.72e-6)


class Pinned:
    """Spine 1 for what host 0 sends, spine 0 for the others."""

    deals = False

    def paths(self, ends: Ends, seed: int) -> Choice:
        one = (ends.src == 0) & (ends.n_paths == 2)
        return Choice(np.arange(len(ends)), one.astype(int), np.ones(len(ends)))


def test_one_spine_per_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.registry.make", lambda kind, value: value)
    cost = network(Pinned()).all_to_all(TRAFFIC)
    assert kilobytes(cost.loads[16:]) == [10, 8, 14, 0, 14, 0, 10, 8]
    assert cost.time_s == pytest.approx(6.4e-6)  # in 3 is still the busiest: 16 kB


def test_all_reduce_inside_nodes() -> None:
    cost = network().all_reduce(np.array([100e3, 50e3]), 2)
    # A ring of two: 2 * (1 / 2) of the bytes on every link. x = 2 us: 1 + 2 + sqrt(1) = 4; x = 1 us: 1 + 1 + sqrt(0.5).
    assert cost.time_s == pytest.approx([4e-6, 2.70710678e-6])
    assert kilobytes(cost.loads[0]) == [100, 100, 0, 0, 100, 100, 0, 0] + [0] * 16
    assert kilobytes(cost.loads[1]) == [0, 0, 50, 50, 0, 0, 50, 50] + [0] * 16


def test_all_reduce_across_nodes() -> None:
    cost = network().all_reduce(np.array([160e3]), 4)
    # Reduce-scatter in the node: (1 / 2) 160 = 80 kB, x = 1.6 us: 1 + 1.6 + sqrt(0.8) = 3.49442719 us; all-gather too.
    # Between nodes: each device's half, 2 * (1 / 2) * 80 = 80 kB on its port, and on each of two spines: x = 10 us:
    # two rounds: 3 + 2 * 0.4 + 10 + sqrt(5) = 16.03606798 us.
    assert cost.time_s == pytest.approx([2 * 3.49442719e-6 + 16.03606798e-6])
    assert kilobytes(cost.loads[0]) == [160] * 8 + [80] * 16
    half = network().reduce_scatter(np.array([160e3]), 4)  # x = 5 us: 3.4 + 5 + sqrt(2.5) = 9.98113883
    assert half.time_s == pytest.approx([3.49442719e-6 + 9.98113883e-6])
    assert kilobytes(half.loads[0]) == [80] * 8 + [40] * 16


def test_all_gather() -> None:
    cost = network().all_gather(1e3 * np.array([1, 2, 3, 4]))
    # Between nodes everyone sends its own: ports 1, 2, 3, 4. Devices 0 and 2 then hold 1 + 3 = 4, devices 1 and 3 hold
    # 6, and pass that on in the node. Leaf 0 sends 3 in all, leaf 1 sends 7, half over each spine.
    assert kilobytes(cost.loads) == [4, 6, 4, 6, 6, 4, 6, 4, 1, 2, 3, 4, 3, 4, 1, 2,
                                     1.5, 1.5, 3.5, 3.5, 3.5, 3.5, 1.5, 1.5]
    # x = 4 kB / 8 GB/s = 0.5 us: 3.4 + 0.5 + 0.5 = 4.4. x = 6 kB / 50 GB/s = 0.12 us: 1.12 + sqrt(0.06) = 1.36494897.
    assert cost.time_s == pytest.approx(4.4e-6 + 1.36494897e-6)


def test_nothing_to_send_takes_no_time() -> None:
    net = network()
    assert net.all_to_all(np.diag([1e9] * 4)).time_s == 0
    assert net.all_reduce(np.zeros(2), 2).time_s.tolist() == [0, 0]
    assert net.all_reduce(np.full(4, 1e9), 1).time_s.tolist() == [0] * 4
    assert net.all_gather(np.zeros(4)).time_s == 0
