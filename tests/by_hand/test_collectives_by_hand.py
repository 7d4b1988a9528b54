"""Two nodes of two devices exchange an uneven matrix: every stage of every all-to-all on paper.

Device 0 and 1 are positions 0 and 1 of node 0, device 2 and 3 those of node 1. The diagonal of a stage is what stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim import registry
from moesim.network import LeafSpine, Network
from moesim.network.stages import Messages, Stage

COPIES = np.array([[9, 4, 2, 6],
                   [8, 9, 0, 10],
                   [0, 12, 9, 14],
                   [2, 0, 16, 9]], dtype=np.int32)


def stages(name: Any, copies: np.ndarray = COPIES, node_copies: np.ndarray | None = None) -> list[Stage]:
    return registry.make("all_to_all", name).stages(Messages(copies, node_copies), per_node=2)


def test_flat() -> None:
    only, = stages("flat")
    assert only.traffic is COPIES
    assert only[1:] == (None, 0.0, True, False)


def test_deepep_low_latency() -> None:
    only, = stages({"name": "deepep_ll", "experts": 6})
    assert only.traffic is COPIES and only.messages is not None
    assert only.messages.tolist() == [3, 3, 3, 3]  # half of the experts are on the other node
    assert (only.launch, only.with_before) == (True, False)
    with pytest.raises(ValueError, match="give their number"):
        stages("deepep_ll")


def test_pairwise() -> None:
    first, second, third = stages("pairwise")
    assert first.traffic.tolist() == [[0, 4, 0, 0],
                                      [0, 0, 0, 0],  # device 1 has nothing for device 2
                                      [0, 0, 0, 14],
                                      [2, 0, 0, 0]]
    assert second.traffic.tolist() == [[0, 0, 2, 0],
                                       [0, 0, 0, 10],
                                       [0, 0, 0, 0],
                                       [0, 0, 0, 0]]
    assert third.traffic.tolist() == [[0, 0, 0, 6],
                                      [8, 0, 0, 0],
                                      [0, 12, 0, 0],
                                      [0, 0, 16, 0]]
    assert [s.launch for s in (first, second, third)] == [True, False, False]
    assert not any(s.with_before for s in (first, second, third))


@pytest.mark.parametrize("name", registry.names("all_to_all"))
def test_one_device_has_nobody_to_send_to(name: str) -> None:
    """Its tokens are there already: times and loads have the shape of the batch, and are zero."""
    network = Network.on(LeafSpine(leaves=1, spines=1, hosts_per_leaf=1, link="1 GB/s"))
    part = {"name": name, "width": 1} if name == "coordinated" else {"name": name, "experts": 1} if (
        name == "deepep_ll") else name
    found = network.exchange(part, Messages(np.full((2, 1, 1), 3), np.full((2, 1, 1), 3)), 8.0)
    assert found.time_s.tolist() == [0.0, 0.0]
    assert found.loads.shape[0] == 2 and not found.loads.any()


NEAR_FIRST = [[9 + 2, 4 + 6, 0, 0],    # device 0 gives 1 what is for positions 1: of device 1 and of device 3
              [8 + 0, 9 + 10, 0, 0],
              [0, 0, 0 + 9, 12 + 14],
              [0, 0, 2 + 16, 0 + 9]]
THEN_FAR = [[9 + 8, 0, 2 + 0, 0],      # devices 0 and 1 have 2 and nothing for device 2: device 0 sends both
            [0, 4 + 9, 0, 6 + 10],
            [0 + 2, 0, 9 + 16, 0],
            [0, 12 + 0, 0, 14 + 9]]
SENT = [21, 27, 35, 27]                # what each device has at first, with what is its own
HELD = [19, 29, 27, 35]                # and after the stage in the nodes: columns of NEAR_FIRST


def test_pxn() -> None:
    near, far = stages("pxn")
    assert near.traffic.tolist() == NEAR_FIRST
    assert far.traffic.tolist() == THEN_FAR
    assert (near.copied, far.copied) == (0, 0)
    assert (near.with_before, far.with_before) == (False, True)


def test_2dh() -> None:
    near, far = stages("2dh")
    assert near.traffic.tolist() == NEAR_FIRST
    assert far.traffic.tolist() == THEN_FAR
    assert [np.asarray(s.copied).tolist() for s in (near, far)] == [SENT, HELD]
    assert (near.launch, far.launch, near.with_before, far.with_before) == (True, True, False, False)


def test_hierarchical() -> None:
    near, far = stages("hierarchical")
    assert near.traffic.tolist() == NEAR_FIRST
    assert far.traffic.tolist() == THEN_FAR
    assert [np.asarray(s.copied).tolist() for s in (near, far)] == [SENT, HELD]
    near, far = stages({"name": "hierarchical", "transforms": 1})
    assert near.traffic.tolist() == NEAR_FIRST
    assert (near.copied, np.asarray(far.copied).tolist()) == (0, HELD)


def test_aligning_needs_both_levels() -> None:
    """Within one node, or with nodes of one device, chunks lie in order: one stage, no copies."""
    for name in ("2dh", "hierarchical"):
        for per_node in (1, 4):
            only, = registry.make("all_to_all", name).stages(Messages(COPIES), per_node)
            assert only.traffic is COPIES and only.copied == 0


FAN_OUT = [[9 + 0, 4 + 12, 0, 0],      # device 0 has got from device 2 what is for node 0: 12 of it for device 1
           [8 + 2, 9 + 0, 0, 0],
           [0, 0, 2 + 9, 6 + 14],
           [0, 0, 0 + 16, 10 + 9]]


def test_bilevel() -> None:
    far, near = stages("bilevel")
    assert far.traffic.tolist() == [[9 + 4, 0, 2 + 6, 0],   # device 0 sends device 2 all that it has for node 1
                                    [0, 8 + 9, 0, 0 + 10],
                                    [0 + 12, 0, 9 + 14, 0],
                                    [0, 2 + 0, 0, 16 + 9]]
    assert near.traffic.tolist() == FAN_OUT
    assert (near.launch, near.with_before, near.copied) == (True, False, 0)


def test_coordinated() -> None:
    # Groups {0, 1} and {2, 3}. Group 0 has 9 + 4 + 8 + 9 = 30 for itself, 2 + 6 + 0 + 10 = 18 for group 1; group 1 has
    # 0 + 12 + 2 + 0 = 14 for group 0 and 9 + 14 + 16 + 9 = 48 for itself. Each rank carries half.
    exchange, gather = stages({"name": "coordinated", "width": 2})
    assert exchange.traffic.tolist() == [[15, 0, 9, 0],
                                         [0, 15, 0, 9],
                                         [7, 0, 24, 0],
                                         [0, 7, 0, 24]]
    assert gather.traffic.tolist() == [[22, 22, 0, 0],      # 15 + 7 each, wanted by both
                                       [22, 22, 0, 0],
                                       [0, 0, 33, 33],      # 9 + 24
                                       [0, 0, 33, 33]]
    alone, nothing = stages({"name": "coordinated", "width": 1})
    assert alone.traffic.tolist() == COPIES.tolist()
    assert nothing.traffic.tolist() == np.diag([19, 25, 27, 39]).tolist()


def test_node_limited() -> None:
    tokens = [(0, [0, 3]), (0, [1, 2]), (0, [2, 3]),  # (device of the token, devices that it is bound for)
              (1, [0, 1]), (1, [2, 3]),
              (2, [0, 1]), (2, [2, 3]),
              (3, [0]), (3, [1, 3])]
    copies, visits = np.zeros((4, 4), np.int32), np.zeros((4, 2), np.int32)
    for device, targets in tokens:
        copies[device, targets] += 1
        visits[device, sorted({target // 2 for target in targets})] += 1
    assert copies.tolist() == [[1, 1, 2, 2], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1]]
    assert visits.tolist() == [[2, 3], [1, 1], [1, 1], [2, 1]]
    far, near = stages("node_limited", copies, visits)
    assert far.traffic.tolist() == [[2, 0, 3, 0],   # flat sends 4 over the port of device 0
                                    [0, 1, 0, 1],   # and 2 over that of device 1: one token for both devices of node 1
                                    [1, 0, 1, 0],
                                    [0, 2, 0, 1]]
    assert near.traffic.tolist() == [[1 + 1, 1 + 1, 0, 0],  # own tokens, and those that came from device 2
                                     [1 + 1, 1 + 1, 0, 0],
                                     [0, 0, 2 + 1, 2 + 1],
                                     [0, 0, 1 + 0, 1 + 1]]
    assert (far.with_before, near.with_before) == (False, True)


def test_messages_that_do_not_fit() -> None:
    for name in registry.names("all_to_all"):
        part = registry.make("all_to_all", {"name": name} | ({"width": 2} if name == "coordinated" else {}))
        with pytest.raises(ValueError, match="4 devices do not fill nodes of 3; take a divisor"):
            part.stages(Messages(COPIES, np.zeros((4, 2), np.int32)), 3)
        with pytest.raises(ValueError, match=r"shape \(4, 3\); the last two axes must both be the devices"):
            part.stages(Messages(COPIES[:, :3], np.zeros((4, 2), np.int32)), 1)
    with pytest.raises(ValueError, match="needs node_copies .* or take 'pxn'"):
        stages("node_limited")
    with pytest.raises(ValueError, match=r"node_copies have the shape \(4, 3\); .* need \(4, 2\)"):
        stages("node_limited", COPIES, np.zeros((4, 3), np.int32))
    with pytest.raises(ValueError, match="groups of 3 do not divide 4 devices"):
        stages({"name": "coordinated", "width": 3})
    with pytest.raises(ValueError, match="255 of 16777216 bytes are more than 1 GiB; exchange fewer layers"):
        stages("pairwise", np.broadcast_to(np.zeros(1), (32, 256, 256)))
