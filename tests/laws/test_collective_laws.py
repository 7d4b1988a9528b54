"""What holds for every all-to-all: everything arrives, and ports carry what they must."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import registry
from moesim.network.stages import Messages, Stage

FEW = settings(deadline=None, max_examples=20)
RAILS = ("pxn", "2dh", "hierarchical", "bilevel", "node_limited")
TO_ONE = tuple(n for n in registry.names("all_to_all") if n != "coordinated")  # coordinated delivers to a group
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4))  # nodes, devices in each


def exchange(name: str, messages: Messages, per_node: int) -> list[Stage]:
    options: dict[str, Any] = {"name": name} | ({"width": per_node} if name == "coordinated" else {})
    return registry.make("all_to_all", options).stages(messages, per_node)


def moved(traffic: np.ndarray) -> np.ndarray:
    """Return *traffic* without its diagonal."""
    return traffic * (1 - np.eye(traffic.shape[-1], dtype=traffic.dtype))


def between_nodes(traffic: np.ndarray, per_node: int) -> np.ndarray:
    node = np.arange(traffic.shape[-1]) // per_node
    return traffic * (node[:, None] != node)


@st.composite
def from_tokens(draw: st.DrawFn) -> tuple[Messages, int]:
    """Draw messages [2, D, D] of tokens bound for random devices, uneven, with the nodes that they visit."""
    nodes, per_node = draw(SIZES)
    devices = nodes * per_node
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    copies, visits = np.zeros((2, devices, devices), np.int32), np.zeros((2, devices, nodes), np.int32)
    for _ in range(draw(st.integers(0, 40))):
        layer, home = rng.integers(2), rng.integers(devices)
        wanted = rng.random(devices) < rng.random()
        copies[layer, home] += wanted
        visits[layer, home] += wanted.reshape(nodes, per_node).any(axis=1)
    return Messages(copies, visits, 6), per_node


@pytest.mark.parametrize("name", TO_ONE)
@FEW
@given(size=SIZES)
def test_each_message_goes_from_its_source_to_its_destination(name: str, size: tuple[int, int]) -> None:
    """Follow one message alone, for every pair: with linearity (below) that is delivery of any matrix."""
    nodes, per_node = size
    devices = nodes * per_node
    pair = np.arange(devices**2)
    source, target = np.divmod(pair, devices)
    copies, visits = np.zeros((devices**2, devices, devices)), np.zeros((devices**2, devices, nodes))
    copies[pair, source, target] = visits[pair, source, target // per_node] = 1
    at = source
    for stage in exchange(name, Messages(copies, visits, 6), per_node):
        steps = moved(stage.traffic)
        here = steps[pair, at]
        assert np.array_equal(steps.sum(axis=(1, 2)), here.sum(axis=1)), "only the message moves"
        assert set(np.unique(here.sum(axis=1))) <= {0, 1}, "and to one place"
        at = np.where(here.any(axis=1), here.argmax(axis=1), at)
    assert np.array_equal(at, target)


@pytest.mark.parametrize("name", registry.names("all_to_all"))
@FEW
@given(drawn=from_tokens(), other=st.integers(0, 2**32 - 1))
def test_stages_are_linear_pure_and_alike_in_a_batch(name: str, drawn: tuple[Messages, int], other: int) -> None:
    (copies, visits, _), per_node = drawn
    assert visits is not None
    before = copies.copy(), visits.copy()
    both = exchange(name, Messages(copies, visits, 6), per_node)
    assert np.array_equal(copies, before[0]) and np.array_equal(visits, before[1])
    rng = np.random.default_rng(other)
    more = Messages(rng.integers(0, 9, copies.shape, dtype=np.int32),
                    rng.integers(0, 9, visits.shape, dtype=np.int32), 6)
    added = exchange(name, Messages(copies + more.copies, visits + more.node_copies, 6), per_node)
    for one, two, total in zip(both, exchange(name, more, per_node), added, strict=True):
        np.testing.assert_allclose(one.traffic + two.traffic, total.traffic, rtol=1e-12)
        np.testing.assert_allclose(np.add(one.copied, two.copied), total.copied, rtol=1e-12)
        assert one.traffic.dtype == (np.float64 if name == "coordinated" else np.int32)
    for layer in range(2):
        alone = exchange(name, Messages(copies[layer], visits[layer], 6), per_node)
        for batched, single in zip(both, alone, strict=True):
            assert np.array_equal(batched.traffic[layer], single.traffic)
            assert np.array_equal(np.broadcast_to(batched.copied, copies.shape[:-1])[layer],
                                  np.broadcast_to(single.copied, copies.shape[1:-1]))
            assert (batched.messages is None) == (single.messages is None)
            if batched.messages is not None and single.messages is not None:
                assert np.array_equal(batched.messages[layer], single.messages)
            assert batched[3:] == single[3:]


@pytest.mark.parametrize("name", TO_ONE)
@FEW
@given(drawn=from_tokens())
def test_what_leaves_and_arrives_in_all(name: str, drawn: tuple[Messages, int]) -> None:
    messages, per_node = drawn
    copies = messages.copies
    stages = exchange(name, messages, per_node)
    if name == "node_limited":  # copies are made on the way: only what ends in each device is the same
        assert np.array_equal(stages[-1].traffic.sum(axis=-2), copies.sum(axis=-2))
        return
    steps = sum((moved(s.traffic) for s in stages), np.zeros_like(copies))
    out, into = steps.sum(axis=-1), steps.sum(axis=-2)
    assert np.array_equal(out - into, copies.sum(axis=-1) - copies.sum(axis=-2))
    if name == "pairwise":
        assert all((moved(s.traffic) > 0).sum(axis=a).max(initial=0) <= 1 for s in stages for a in (-1, -2))
        assert np.array_equal(sum((s.traffic for s in stages), np.zeros_like(copies)), moved(copies))
        return
    held = copies.sum(axis=-1)
    for stage in stages:  # with the diagonal, each stage sends on all that a device holds
        assert np.array_equal(stage.traffic.sum(axis=-1), held)
        assert np.ndim(stage.copied) == 0 or np.array_equal(stage.copied, held)
        held = stage.traffic.sum(axis=-2)
    assert np.array_equal(held, copies.sum(axis=-2))


@pytest.mark.parametrize("name", RAILS)
@FEW
@given(drawn=from_tokens())
def test_ports_along_rails(name: str, drawn: tuple[Messages, int]) -> None:
    messages, per_node = drawn
    copies, visits = messages.copies, messages.node_copies
    assert visits is not None
    stages = exchange(name, messages, per_node)
    far = [between_nodes(s.traffic, per_node) for s in stages]
    flat = between_nodes(copies, per_node).sum(axis=(-2, -1))
    total = sum(f.sum(axis=(-2, -1)) for f in far)
    if name == "node_limited":
        away = np.arange(visits.shape[-1]) != (np.arange(copies.shape[-1]) // per_node)[:, None]
        assert np.array_equal(total, (visits * away).sum(axis=(-2, -1)))
        assert (total <= flat).all()
    else:
        assert np.array_equal(total, flat)
    position = np.arange(copies.shape[-1]) % per_node
    aligned = position[:, None] == position
    if per_node < copies.shape[-1]:
        assert all((f * ~aligned == 0).all() for f in far), "no bytes cross rails"
        assert all((f > 0).sum(axis=-1).max() <= copies.shape[-1] // per_node - 1 for f in far)
    with_both = [f.any() and (moved(s.traffic) != f).any() for s, f in zip(stages, far, strict=True)]
    assert not any(with_both), "a stage uses ports or scale-up links, not both"


@FEW
@given(drawn=from_tokens())
def test_pxn_and_bilevel_load_scale_up_links_and_ports_the_other_way_round(drawn: tuple[Messages, int]) -> None:
    """Bi-level of a matrix, on its way home, is PXN's transport of the transposed matrix."""
    messages, per_node = drawn
    home = Messages(messages.copies.swapaxes(-1, -2))
    far, near = exchange("bilevel", messages, per_node)
    first, second = exchange("pxn", home, per_node)
    assert np.array_equal(near.traffic.swapaxes(-1, -2), first.traffic)
    assert np.array_equal(far.traffic.swapaxes(-1, -2), second.traffic)


@FEW
@given(drawn=from_tokens(), data=st.data())
def test_coordinated_brings_every_rank_what_its_group_needs(drawn: tuple[Messages, int], data: st.DataObject) -> None:
    messages, per_node = drawn
    devices = messages.copies.shape[-1]
    width = data.draw(st.sampled_from([w for w in range(1, devices + 1) if devices % w == 0]))
    part = registry.make("all_to_all", {"name": "coordinated", "width": width})
    swap, gather = part.stages(messages, per_node)
    group = np.arange(devices) // width
    wanted = (messages.copies.sum(axis=-2)[..., None, :] * (group[:, None] == group)).sum(axis=-1)
    np.testing.assert_allclose(gather.traffic.sum(axis=-2), wanted, rtol=1e-12)
    np.testing.assert_allclose(swap.traffic.sum(axis=(-2, -1)), messages.copies.sum(axis=(-2, -1)), rtol=1e-12)
    rank = np.arange(devices) % width
    assert (swap.traffic * (rank[:, None] != rank) == 0).all(), "only equal ranks exchange"
    assert (gather.traffic * (group[:, None] != group) == 0).all(), "and groups gather inside"
