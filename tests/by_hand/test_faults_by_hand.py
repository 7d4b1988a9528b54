"""Links that fail, slow down and come back, worked on paper. Times in microseconds, bytes in thousands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim import registry
from moesim.network import LeafSpine, run_flows
from moesim.network.topologies.degraded import Degraded

FABRIC = LeafSpine(leaves=2, spines=2, hosts_per_leaf=2, link="10 GB/s")
ONE = pd.DataFrame({"src": [0], "dst": [2], "bytes": [40e3], "start_s": [0.0]})


def ends(flows: pd.DataFrame, balancing: Any, *faults: tuple[float, str, float], detection: float = 1) -> list[float]:
    """Return when flows end with *faults* (time in us, where, factor), seen *detection* us later."""
    table = pd.DataFrame(list(faults), columns=["time_s", "where", "factor"])
    table["time_s"] *= 1e-6
    done = run_flows(FABRIC, flows, balancing, faults=table, detection_s=detection * 1e-6)
    return [round(float(end) * 1e6, 6) for end in done["finish_s"]]


def test_a_sprayed_flow_stands_still_until_the_failure_is_seen() -> None:
    # 0 to 1: 10 of 40. 1 to 2: half of its packets go nowhere, all wait. 2: over the other spine, 30 at 10 GB/s: 5.
    assert ends(ONE, "spray", (1, "spine0", 0)) == [5.0]
    assert ends(ONE, "spray", (1, "spine0", 0), detection=0) == [4.0]
    assert ends(ONE, "spray", (1, "spine0", 0), (1.5, "spine0", 1)) == [4.5]  # back before anybody saw: 30 left at 1.5


def test_a_split_flow_loses_one_half_only() -> None:
    # Halves at 5 GB/s each. 1: 15 left in both; one stands still, the other has the port alone: 5 left at 2. Then the
    # lost 15 join it on the living spine, 5 GB/s each: the other is done at 3, 10 are left, alone: 4.
    for spine in ("spine0", "spine1"):
        assert ends(ONE, "split", (1, spine, 0)) == [4.0]


def test_a_pinned_flow_waits_for_the_repair() -> None:
    pinned = ONE.assign(spine=0)
    assert ends(pinned, "ecmp", (1, "spine0", 0), (6, "spine0", 1)) == [9.0]
    assert ends(pinned, "ecmp", (1, "leaf0->spine0", 0.5)) == [7.0]  # 30 left at 5 GB/s
    assert ends(pinned, "ecmp", (1, "spine1", 0)) == [4.0]
    with pytest.raises(ValueError, match="flow 0 never ends: a link on its path has no capacity"):
        ends(pinned, "ecmp", (1, "spine0", 0))


def test_a_hashed_flow_finds_the_other_spine() -> None:
    # Whichever spine its hash names: if that fails it stands still from 1 to 2, then 30 at 10 GB/s.
    assert sorted(ends(ONE, "ecmp", (1, spine, 0))[0] for spine in ("spine0", "spine1")) == [4.0, 5.0]


def test_bursts_in_turn() -> None:
    # Four bursts of 10. In the second (1 to 2) its spine may fail at 1.5, seen at 2.5: 5 left then.
    found = [ends(ONE, {"name": "flowlet", "flowlets": 4}, (1.5, spine, 0))[0] for spine in ("spine0", "spine1")]
    assert sorted(found) == [4.0, 5.0]  # the burst that was under way crossed one of them; later bursts know


def test_flows_that_start_later_know() -> None:
    two = pd.concat([ONE, ONE.assign(start_s=3e-6)], ignore_index=True)
    # The failure of 1 is known at 2. The first has 30 left then. 3: 20 left, the second starts on the same spine, 5
    # GB/s each: the first ends at 7, the second has 20 left, alone: 9.
    assert ends(two, "spray", (1, "spine0", 0)) == [7.0, 9.0]
    # Known from the start: 10 left at 3, done at 5; the second has 30 left then.
    assert ends(two, "adaptive", (0, "spine0", 0), detection=0) == [5.0, 8.0]


def test_all_paths_gone_and_back() -> None:
    for balancing in registry.names("balancing"):
        assert ends(ONE, balancing, (1, "leaf0", 0), (5, "leaf0", 1)) == [8.0], balancing  # 30 left at 5


def test_a_failure_known_from_the_start_is_a_degraded_fabric() -> None:
    rng = np.random.default_rng(0)
    flows = pd.DataFrame({"src": rng.integers(0, 2, 20), "dst": rng.integers(2, 4, 20),
                          "bytes": rng.uniform(1e3, 1e5, 20), "start_s": rng.choice([0.0, 1e-6], 20)})
    for balancing in registry.names("balancing"):
        degraded = Degraded(FABRIC, {"spine0": 0, "leaf1->host2": 0.5})
        wanted = run_flows(degraded, flows, balancing)["finish_s"] * 1e6
        found = ends(flows, balancing, (-1, "spine0", 0), (-1, "leaf1->host2", 0.5), detection=0)
        assert found == pytest.approx(wanted.tolist(), rel=1e-6)


@pytest.mark.parametrize(("faults", "facts"), [
    ((1.0, "spine7", 0.0), ["no link, switch or host 'spine7'", "named like"]),
    ((1.0, "spine0", -1.0), ["fault 0: factor is -1", "0 fails, 1 repairs"]),
    ((np.nan, "spine0", 0.0), ["fault 0: time_s is nan", "seconds"])])
def test_refuses(faults: tuple[float, str, float], facts: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        ends(ONE, "spray", faults)
    assert all(fact in str(error.value) for fact in facts)
    with pytest.raises(ValueError, match="faults have no column where, factor; needed"):
        run_flows(FABRIC, ONE, faults=pd.DataFrame({"time_s": [1.0]}))
    with pytest.raises(ValueError, match="detection_s is -1"):
        run_flows(FABRIC, ONE, detection_s=-1)
