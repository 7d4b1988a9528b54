"""What NVIDIA's users and maintainers say of NCCL's all-to-all between nodes."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.network import Constants, Messages, Network, Switch


@pytest.mark.parametrize("nodes", [2, 4, 8, 16])
def test_bandwidth_of_large_all_to_alls(nodes: int) -> None:
    """nccl-tests #130: N nodes show N / (N - 1) times the bandwidth of a port, as 1 / N of the bytes stays inside.

    That is what a device sends over time, its own part too; nccl-tests' busbw is (n - 1) / n of it.
    """
    n, port, size = 8 * nodes, 50e9, 2.0**28
    network = Network(n, 8, Constants(bandwidth=450e9), Switch(n, link="50 GB/s"), Constants(startup=20e-6))
    time_s = float(network.exchange("flat", Messages(np.ones((n, n), np.int32)), size / n).time_s)
    assert size / time_s / port == pytest.approx(nodes / (nodes - 1), rel=0.02)
    assert size * (n - 1) / n / time_s / port == pytest.approx(nodes / (nodes - 1), rel=0.08)


def test_all_to_all_of_64_h800() -> None:
    """nccl#1531: 8 MiB on 8 nodes take 338 us out of place and 296 us in place. Constants: nothing fitted to it."""
    out = Constants(efficiency=0.96, startup=20e-6, message=2e-6)
    network = Network(64, 8, Constants(bandwidth=136e9, startup=15e-6), Switch(64, link="400 Gbit/s"), out)
    time_s = float(network.exchange("flat", Messages(np.ones((64, 64), np.int32)), 2.0**23 / 64).time_s)
    assert time_s == pytest.approx(285e-6, rel=0.01)  # -4 and -16 %
    assert 0.8 * 337.8e-6 < time_s < 1.05 * 295.6e-6
