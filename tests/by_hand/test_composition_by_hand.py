"""Many models on one node, on paper: switches, evictions, overlap, launches, the choice of experts, and wrong input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from moesim import config
from moesim.hardware import Tier
from moesim.memory import CacheError
from moesim.memory.chain import Chain
from moesim.memory.composition import Node, one_link, serve
from moesim.memory.execution import Fused, Rates, Unfused, layer_s, operators, pass_s
from moesim.memory.mapping import choose
from moesim.model import ModelSpec

TEN = np.full(4, 10.0)
TIMES = ["copy_start_s", "copy_finish_s", "run_start_s", "run_finish_s"]


def pair(switch: str, **room: float) -> Node:
    """Two devices, a link of 10 bytes/s each way to each."""
    tiers = [{"name": "hbm", "capacity": "1 kB", "bandwidth": "1 kB/s"},
             {"name": "host", "capacity": "1 kB", "bandwidth": "1 kB/s", "link": {"bandwidth": "10 B/s"}}]
    chain = Chain(tuple(Tier.model_validate(t) for t in tiers), devices=2, shared=1)
    return Node(chain, **({"room_bytes": 20, "store_bytes": 100} | room), switch=switch)  # type: ignore[arg-type]


def test_a_batch_after_the_other() -> None:
    """Router 1 s, copy 10 bytes at 10 bytes/s, run 3 s; room for two. The last finds 1 gone: 0 was kept by its hit."""
    table = serve([[0, 1], [0, 2], [1]], TEN, pair("one_link"), run_s=3.0, router_s=1.0)
    assert table[["batch", "expert", "hit"]].to_numpy().tolist() == [
        [0, 0, False], [0, 1, False], [1, 0, True], [1, 2, False], [2, 1, False]]
    assert table[TIMES].fillna(-1).to_numpy().tolist() == [
        [1, 2, 2, 5], [5, 6, 6, 9], [-1, -1, 10, 13], [13, 14, 14, 17], [18, 19, 19, 22]]
    assert table["copied_bytes"].sum() == 40 and table["written_back_bytes"].sum() == 0


def test_all_links_take_half_on_two_devices() -> None:
    assert [pair(s).copy_s(10) for s in ("one_link", "all_links", "overlapped")] == pytest.approx([1, 0.5, 0.5])


def test_overlapped_copies_while_another_runs_but_not_over_it() -> None:
    """Half a second a copy. 1 comes while 0 runs (0.5 to 3.5). 2 must take 0's place: from 3.5, not from 1."""
    table = serve([[0, 1, 2]], TEN, pair("overlapped"), run_s=3.0)
    assert table[TIMES].to_numpy().tolist() == [[0, 0.5, 0.5, 3.5], [0.5, 1, 3.5, 6.5], [3.5, 4, 6.5, 9.5]]


def test_only_what_changed_is_written_back() -> None:
    """State of 4 bytes: the third prompt evicts 0, 0.4 s down and 1 s up."""
    table = serve([[0, 1, 2]], TEN, pair("one_link"), run_s=0.0, state=4.0)
    assert table["written_back_bytes"].tolist() == [0, 0, 4]
    assert (table["copy_finish_s"] - table["copy_start_s"]).tolist() == pytest.approx([1, 1, 1.4])


def test_a_large_expert_evicts_several() -> None:
    table = serve([[0], [1], [2], [1]], [10, 10, 15], pair("one_link"), run_s=0.0)
    assert table["hit"].tolist() == [False, False, False, False]
    same = serve([[0], [1], [2], [1]], [10, 10, 10], pair("one_link"), run_s=0.0)
    assert same["hit"].tolist() == [False, False, False, True]


LAYER = pd.DataFrame({  # 10 bytes/s, 10 FLOP/s; alone: 3 s (bytes), 4 s (FLOP), an exchange
    "operator": ["product", "softmax", "all_reduce"], "in_bytes": [5.0, 10.0, 5.0], "out_bytes": [5.0, 10.0, 5.0],
    "flop": [10.0, 40.0, 0.0], "weight_bytes": [20.0, 0.0, 0.0], "cache_bytes": 0.0,
    "communicates": [False, False, True]})


@pytest.mark.parametrize(("how", "seconds"), [
    (Unfused(), 3 + 4 + 0.5), (Unfused(1.0), 3 + 4 + 0.5 + 3), (Unfused(3.5, ahead=True), 3.5 + 4 + 3.5 + 0.5),
    (Fused(), 5 + 0.5), (Fused(1.0), 6 + 0.5), (Fused(1.0, kernels=2), 7 + 0.5)])
def test_a_layer_fused_and_not(how: Unfused | Fused, seconds: float) -> None:
    """Fused: 50 FLOP (5 s) over 20 + 10 bytes (3 s)."""
    assert layer_s(LAYER, Rates(10, 10, sync_s=0.5), how) == pytest.approx(seconds)


