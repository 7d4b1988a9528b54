"""What ``run_flows`` takes and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim import registry
from moesim.network import LeafSpine, Switch, run_flows
from moesim.network.pieces import ends_of, spread
from moesim.network.routes import used

FABRIC = LeafSpine(leaves=2, spines=2, hosts_per_leaf=2, link="10 GB/s")
FLOWS = pd.DataFrame({"src": [0, 1, 2], "dst": [2, 0, 1], "bytes": [1e6, 2e6, 3e6], "start_s": [0.0, 0.0, 1e-4]})


@pytest.mark.parametrize("name", registry.names("balancing"))
def test_pieces_of_every_balancing(name: str) -> None:
    part = registry.make("balancing", name)
    pieces = spread(ends_of(FABRIC, FLOWS.assign(port=0)), part, 0)
    assert (pieces.flow[:-1] <= pieces.flow[1:]).all() and set(pieces.flow) == {0, 1, 2}
    assert np.bincount(pieces.flow, pieces.share) == pytest.approx(np.ones(3))
    assert part.sent == "together" or (pieces.usage.data == 1).all()
    assert (pieces.after >= 0).any() == (part.sent == "in_turn")


def test_flows_and_collectives_hash_alike() -> None:
    part = registry.make("balancing", "ecmp")
    pieces = spread(ends_of(FABRIC, FLOWS.assign(port=0)), part, 4)
    assert (used(FABRIC, FLOWS["src"].to_numpy(), FLOWS["dst"].to_numpy(), part, 4) != pieces.usage).nnz == 0


def test_columns_and_index_are_kept() -> None:
    flows = FLOWS.assign(id=["a", "b", "c"], parent=[7, 8, 9]).set_index(np.array([5, 3, 1]))
    before = flows.copy()
    done = run_flows(FABRIC, flows)
    pd.testing.assert_frame_equal(flows, before)
    pd.testing.assert_frame_equal(done[flows.columns], flows)
    assert done["finish_s"].tolist() == run_flows(FABRIC, FLOWS)["finish_s"].tolist()
    again = run_flows(FABRIC, done)  # a result can be run again: its columns are replaced
    pd.testing.assert_frame_equal(again, done)


def test_fabric_by_name() -> None:
    pd.testing.assert_frame_equal(run_flows({"name": "switch", "hosts": 4}, FLOWS), run_flows(Switch(4), FLOWS))


def test_numba_is_loaded_when_flows_run() -> None:
    code = "import sys, moesim.network; print('numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def changed(**columns: Any) -> Any:
    return lambda: run_flows(FABRIC, FLOWS.assign(**columns))


@pytest.mark.parametrize(("make", "facts"), [
    (lambda: run_flows(FABRIC, FLOWS.drop(columns=["bytes", "dst"])), ["no column dst, bytes", "needed: src, dst"]),
    (changed(weigth=1.0), ["column 'weigth'", "not read", "'weight'"]),
    (changed(src=[0, 4, 5]), ["flow 1 (2 rows)", "src is 4", "0 to 3"]),
    (changed(dst=[2, -1, 1]), ["flow 1", "dst is -1", "0 to 3"]),
    (changed(dst=[0, 0, 1]), ["flow 0", "dst is 0", "its source", "leave out"]),
    (changed(src=[0, 1.5, 2]), ["flow 1", "src is 1.5", "whole number"]),
    (changed(bytes=[1, -1, 1]), ["flow 1", "bytes is -1", ">= 0"]),
    (changed(bytes=[1, np.nan, 1]), ["flow 1", "bytes is nan", ">= 0"]),
    (changed(bytes=["1 MB", "2 MB", "3 MB"]), ["column bytes", "give numbers"]),
    (changed(start_s=[0, np.inf, 0]), ["flow 1", "start_s is inf", "seconds"]),
    (changed(weight=[1, 0, 1]), ["flow 1", "weight is 0", "> 0"]),
    (changed(weight=[1, 1e-6, 1]), ["flow 1", "weight is 1e-06", "1/10000 of the largest"]),
    (changed(limit_bytes_per_s=0.0), ["flow 0 (3 rows)", "limit_bytes_per_s is 0", "inf"]),
    (changed(spine=[-1, -1, 0]), ["flow 0", "spine is -1", "0 to 1"]),
    (changed(spine=[0, 0, 0]), ["flow 1", "spine is 0", "-1"]),
    (changed(spine=[0, -1, 2]), ["flow 2", "spine is 2", "0 to 1"]),
    (lambda: run_flows(FABRIC, FLOWS, "ecpm"), ["unknown balancing 'ecpm'", "ecmp"]),
    (lambda: run_flows(FABRIC, FLOWS, {"name": "mprdma", "pieces": 0}), ["pieces", "greater than 0"]),
    (lambda: run_flows(FABRIC, FLOWS, tolerance=-0.1), ["tolerance is -0.1", "0 (exact)"]),
    (lambda: run_flows(FABRIC, FLOWS, tolerance=1), ["tolerance is 1", "< 1"]),
    (lambda: Switch(4, link="0 GB/s"), ["link", "is zero: nothing would ever finish", "4.8 TB/s"]),
    (lambda: run_flows("leaf_spin", FLOWS), ["unknown topology 'leaf_spin'", "leaf_spine"]),
])
def test_refuses(make: Any, facts: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert all(fact in str(error.value) for fact in facts), str(error.value)
