"""Every flow of the reference flow lists against its completion time in SimGrid 3.32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.network import LeafSpine, run_flows

pytestmark = pytest.mark.external

CASES = [f"a2a{case}" for case in ("448_ecmp1", "448_ecmp2", "448_ecmp3", "448_ethereal", "448_mprdma4", "468_ecmp1",
                                   "468_ethereal", "488_ecmp1", "488_ecmp2", "488_ethereal")]


def listed(shared_data: Path, case: str) -> tuple[LeafSpine, pd.DataFrame, np.ndarray]:
    """Return the fabric, the flows (paths pinned) and SimGrid's seconds of a case."""
    flows = pd.read_csv(shared_data / "network" / f"{case}.flows", sep=" ", comment="#",
                        names=["id", "src", "dst", "bytes", "spine", "parent"]).assign(start_s=0.0)
    ends = pd.read_csv(shared_data / "network" / "simgrid_fct" / f"fct_{case}.txt", sep=" ", names=["id", "end_s"])
    fabric = LeafSpine(leaves=4, spines=int(case[4]), hosts_per_leaf=8, link="400 Gbit/s")
    return fabric, flows, ends.set_index("id").loc[flows["id"], "end_s"].to_numpy()


def test_all_cases_are_there(shared_data: Path) -> None:
    assert sorted(CASES) == sorted(f.stem for f in (shared_data / "network").glob("*.flows"))


@pytest.mark.parametrize("case", CASES)
def test_every_flow(shared_data: Path, case: str) -> None:
    fabric, flows, expected = listed(shared_data, case)
    assert run_flows(fabric, flows)["finish_s"].to_numpy() == pytest.approx(expected, rel=1e-6, abs=0)
    # SimGrid sends whole bytes: with the pieces of split flows cut down to these, 1e-8 holds (1e-9 s is its precision).
    whole = flows.assign(bytes=np.floor(flows["bytes"]))
    assert run_flows(fabric, whole)["finish_s"].to_numpy() == pytest.approx(expected, rel=1e-8, abs=0)


@pytest.mark.parametrize(("spines", "policy"), [(4, "ethereal"), (6, "ethereal"), (8, "ethereal")])
def test_our_own_splitting(shared_data: Path, spines: int, policy: str) -> None:
    """The same rule with other choices of spines: the same last end."""
    fabric, flows, expected = listed(shared_data, f"a2a4{spines}8_{policy}")
    pairs = flows.groupby("parent", as_index=False).agg(
        {"src": "first", "dst": "first", "bytes": "sum", "start_s": "first"})
    for balancing in ("split", "spray"):
        done = run_flows(fabric, pairs, balancing)["finish_s"]
        assert done.max() == pytest.approx(expected.max(), rel=2e-6)


def test_sprayed_mean(shared_data: Path) -> None:
    """One weighted flow per pair: 7 near flows per host end at 293.60 us, 24 far ones at 1006.63; mean 845.63."""
    fabric, flows, _ = listed(shared_data, "a2a448_ecmp1")
    done = run_flows(fabric, flows.drop(columns="spine"), "spray")["finish_s"] * 1e6
    assert np.unique(done.round(2)).tolist() == [293.60, 1006.63]
    assert done.mean() == pytest.approx(845.6258, abs=1e-3)
