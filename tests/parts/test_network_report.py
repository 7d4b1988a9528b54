"""Jobs and their report: numbers worked on paper, bounds that SimGrid agrees with, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim import registry
from moesim.network import LeafSpine, Messages, Network, Switch, run_flows
from moesim.network.report import Exchange, FlowList, How, Reduce, busiest, compare, histogram, label
from moesim.network.topologies.degraded import Degraded

TINY = LeafSpine(leaves=2, spines=2, hosts_per_leaf=2, link="10 GB/s", latency="100 ns")
# The four flows of tests/by_hand/test_flows_by_hand.py: they end at 7.4, 4.4, 8.4 and 7.2 us.
FOUR = pd.DataFrame({"src": [0, 1, 1, 0], "dst": [2, 2, 3, 1], "bytes": [40e3, 20e3, 60e3, 10e3],
                     "start_s": [0, 0, 0, 5e-6], "spine": [0, 0, 1, -1], "tag": list("abcd")})
PAIRS = LeafSpine(leaves=4, spines=4, hosts_per_leaf=8)
EVEN = Exchange("flat", Messages(np.full((32, 32), 2.0**20)))


def test_four_flows_by_hand() -> None:
    found = compare(Network.on(TINY), FlowList(FOUR))
    row = found.table.iloc[0]
    assert list(found.table) == ["balancing", "time_s", "slowdown", "flow_mean_s", "flow_p99_s", "bound_s",
                                 "closed_form_s", "busiest", "over_mean", "extra_pieces"]
    assert (found.flows["finish_s"] * 1e6).round(9).tolist() == [7.4, 4.4, 8.4, 7.2]
    assert found.flows["tag"].tolist() == list("abcd")
    assert found.flows["bottleneck"].tolist() == ["host0->leaf0", "host1->leaf0", "host1->leaf0", "host0->leaf0"]
    micro = {k: round(float(row[k]) * 1e6, 9) for k in ("time_s", "flow_mean_s", "flow_p99_s", "bound_s")}
    # durations 7.4, 4.4, 8.4, 2.2; the 99th of 100 parts between the third and the fourth is 7.4 + 0.97 * 1.0
    assert micro == {"time_s": 8.4, "flow_mean_s": 5.6, "flow_p99_s": 8.37, "bound_s": 8.0}
    assert np.isnan(row["closed_form_s"]) and row["slowdown"] == 1 and row["extra_pieces"] == 0
    # ports out carry 50, 80, 0, 0 kB: 80 over the mean 32.5; 80 kB at 10 GB/s are the 8 us
    assert row["busiest"] == "host1->leaf0" and row["over_mean"] == pytest.approx(80 / 32.5)
    assert list(found.links) == ["class", "name", "capacity_bytes_per_s", "latency_s", "alive", "load_bytes", "busy_s",
                                 "over_mean", "balancing"]
    load = dict(zip(found.links["name"], found.links["load_bytes"] / 1e3, strict=True))
    assert {k: round(v, 9) for k, v in load.items()} == {
        "host0->leaf0": 50, "host1->leaf0": 80, "host2->leaf1": 0, "host3->leaf1": 0,
        "leaf0->host0": 0, "leaf0->host1": 10, "leaf1->host2": 60, "leaf1->host3": 60,
        "leaf0->spine0": 60, "leaf0->spine1": 60, "leaf1->spine0": 0, "leaf1->spine1": 0,
        "spine0->leaf0": 0, "spine1->leaf0": 0, "spine0->leaf1": 60, "spine1->leaf1": 60}


@pytest.mark.parametrize("balancing", ["ecmp", "split", "spray", "mprdma", "flowlet", "adaptive"])
def test_flows_are_those_of_run_flows(balancing: str) -> None:
    flows = FOUR.drop(columns="spine")
    found = compare(Network.on(TINY), FlowList(flows), [balancing], seeds=[3])
    alone = run_flows(TINY, flows, balancing, seed=3)
    assert found.flows["finish_s"].tolist() == pytest.approx(alone["finish_s"].tolist(), rel=1e-12)
    names = TINY.links()["name"]
    assert found.flows["bottleneck"].tolist() == [names[i] for i in alone["bottleneck"]]


def test_three_balancings_of_an_all_to_all() -> None:
    table = compare(Network.on(PAIRS), EVEN, ["ecmp", "split", "spray"], seeds=range(4)).table.set_index("balancing")
    # 8 devices send 24 others 1 MiB over 4 uplinks of 50 GB/s; SimGrid's last flow ends then, within 1e-6
    assert (table["time_s"] * 1e6).round(3).tolist()[1:] == [1006.633, 1006.633]
    for name in ("split", "spray"):
        row = table.loc[name]
        assert row["time_min_s"] == pytest.approx(row["time_max_s"]) == pytest.approx(row["bound_s"], rel=1e-9)
        assert row["time_s"] == pytest.approx(row["closed_form_s"], rel=1e-9)
        assert row["over_mean"] == pytest.approx(1) and row["slowdown"] == pytest.approx(1)
    ecmp = table.loc["ecmp"]
    assert ecmp["time_min_s"] < ecmp["time_s"] < ecmp["time_max_s"] and ecmp["slowdown"] > 1.15
    assert ecmp["time_s"] == pytest.approx(ecmp["closed_form_s"], rel=1e-9)
    assert (table["bound_s"] <= table["time_s"] * (1 + 1e-9)).all()


def test_extra_pieces_are_those_of_the_theorem() -> None:
    """A leaf of 3 hosts, 2 spines: f = 3 flows to each leaf, q = 1, r = 1: q s + lcm(r, s) = 4 pieces, one extra."""
    network = Network.on(LeafSpine(leaves=3, spines=2, hosts_per_leaf=3))
    table = compare(network, Exchange("flat", Messages(np.full((9, 9), 1e6))), ["split", "spray", "flowlet"]).table
    assert table["extra_pieces"].tolist() == [9 * 2, 0, 72 * 7]


def test_seeds_are_means_and_tables_are_of_the_first() -> None:
    network = Network.on(PAIRS)
    both = compare(network, EVEN, seeds=[5, 6])
    single = [compare(network, EVEN, seeds=[seed]) for seed in (5, 6)]
    for column in ("time_s", "flow_mean_s", "flow_p99_s", "bound_s", "closed_form_s", "over_mean"):
        assert both.table[column][0] == pytest.approx(np.mean([one.table[column][0] for one in single]), rel=1e-12)
    assert both.table["busiest"][0] == single[0].table["busiest"][0]
    pd.testing.assert_frame_equal(both.flows, single[0].flows)
    pd.testing.assert_frame_equal(both.links, single[0].links)


def test_all_reduces_and_their_halves_by_hand() -> None:
    network = Network.on(Switch(hosts=4, link="10 GB/s"))
    # 40 kB in quarters of 10 kB: a ring passes on 3 + 3 of them, 1 us each
    times = {op: compare(network, Reduce("ring", 4e4, operation=op)).table["time_s"][0] * 1e6
             for op in ("all_reduce", "reduce_scatter", "all_gather")}
    assert {k: round(v, 9) for k, v in times.items()} == {"all_reduce": 6, "reduce_scatter": 3, "all_gather": 3}
    pairs = compare(network, Reduce("ring", 4e4, width=2))  # halves of 20 kB, once each way
    assert round(pairs.table["time_s"][0] * 1e6, 9) == 4
    assert sorted(set(zip(pairs.flows["src"], pairs.flows["dst"], strict=True))) == [(0, 1), (1, 0), (2, 3), (3, 2)]


def test_the_way_home_is_the_transpose() -> None:
    sent = np.zeros((4, 4))
    sent[0, 1:] = 1e4
    network = Network.on(Switch(hosts=4, link="10 GB/s"))
    there, back = (compare(network, Exchange("flat", Messages(sent), reverse=home)) for home in (False, True))
    assert there.table["busiest"][0] == "host0->switch" and back.table["busiest"][0] == "switch->host0"
    assert there.table["time_s"][0] == pytest.approx(back.table["time_s"][0]) == pytest.approx(3e-6)


def test_faults_count_and_have_no_closed_form() -> None:
    flows = pd.DataFrame({"src": [0], "dst": [2], "bytes": [40e3], "start_s": [0.0], "spine": [0]})
    slow = pd.DataFrame({"time_s": [2e-6], "where": ["leaf0->spine0"], "factor": [0.5]})
    found = compare(Network.on(TINY), FlowList(flows), how=How(faults=slow))
    assert round(found.table["time_s"][0] * 1e6, 9) == 2 + 4 + 0.4  # 20 kB at 10 GB/s, 20 at 5; four links' latency
    broken = pd.DataFrame({"time_s": [1e-4], "where": ["spine0"], "factor": [0.0]})
    table = compare(Network.on(PAIRS), EVEN, ["spray"], how=How(0.0, broken, 5e-5)).table
    assert np.isnan(table["closed_form_s"][0]) and table["time_s"][0] > 1.2 * 1006.633e-6


def test_histogram_by_hand() -> None:
    links = pd.DataFrame({"class": ["a"] * 4 + ["b"] * 2 + ["c"], "load_bytes": [0.0, 10, 39, 40, 7, 7, 9],
                          "alive": [True] * 6 + [False]})
    assert histogram(links, 4).to_numpy().tolist() == [
        ["a", 0, 10, 1], ["a", 10, 20, 1], ["a", 20, 30, 0], ["a", 30, 40, 2], ["b", 7, 7, 2]]


def test_busiest_is_by_time_not_bytes() -> None:
    fabric = Degraded(fabric=TINY, factors={"leaf0->host1": 0.1})
    found = compare(Network.on(fabric), FlowList(FOUR))
    assert busiest(found.links, 2)[["name", "load_bytes"]].round(6).to_numpy().tolist() == [
        ["leaf0->host1", 10e3], ["host1->leaf0", 80e3]]  # 10 us at 1 GB/s; 8 us


def test_dead_links_are_not_in_the_mean() -> None:
    fabric = Degraded(fabric=PAIRS, factors={"spine0": 0})
    found = compare(Network.on(fabric), EVEN, ["spray"])
    assert found.table["over_mean"][0] == pytest.approx(1)  # 48 MiB on each of 12 uplinks that live
    assert histogram(found.links).set_index("class")["links"].to_dict() == {
        "nic_out": 32, "nic_in": 32, "leaf_up": 12, "leaf_down": 12}


def test_labels() -> None:
    made = [registry.make("balancing", value) for value in ("ecmp", {"name": "ecmp", "polarised": True},
                                                            {"name": "mprdma", "pieces": 8})]
    assert [label(part) for part in made] == ["ecmp", "ecmp polarised=True", "mprdma pieces=8"]


@pytest.mark.parametrize(("job", "options", "text"), [
    (FlowList(FOUR), {"balancings": []}, "nothing to compare; give at least one balancing and one seed"),
    (FlowList(FOUR), {"seeds": []}, "nothing to compare"),
    (FlowList(FOUR), {"balancings": ["ecmp", {"name": "ecmp"}]},
     "balancings ecmp, ecmp: one is given twice; leave it out"),
    (FlowList(FOUR), {"how": How(tolerance=1.0)}, "tolerance is 1.0; give a share"),
    (FlowList(FOUR.assign(act=1)), {}, "flows have a column 'act', which the result will have"),
    (FlowList(FOUR.assign(dst=4)), {}, r"flow 0 \(4 rows\): dst is 4; hosts are 0 to 3"),
    (FlowList(FOUR), {"how": How(faults=pd.DataFrame({"time_s": [1e-6], "where": "spine0", "factor": 0.0}))},
     "flow 0 never ends: a link on its path has no capacity"),
    (EVEN, {}, r"copies have the shape \(32, 32\); the network has 4 devices, give \[4, 4\]"),
    (Exchange("flat", Messages(np.eye(4))), {}, "nothing travels: no device has bytes for another"),
    (Exchange("node_limited", Messages(np.ones((4, 4)))), {}, "node_limited needs node_copies"),
    (Reduce("ring", 1e6, width=3), {}, "groups of 3 do not divide 4 devices evenly; take a divisor"),
    (Reduce("ring", 1e6, operation="reduce"), {}, "unknown operation 'reduce'; did you mean"),
    (Reduce("ring", 1e6), {"how": How(faults=pd.DataFrame({"time_s": [1e-6], "where": "spine0", "factor": 0.0}))},
     "rounds that repeat"),
])
def test_what_cannot_be(job: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        compare(Network.on(TINY), job, **options)


def test_flows_without_rows() -> None:
    with pytest.raises(ValueError, match="there are no flows; give at least one"):
        compare(Network.on(TINY), FlowList(FOUR.iloc[:0]))


def test_names_of_collectives_are_unique() -> None:
    """A collective's name alone says whether it is an all-to-all or an all-reduce."""
    assert not set(registry.names("all_to_all")) & set(registry.names("all_reduce"))