def test_operators_of_llama_by_hand() -> None:
    """One token, context 100, one device: seven matrices are the layer, K and V of 100 tokens are the cache."""
    model = config.load(ModelSpec, "workloads/models/llama-2-7b.yaml")
    layer = operators(model, 1, 1, 1, 100)
    assert layer["weight_bytes"].sum() == 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert layer["cache_bytes"].sum() == 2 * 2 * 100 * 4096
    products = layer[layer["weight_bytes"] > 0]
    assert (products["flop"] == products["weight_bytes"]).all()  # 2 FLOP and 2 bytes a weight
    eighth = operators(model, 8, 1, 1, 100)
    assert eighth["weight_bytes"].sum() * 8 == layer["weight_bytes"].sum()
    quick = Rates(1e30, 1.0)
    head = 32000 * 4096 * 2
    assert pass_s(model, layer, quick, Fused(), 1) == pytest.approx(32 * layer_s(layer, quick, Fused()) + head)


def test_the_best_experts_under_a_bound() -> None:
    """Three categories, experts of 10, 20 and 30 bytes. All best: 0, 1, 2 = 60 bytes. With 50 one must go."""
    quality = [[0.9, 0.5, 0.4], [0.1, 0.8, 0.7], [0.2, 0.3, 0.9]]
    assert choose(quality, [1, 1, 1], [10, 20, 30], 60).tolist() == [0, 1, 2]
    assert choose(quality, [1, 1, 1], [10, 20, 30], 50).tolist() == [0, 2, 2]  # 2.5; without 2: 2.0; without 0: 2.2
    assert choose(quality, [1, 1, 1], [10, 20, 30], 60, active=20).tolist() == [0, 1, 2]
    assert choose(quality, [1, 1, 2], [10, 20, 30], 60, active=20).tolist() == [0, 0, 2]  # mean of 10, 10, 30, 30


NODE = pair("one_link")
LLAMA = config.load(ModelSpec, "workloads/models/llama-2-7b.yaml")


@pytest.mark.parametrize(("call", "message"), [
    (lambda: pair("all_link"), "switch is 'all_link'; did you mean 'all_links'?"),
    (lambda: pair("one_link", room_bytes=0), "room_bytes is 0; give bytes above 0, up to the 2 kB of hbm"),
    (lambda: pair("one_link", store_bytes=9000), "store_bytes is 9000; give bytes above 0, up to the 1 kB of host"),
    (lambda: dataclasses.replace(NODE, store="ddr"), "no tier 'ddr'"),
    (lambda: serve([[4]], TEN, NODE, 1.0), "a prompt asks for expert 4, but sizes has 4"),
    (lambda: serve([[0]], [30.0], NODE, 1.0), "expert 0 has 30 B, but hbm has room for 20 B"),
    (lambda: serve([[0]], np.full(11, 10.0), NODE, 1.0), "11 experts have 110 B, but host has 100 B: the first 10 fit"),
    (lambda: serve([[0]], [10.0, 0.0], NODE, 1.0), "sizes must be one number of bytes above 0"),
    (lambda: serve([[0]], TEN, NODE, 1.0, state=11.0), "state bytes from 0 up to the size of the expert"),
    (lambda: Rates(0, 1), "must have rates above 0"),
    (lambda: layer_s(LAYER, Rates(1, 1), Fused(kernels=0)), "at least one kernel"),
    (lambda: operators(LLAMA, 3, 1, 1, 1), "a tp that divides 32 heads"),
    (lambda: operators(config.load(ModelSpec, "workloads/models/mixtral-8x7b.yaml"), 1, 1, 1, 1), "has experts"),
    (lambda: choose([[1.0]], [1, 1], [1], 1), "quality is (1, 1), demand (2,) and sizes (1,)"),
    (lambda: choose([[np.nan]], [1], [1], 1), "quality has a number that is not finite"),
    (lambda: choose([[1.0]], [1], [10], 5), "no choice of experts keeps to 5 B: the smallest expert has 10 B"),
    (lambda: choose([[1.0]], [1], [10], -5), "sizes and room must be above 0"),
    (lambda: choose([[1.0]], [-1], [10], 5), "demand is [-1.0]; give a share from 0 of each category"),
])
def test_wrong_compositions(call: object, message: str) -> None:
    with pytest.raises(CacheError) as caught:
        call()  # type: ignore[operator]
    assert message in str(caught.value)


def test_the_plainest_node() -> None:
    assert Node(one_link(5.0)).copy_s(10) == pytest.approx(2) and Node(one_link(5.0), 25, 100).holds(10) == (2, 10)
