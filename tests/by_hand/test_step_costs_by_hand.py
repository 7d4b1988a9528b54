"""What a step exchanges and what its operators take, worked on paper (machine: ``serving_machine``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simpy
from serving_machine import scenario

import moesim
from moesim.network import LeafSpine, Network
from moesim.network.collective import Constants
from moesim.placement.placement import CapacityError, Placement
from moesim.sim.operators import Operators
from moesim.sim.server import Server

# --- what a step exchanges -----------------------------------------------------------------------------------------

def test_a_decode_uses_its_own_row(tmp_path: Path) -> None:
    """The prompt and the first decoded token stay on device 0, the second goes to device 1 and back, the third not."""
    chosen = {"prompt": [[[0]]], "decode": [[[0]], [[1]], [[0]]], "devices": [[0], [1]]}
    steps = moesim.simulate(scenario(tmp_path, [(0, 1, 4)], chosen)).steps
    assert steps["dispatch_s"].tolist() == steps["combine_s"].tolist() == [0, 0, 9, 0]  # 5 + 4 bytes


def test_utilisation_is_of_the_whole_run(tmp_path: Path) -> None:
    """Two requests, the second at 1000 s: each sends 4 bytes there and gets 4 back."""
    chosen = {"prompt": [[[1]]], "decode": [[[1]]], "devices": [[0], [1]]}
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1), (1000, 1, 1)], chosen))
    makespan, links = result.summary()["makespan_s"], result.links.set_index("name")
    assert makespan > 1000 and links.loc["device0->switch0", "utilisation"] == pytest.approx(8 / makespan)


@pytest.mark.parametrize(("deduplicate", "bytes_"), [("true", 4), ("false", 8)])
def test_a_token_goes_once_to_a_device_or_once_per_expert(tmp_path: Path, deduplicate: str, bytes_: int) -> None:
    """Both experts of the token are on the other device."""
    chosen = {"prompt": [[[2, 3]]], "decode": [[[2, 3]]], "devices": [[0, 1], [2, 3]]}
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1)], chosen, f"parallelism.deduplicate={deduplicate}"))
    assert result.steps["dispatch_s"].tolist() == result.steps["combine_s"].tolist() == [5 + bytes_]
    links = result.links.set_index("name")
    out, home = links.loc["device0->switch0"], links.loc["switch0->device0"]
    assert (out["dispatch_bytes"], out["combine_bytes"]) == (bytes_, 0)  # there by one link, home by the other
    assert (home["dispatch_bytes"], home["combine_bytes"]) == (0, bytes_)
    assert out["bytes"] == bytes_
    assert out["utilisation"] == pytest.approx(bytes_ / result.summary()["makespan_s"])  # 1 byte/s


# --- what operators take -------------------------------------------------------------------------------------------

def hand_operators(folder: Path, *overrides: str) -> Operators:
    return Operators(scenario(folder, [(0, 1, 1)], None, *overrides))


def test_seconds_of_operators_are_their_bytes(tmp_path: Path) -> None:
    """Memory moves 1 byte/s. [m, k] x [k, n] moves 2 (m (n + k) + n k) bytes, a norm 16 per token."""
    operators, m = hand_operators(tmp_path), np.array([0, 1, 3])
    # qkv n = 6: 16 m + 24; out n = 2: 8 m + 8; norm 16 m
    assert operators.projections(m).tolist() == [0, 40 + 32, 3 * 40 + 32]
    assert operators.head(m, m).tolist() == [0, 8 + 8, 24 + 8]
    assert operators.projections(np.array([[3], [1]])).tolist() == [[152], [72]]  # asked again, in another shape
    # per token of context key and value, 4 values; per request query and output, 4 values
    assert operators.decode_attention(np.array([0, 1, 2]), np.array([0, 3, 7])).tolist() == [0, 2 * 16, 2 * 36]
    # two experts have tokens: 3 matrices of 2 values each, 12 bytes; 3 tokens in and out, 8 bytes each
    assert operators.experts(np.array([[2, 0, 1], [0, 0, 0]])).tolist() == [2 * 12 + 3 * 8, 0]


def test_narrow_keys_and_values_are_read_faster(tmp_path: Path) -> None:
    """In fp8 a token of context is 4 bytes, not 8; query and output stay 4 values of 2 bytes."""
    operators = hand_operators(tmp_path, "model.dtype.kv=fp8")
    assert operators.decode_attention(np.array([1, 2]), np.array([3, 7])).tolist() == [3 * 4 + 8, 7 * 4 + 16]


def test_layers_without_experts_and_shared_experts(tmp_path: Path) -> None:
    other = ("model.layers=2", "model.moe.layers=[1]", "model.dense_ffn=4", "model.moe.shared_ffn=2")
    heads = "model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}"
    m = np.array([0, 1, 3])
    for tp, dense in ((1, lambda m: 48 * m + 48), (2, lambda m: 36 * m + 24)):
        made = hand_operators(tmp_path, *other, heads, "hardware.devices_per_node=2", f"parallelism.tp={tp}")
        # whole: up n = 8: 20 m + 32, down k = 4: 12 m + 16; half: up n = 4: 12 m + 16, down k = 2: 8 m + 8; norm 16 m
        assert made.dense(m).tolist() == [0, *dense(m[1:])]
        # whole on every device, without a norm of their own: up n = 4: 12 m + 16, down k = 2: 8 m + 8
        assert made.shared(m).tolist() == [0, 20 + 24, 60 + 24]
        # the output head is shared: n = 2: 8 m + 8, n = 1: 6 m + 4
        assert made.head(m, m).tolist() == ([0, 16, 32] if tp == 1 else [0, 10, 22])


def test_experts_without_a_gate_have_two_matrices(tmp_path: Path) -> None:
    operators = hand_operators(tmp_path, "model.gated_ffn=false")
    assert operators.experts(np.array([[2, 0, 1]])).tolist() == [2 * 8 + 3 * 8]


def test_a_window_shortens_what_a_prompt_attends_to(tmp_path: Path) -> None:
    """1 FLOP/s and free memory: 2 x (2 + 2) FLOP for each of 1 + 2 + 3 + 4 pairs, or 1 + 2 + 2 + 2 in a window of 2."""
    free = "hardware.device.processor={peak: {bf16: 1 FLOP/s}, bandwidth: 1 PB/s, multiprocessors: 1}"
    operators, prompt, past = hand_operators(tmp_path, free), np.array([1, 4]), np.array([0, 0])
    assert operators.prefill_attention(prompt, past, 0).tolist() == [8, 80]
    assert operators.prefill_attention(prompt, past, 2).tolist() == [8, 56]
    for wide in (4, 9):
        assert operators.prefill_attention(prompt, past, wide).tolist() == [8, 80]


@pytest.mark.parametrize("window", [0, 1, 3, 5, 12, 40])
@pytest.mark.parametrize("chunks", [[12], [5, 7], [1, 1, 10], [4, 4, 4], [11, 1]])
def test_chunks_of_a_prompt_have_the_pairs_of_the_whole(tmp_path: Path, window: int, chunks: list[int]) -> None:
    """8 FLOP for each token and each that it looks back at, itself too: min(i, window) for the i-th."""
    free = "hardware.device.processor={peak: {bf16: 1 FLOP/s}, bandwidth: 1 PB/s, multiprocessors: 1}"
    tokens, past = np.array(chunks), np.cumsum(chunks) - chunks
    seconds = hand_operators(tmp_path, free).prefill_attention(tokens, past, window)
    pairs = [sum(min(i, window or i) for i in range(p + 1, p + n + 1)) for p, n in zip(past, tokens, strict=True)]
    assert seconds == pytest.approx(8 * np.array(pairs))
    assert sum(pairs) == sum(min(i, window or i) for i in range(1, 13))


def test_a_server_does_one_thing_after_the_other() -> None:
    """A job of 3 s, at once another of 2 s; a third at 10 s, when nothing is left to do."""
    env = simpy.Environment()
    server = Server(env)
    assert [server.serve(seconds) for seconds in (3.0, 2.0)] == [0, 3]
    env.run(until=10)
    assert server.serve(1.0) == 10
    env.run(until=server.done())
    assert (env.now, server.free_at) == (11, 11)


@pytest.mark.parametrize(("kept", "steps"), [(0, []), (2, [0, 1]), (-1, [0, 1, 2])])
def test_spans_of_as_many_steps_as_asked_for(tmp_path: Path, kept: int, steps: list[int]) -> None:
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 3)], None, f"span_steps={kept}"))
    assert result.spans["step"].unique().tolist() == steps and len(result.steps) == 3


def test_columns_of_a_step_are_means_over_devices(tmp_path: Path) -> None:
    """Both requests run on device 0, whose group has the expert; device 1 waits. Its links are as busy as the other's.

    Expert 1 is never used: device 0 works 88 s + 38 s + 20 s + 16 s (test_two_devices), device 1 nothing at all.
    """
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0], [1]]}
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1)], chosen))
    row = result.steps.iloc[0]
    assert [row[f"{phase}_s"] for phase in ("attention", "gate", "experts", "head")] == [44, 19, 10, 8]
    assert (row["wait_s"], row["end_s"], row["load_max_over_mean"]) == (81, 162, 2)


def test_spans_of_tensor_parallel_reduces_are_on_the_links(tmp_path: Path) -> None:
    chosen = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0], [1]]}
    heads = ("parallelism.tp=2", "model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}")
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1)], chosen, *heads))
    servers = result.spans.groupby("phase")["server"].unique()
    assert servers["attention"].tolist() == ["processor"] and servers["attention_reduce"].tolist() == ["links"]
    # One token's hidden state, 4 bytes, in a ring of two: 2 x 1/2 x 4 bytes on every link.
    assert result.links["attention_reduce_bytes"].tolist() == [4] * 4
    assert result.steps["attention_reduce_s"].tolist() == [5 + 4]


# --- what the other pages of by_hand leave out ---------------------------------------------------------------------

IDEAL = Constants(bandwidth=10e9, efficiency=1.0, startup=0.0, ramp=0.0)


def test_norms_stay_in_16_bit(tmp_path: Path) -> None:
    """Tables 8 values, qkv 12, out 4, gate 2 in fp8; norms 6 values of 2 bytes."""
    result = moesim.simulate(scenario(tmp_path, [(0, 1, 1)], None, "model.dtype.weights=fp8"))
    assert result.memory["non_expert_bytes"].tolist() == [26 + 12]


@pytest.mark.parametrize("nodes", [1, 3])
def test_all_gather_of_three(nodes: int) -> None:
    """Of 1, 2 and 4 kB everybody passes on 7 less what the next has brought: 5, 3 and 6; and gets what is passed."""
    fabric = LeafSpine(leaves=1, spines=1, hosts_per_leaf=3, link="10 GB/s", latency="0 s")
    net = Network(3, 3 // nodes, IDEAL, fabric, IDEAL) if nodes > 1 else Network(3, 3, IDEAL)
    cost = net.all_gather(1e3 * np.array([1, 2, 4]))
    first = 6 if nodes > 1 else 0  # ports of the fabric come after those of the scale-up switches
    assert (cost.loads[first:first + 6] / 1e3).tolist() == [5, 3, 6, 6, 5, 3]
    assert cost.time_s == pytest.approx(6e3 / 10e9)


def test_groups_that_share_a_link_wait_for_each_other() -> None:
    """Six nodes of one device, two to a leaf, groups of three: 0 1 | 2 3 | 4 5. Both 2 and 3 send out of leaf 1.

    A ring of three puts 2 x 2/3 of 12 kB on a link: 16 kB, and the uplink of leaf 1 has both groups'.
    """
    fabric = LeafSpine(leaves=3, spines=1, hosts_per_leaf=2, link="10 GB/s", latency="0 s")
    cost = Network(6, 1, IDEAL, fabric, IDEAL).all_reduce(np.array([12e3, 12e3]), 3)
    assert cost.time_s == pytest.approx([32e3 / 10e9] * 2)
    alone = Network(6, 1, IDEAL, fabric, IDEAL).all_reduce(np.array([12e3, 0]), 3)
    assert alone.time_s == pytest.approx([16e3 / 10e9, 0])


def test_of_links_in_a_row_the_slowest_counts() -> None:
    fabric = LeafSpine(leaves=2, spines=1, hosts_per_leaf=1, link="10 GB/s", uplink="100 GB/s", latency="0 s")
    cost = Network(2, 1, IDEAL, fabric, IDEAL).all_to_all(np.array([[0, 10e3], [0, 0]]))
    assert cost.time_s == pytest.approx(10e3 / 10e9)


def test_devices_needed_are_rounded_up() -> None:
    with pytest.raises(CapacityError, match="use 5 devices of this kind or more"):
        Placement.from_device_of([[0, 1, 0, 1]] * 2, 2).check_capacity(10e9, 17e9)  # 80 / 17 = 4.7


def test_uneven_shares_of_a_sum_take_as_long_as_the_largest_needs() -> None:
    """Shares of 1, 2 and 4 kB in a ring of three: past the first device go 6, which even shares of 9 kB would do."""
    net = Network(3, 3, IDEAL)
    cost, even = net.scatter_sums(1e3 * np.array([1, 2, 4])), net.reduce_scatter(np.array([7e3]), 3)
    assert cost.time_s == pytest.approx(6e3 / 10e9)
    assert cost.loads.tolist() == even.loads.tolist()
    same = net.scatter_sums(np.full(3, 7e3 / 3))
    assert same.time_s == pytest.approx(even.time_s)
    pair = Network(2, 2, IDEAL).scatter_sums(np.array([0.0, 8e3]))
    assert pair.time_s == pytest.approx(8e3 / 10e9), "one device sends all that it made of the other's tokens"
    assert Network(1, 1, IDEAL).scatter_sums(np.array([8e3])).time_s == 0
