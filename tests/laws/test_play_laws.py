"""Collectives as flows agree with the closed form wherever both apply, and bytes are where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import registry
from moesim.network import Constants, LeafSpine, Messages, Network
from moesim.network.fluid_memo import Memo
from moesim.network.network import title
from moesim.network.play import exchange, play, reduction

UP = Constants(bandwidth=100e9, efficiency=0.8, startup=5e-6, ramp=2e-6, message=0.3e-6)
OUT = Constants(efficiency=0.9, startup=20e-6, ramp=1e-6, message=1e-6)
PARTS = [{"name": name} | ({"width": 2} if name == "coordinated" else {"experts": 16} if name == "deepep_ll" else {})
         for name in registry.names("all_to_all")]


def network(balancing: str = "spray", reduction_part: str = "hierarchical_ring", nodes: int = 4) -> Network:
    """Return nodes of four devices, each under a leaf of its own."""
    fabric = LeafSpine(nodes, 4, 4, link="50 GB/s", uplink="40 GB/s", latency="1 us")
    return Network(4 * nodes, 4, UP, fabric, OUT, balancing, 1, 2e12, reduction=reduction_part)


def messages(net: Network, seed: int | None = None) -> Messages:
    """Return uniform messages, or uneven ones that a token's visits could make."""
    n = net.n_devices
    copies = np.full((n, n), 5.0) if seed is None else np.random.default_rng(seed).integers(0, 9, (n, n)).astype(float)
    visits = copies.reshape(n, net.nodes, 4).max(axis=-1)
    return Messages(copies, visits)


@pytest.mark.parametrize("part", PARTS, ids=lambda p: p["name"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("balancing", ["spray", "split"])
def test_uniform_all_to_alls(part: dict, reverse: bool, balancing: str) -> None:
    net = network(balancing)
    closed = net.exchange(part, messages(net), 7168.0, reverse)
    name = title(registry.make("all_to_all", part), reverse)
    played = play(net, exchange(net, part, messages(net), 7168.0, reverse), name)
    assert played.time_s == pytest.approx(float(closed.time_s), rel=1e-9)
    np.testing.assert_allclose(played.load_bytes, closed.loads, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("part", PARTS, ids=lambda p: p["name"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_uneven_all_to_alls(part: dict, seed: int) -> None:
    """Never below the closed form; above it where a few large flows leave the busiest link idle."""
    net = network()
    closed = net.exchange(part, messages(net, seed), 1e5)
    played = play(net, exchange(net, part, messages(net, seed), 1e5), part["name"])
    np.testing.assert_allclose(played.load_bytes, closed.loads, rtol=1e-9, atol=1e-6)
    assert float(closed.time_s) * (1 - 1e-9) <= played.time_s <= 1.3 * float(closed.time_s)


@pytest.mark.parametrize("name", registry.names("all_reduce"))
@pytest.mark.parametrize("width", [2, 4, 16])
@pytest.mark.parametrize("balancing", ["spray", "ecmp", "split"])
def test_all_reduces(name: str, width: int, balancing: str) -> None:
    net = network(balancing, name)
    size = np.full(16 // width, 3e6)
    closed = net.all_reduce(size, width)
    played = play(net, reduction(net, size, width), "all_reduce")
    assert played.time_s == pytest.approx(float(closed.time_s.max()), rel=1e-9)
    np.testing.assert_allclose(played.load_bytes, closed.loads.sum(axis=0), rtol=1e-9, atol=1e-6)


def test_traffic_that_comes_again_is_worked_out_once() -> None:
    net, memo = Network.on(LeafSpine(4, 4, 4, link="50 GB/s"), "ecmp", 3), Memo()
    acts = reduction(net, np.array([3e6]), 16)  # hierarchical rings on nodes of one device: rings
    first = play(net, acts, "all_reduce", memo=memo)
    assert [act.repeat for act in acts] == [15, 15] and (memo.hits, memo.misses) == (1, 1)
    again = play(net, reduction(net, np.array([6e6]), 16), "all_reduce", memo=memo)
    assert again.time_s == pytest.approx(2 * first.time_s, rel=1e-12) and (memo.hits, memo.misses) == (3, 1)
