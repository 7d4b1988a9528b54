"""The drawing of a fabric: where things stand, which half of a line is whose, what the title says. No pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from moesim import plots
from moesim.network.topologies.fat_tree import FatTree
from moesim.network.topologies.leaf_spine import LeafSpine
from moesim.network.topologies.multi_plane import MultiPlane
from moesim.network.topologies.nvlink import NvLink
from moesim.network.topologies.rail_optimised import RailOptimised
from moesim.network.topologies.switch import Switch
from moesim.plots._fabric import place
from moesim.plots.fabric import MOST_HOSTS

TINY = LeafSpine(leaves=2, spines=1, hosts_per_leaf=1, link="10 GB/s")
# host0->leaf0, host1->leaf1, leaf0->host0, leaf1->host1, leaf0->spine0, leaf1->spine0, spine0->leaf0, spine0->leaf1
LOADS = TINY.links().assign(load_bytes=[2e6, 1e6, 1e6, 2e6, 3e6, 1e6, 1e6, 2e6])
SOME: dict[str, Any] = {
    "leaf_spine": LeafSpine(2, 3, 2), "switch": Switch(4), "rail_optimised": RailOptimised(2, 2, 2, 2),
    "rails_alone": RailOptimised(1, 3, 2, 0), "fat_tree": FatTree(2, 2, 2, 2, 2), "nvlink": NvLink(3, 2, "450 GB/s"),
    "one": MultiPlane(2, 2, 2, 2, ports="one"), "all": MultiPlane(2, 2, 2, 2, ports="all")}


def title(ax: Any) -> str:
    return ax.get_title("left").replace("\n", " ")


def lines(ax: Any) -> tuple[LineCollection, LineCollection]:
    """Return the lines of living links, and those of dead ones."""
    alive, dead = (c for c in ax.collections if isinstance(c, LineCollection))
    return alive, dead


def drawn(fabric: Any, load: Any = 1e6, **columns: Any) -> Any:
    return plots.fabric(fabric.links().assign(load_bytes=load, **columns))


def placed(fabric: Any) -> pd.DataFrame:
    links = fabric.links()
    ends = links["name"].str.extract(r"(?P<a>.+)->(?P<b>.+)").assign(port=links["class"] == "nic_out")
    return place(ends)


def test_the_half_beside_a_sender_has_its_colour() -> None:
    ax = plots.fabric(LOADS)
    alive, dead = lines(ax)
    segments, values = np.array(alive.get_segments()), np.asarray(alive.get_array())
    assert values.tolist() == sorted(values) and len(dead.get_segments()) == 0  # the busiest is drawn last, on top
    found = {tuple(np.round(s.ravel(), 3)): round(float(v)) for s, v in zip(segments, values, strict=True)}
    # hosts at y 0, leaves at 0.5, the spine at 1.5 in the middle; 1 MB at 10 GB/s are 100 us
    assert found == {(0.25, 0, 0.25, 0.25): 200, (0.75, 0, 0.75, 0.25): 100,                 # from the hosts
                     (0.25, 0.5, 0.25, 0.25): 100, (0.75, 0.5, 0.75, 0.25): 200,             # to the hosts
                     (0.25, 0.5, 0.375, 1.0): 300, (0.75, 0.5, 0.625, 1.0): 100,             # up
                     (0.5, 1.5, 0.375, 1.0): 100, (0.5, 1.5, 0.625, 1.0): 200}               # down
    assert [t.get_text() for t in ax.get_yticklabels()] == ["2 hosts", "2 leaves", "1 spine"]
    assert [t.get_text() for t in ax.texts] == ["0", "1", "0"]
    assert title(ax) == "Leaf0 to spine0 is busiest: 300 µs, 1.50x the mean leaf up link"
    bar = ax.child_axes[0]
    assert bar.get_ylabel() == "time to carry its bytes (µs)" and bar.get_ylim() == pytest.approx((100, 300))
    assert ax.get_xlabel() == "each end of a line has the colour of what leaves there"


def test_a_slower_link_is_busier() -> None:
    slow = LeafSpine(leaves=2, spines=1, hosts_per_leaf=1, link="10 GB/s", uplink="5 GB/s")
    assert title(drawn(slow)) == "Every leaf up or leaf down link is equally busy: 200 µs"


def test_utilisation() -> None:
    use = LOADS.drop(columns=["load_bytes", "capacity_bytes_per_s", "alive"])
    ax = plots.fabric(use.assign(utilisation=[0.5, 0.5, 0.5, 0.9, 0.4, 0.2, 0.3, 0.3]))
    assert ax.child_axes[0].get_ylabel() == "utilisation (%)"
    assert title(ax) == ("Leaf1 to host1 is busiest: 90%, 1.29x the mean nic in link; "
                         "between switches leaf0 to spine0 is busiest: 40%, 1.33x the mean leaf up link")


def test_dead_links_are_dashed_and_not_in_the_mean() -> None:
    fabric = LeafSpine(leaves=2, spines=3, hosts_per_leaf=1, link="10 GB/s")
    table = fabric.links().assign(load_bytes=1e6)
    up = table["class"] == "leaf_up"
    table.loc[table["name"].isin(["leaf0->spine2", "spine2->leaf0"]), ["alive", "capacity_bytes_per_s"]] = [False, 0.0]
    table.loc[up, "load_bytes"] = [4e6, 2e6, 0, 2e6, 1e6, 1e6]
    ax = plots.fabric(table)
    alive, dead = lines(ax)
    assert (len(alive.get_segments()), len(dead.get_segments())) == (len(table) - 2, 2)
    assert dead.get_linestyle()[0][1] is not None and alive.get_linestyle()[0][1] is None
    assert title(ax).endswith("400 µs, 2.00x the mean leaf up link")  # 10 MB over five living links
    assert ax.get_xlabel().endswith("dashed: dead")


def test_many_hosts_are_drawn_as_one_with_their_busiest_port() -> None:
    fabric = LeafSpine(leaves=2, spines=1, hosts_per_leaf=MOST_HOSTS // 2 + 1, link="10 GB/s")
    load = np.ones(len(fabric.links())) * 1e6
    load[3] = 5e6  # host3->leaf0
    ax = drawn(fabric, load)
    alive, _ = lines(ax)
    assert len(alive.get_segments()) == 8 and np.asarray(alive.get_array()) == pytest.approx([100] * 7 + [500])
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"{fabric.n_hosts} hosts\nin 2 groups", "2 leaves",
                                                           "1 spine"]
    assert title(ax).startswith("Host3 to leaf0 is busiest: 500 µs, 4.") and "of a group the busiest" in ax.get_xlabel()


def test_places_by_hand() -> None:
    tree = placed(FatTree(pods=2, leaves=2, hosts_per_leaf=1, aggs=1, cores_per_agg=3))
    quarters = [0.13125, 0.36875, 0.63125, 0.86875]
    # each pod has half of the width, a twentieth of which stays free: 0.0125 + 0.475 * (1/4 and 3/4)
    assert tree.loc[["leaf0", "leaf1", "leaf2", "leaf3"], "x"].tolist() == pytest.approx(quarters)
    assert tree.loc[["host0", "host1", "host2", "host3"], "x"].tolist() == pytest.approx(quarters)
    assert tree.loc[["agg0", "agg1"], "x"].tolist() == pytest.approx([0.25, 0.75])
    assert tree.loc[["core0", "core1", "core2"], "x"].tolist() == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    assert tree.groupby("tier")["y"].first().tolist() == [0.0, 0.5, 1.5, 2.5]
    pair = placed(LeafSpine(leaves=2, spines=2, hosts_per_leaf=2))  # one block: no gap; hosts use nine tenths of a half
    assert pair.loc[["host0", "host1", "host2"], "x"].tolist() == pytest.approx([0.1375, 0.3625, 0.6375])
    rail = placed(RailOptimised(pods=1, nodes_per_pod=2, rails=2, spines=1))
    order = rail[rail["tier"] == 0].sort_values("x").index
    assert order.tolist() == ["host0", "host2", "host1", "host3"]  # below their leaves
    both = placed(MultiPlane(planes=2, leaves=2, spines=1, hosts_per_leaf=2, ports="all"))
    assert both[both["tier"] == 0].sort_values("x").index.tolist() == ["host0", "host1", "host2", "host3"]
    assert both.loc["plane0.leaf1", "x"] < 0.5 < both.loc["plane1.leaf0", "x"] and both["y"].max() == 2.0


@pytest.mark.parametrize("name", SOME)
def test_every_topology_can_be_drawn(name: str) -> None:
    ax, fabric = drawn(SOME[name], load=np.arange(len(SOME[name].links())) * 1e5), SOME[name]
    alive, _ = lines(ax)
    nodes = placed(fabric)
    assert len(alive.get_segments()) == len(fabric.links()) and nodes[["x", "y"]].duplicated().sum() == 0
    assert nodes["x"].between(0, 1).all() and len(ax.get_yticks()) == nodes["tier"].nunique()
    words = [t.get_text() for t in ax.texts]
    assert ("plane 0" in words and "plane 1" in words) == (name in ("one", "all"))


def test_nothing_to_carry() -> None:
    assert title(drawn(TINY, load=0.0)) == "No link carries anything"


def test_conventions_of_plots(tmp_path: Path) -> None:
    table = LOADS.copy()
    _, axes = plots.figure()
    assert plots.draw("fabric", table, ax=axes[0, 0], title="here: {answer}") is axes[0, 0]
    assert title(axes[0, 0]).startswith("here: leaf0 to spine0")
    pd.testing.assert_frame_equal(table, LOADS)
    files = [plots.save(plots.fabric(table).figure, tmp_path / f"{i}.png") for i in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    shuffled = table.sample(frac=1, random_state=0)
    assert title(plots.fabric(shuffled)) == title(plots.fabric(table))


@pytest.mark.parametrize(("table", "fact"), [
    (LOADS.drop(columns="load_bytes"), "has no column load_bytes"),
    (LOADS.drop(columns="capacity_bytes_per_s"), "has no column capacity_bytes_per_s"),
    (LOADS.iloc[:0], "has no rows"),
    (LOADS.assign(name="host0"), "called 'host0'; give its name as \"from->to\""),
    (LOADS[LOADS["class"] == "leaf_up"], "give all links of one topology"),
    (LOADS.replace({"class": {"nic_in": "scale_up_out"}}), "neither or both")])
def test_wrong_tables_say_what_to_do(table: pd.DataFrame, fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        plots.fabric(table)
