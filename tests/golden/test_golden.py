"""Golden tables of small runs: results do not move by accident."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import moesim

HERE = Path(__file__).resolve().parent
TINY = HERE.parent / "data" / "tiny.yaml"
RUNS = {
    "dispatch_combine": (),
    "context_coherent": ("parallelism.mode=context_coherent",),
    "two_nodes_tile": ("hardware.nodes=2", "hardware.scale_out={efficiency: 0.9, startup: 20 us, ramp: 1 us}",
                       "hardware.fabric={name: leaf_spine, leaves: 2, spines: 3, hosts_per_leaf: 2, link: 10 Gbit/s}",
                       "placement.solver=joint", "scheduler.prefill=mixed"),
}


def table(name: str) -> pd.DataFrame:
    """Return the steps of one run."""
    return moesim.simulate(moesim.load(TINY, RUNS[name])).steps


@pytest.mark.parametrize("name", RUNS)
def test_steps_do_not_move(name: str) -> None:
    golden = pd.read_csv(HERE / f"{name}.csv")
    pd.testing.assert_frame_equal(table(name)[list(golden)], golden, rtol=1e-9, check_dtype=False)


if __name__ == "__main__":
    for run in RUNS:
        table(run).to_csv(HERE / f"{run}.csv", index=False, float_format="%.17g")
