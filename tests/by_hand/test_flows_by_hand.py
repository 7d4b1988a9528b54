"""Flows on small fabrics, every rate and every end worked on paper. Times in microseconds, bytes in thousands."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from moesim.network import LeafSpine, Switch, run_flows

FABRIC = LeafSpine(leaves=2, spines=2, hosts_per_leaf=2, link="10 GB/s", latency="100 ns")


def table(rows: list[tuple[Any, ...]], *columns: str) -> pd.DataFrame:
    """Return flows from (src, dst, kilobytes, start in us, ...)."""
    flows = pd.DataFrame(rows, columns=["src", "dst", "bytes", "start_s", *columns])
    return flows.assign(bytes=flows["bytes"] * 1e3, start_s=flows["start_s"] * 1e-6)


def ends(fabric: Any, flows: pd.DataFrame, **options: Any) -> list[float]:
    return [round(float(end) * 1e6, 9) for end in run_flows(fabric, flows, **options)["finish_s"]]


def test_four_flows_that_start_and_end_in_turn() -> None:
    flows = table([(0, 2, 40, 0, 0), (1, 2, 20, 0, 0), (1, 3, 60, 0, 1), (0, 1, 10, 5, -1)], "spine")
    # 0 to 4: the first two share leaf0->spine0 (and host 2's port), the middle two host 1's port: 5 GB/s each.
    # 4: the second is done (20). The first has 20 left, the third 40: each alone, 10 GB/s.
    # 5 to 7: the fourth shares host 0's port with the first, which has 10 left: 5 GB/s each, both done at 7.
    # 8: the third is done. Latency: four links, 0.4; the fourth two, 0.2.
    assert ends(FABRIC, flows) == [7.4, 4.4, 8.4, 7.2]
    result = run_flows(FABRIC, flows)
    assert list(result.columns) == ["src", "dst", "bytes", "start_s", "spine", "finish_s", "bottleneck"]
    assert result["bottleneck"].tolist()[0] == 0 and result["bottleneck"].tolist()[3] == 0  # host0->leaf0 at the end


def test_weights_and_limits() -> None:
    flows = table([(0, 1, 6, 0, 1.0, 1e12), (0, 2, 24, 0, 2.0, 1e12), (0, 3, 10, 0, 1.0, 1e9)],
                  "weight", "limit_bytes_per_s")
    # The third is held at 1 GB/s; the others share 9: 3 and 6. At 2 the first is done (6), the second has 12 left and
    # all of the 9 GB/s: 4 / 3 more. The third takes 10.
    switch = Switch(hosts=4, link="10 GB/s")
    assert ends(switch, flows) == [2.0, 3.333333333, 10.0]
    assert run_flows(switch, flows)["bottleneck"].tolist() == [0, 0, -1]


def test_a_sprayed_flow_is_one_flow() -> None:
    slow = LeafSpine(leaves=2, spines=2, hosts_per_leaf=2, link="10 GB/s", uplink="4 GB/s")
    flows = table([(0, 2, 40, 0), (1, 3, 40, 0), (0, 1, 24, 0)])
    # Leaf 0 sends 8 GB/s up: 4 per sprayed flow (2 on each spine). Host 0's port has 10: its near flow gets 6, done at
    # 4. The sprayed ones gain nothing: 40 / 4 = 10.
    assert ends(slow, flows, balancing="spray") == [10.0, 10.0, 4.0]


def test_pieces_share_the_port_of_their_flow() -> None:
    flows = table([(0, 2, 40, 0), (0, 1, 40, 0)])
    # One far flow, two spines: two halves of 20, each with half the flow's weight. Host 0's port: 5 GB/s for the pair
    # of halves, 5 for the near flow; with a weight of one each, the halves would get 6.67 and be done at 6.
    assert ends(FABRIC, flows, balancing="split") == [8.4, 8.2]


def test_splitting_three_flows_over_two_spines() -> None:
    fabric = LeafSpine(leaves=2, spines=2, hosts_per_leaf=3, link="10 GB/s")
    flows = table([(0, 3, 30, 0), (0, 4, 30, 0), (0, 5, 30, 0)])
    # Port of host 0: 10 / 3 GB/s each, whole or in halves; nothing else binds.
    assert ends(fabric, flows, balancing="split") == [9.0, 9.0, 9.0]
    late = flows.assign(start_s=[0.0, 0.0, 1e-6])
    # The third starts by itself: its own group of one, in halves. 0 to 1: 5 each, 25 left. Then 10 / 3 each: 7.5 more;
    # the third then has 5 left, alone: 0.5.
    assert ends(fabric, late, balancing="split") == [8.5, 8.5, 9.0]


def test_two_flows_that_collide_and_two_that_do_not() -> None:
    slow = LeafSpine(leaves=2, spines=2, hosts_per_leaf=2, link="10 GB/s", uplink="5 GB/s")
    together = table([(0, 2, 40, 0, 1), (1, 3, 40, 0, 1)], "spine")
    assert ends(slow, together) == [16.0, 16.0]
    assert ends(slow, together.assign(spine=[0, 1])) == [8.0, 8.0]


def test_the_tolerance_joins_ends() -> None:
    switch = Switch(hosts=4, link="10 GB/s")
    flows = table([(0, 1, 10, 0), (0, 2, 10.1, 0), (0, 3, 20, 0)])
    # Exact: 10 / 3 each until 3; then 0.1 and 10 left at 5 each: 3.02; then 9.9 left at 10: 4.01.
    assert ends(switch, flows) == [3.0, 3.02, 4.01]
    # Within 2 %: at 10 / 3 the second would end at 3.03, 1 % late: one event. Then 9.9 left at 10.
    assert ends(switch, flows, tolerance=0.02) == [3.0, 3.03, 4.02]


def test_nothing_to_send_still_travels() -> None:
    flows = table([(0, 2, 0, 3), (0, 1, 0, 3)])
    assert ends(FABRIC, flows) == pytest.approx([3.4, 3.2])
    assert run_flows(FABRIC, flows[:0])["finish_s"].tolist() == []
