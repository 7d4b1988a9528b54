"""Pipeline stages on paper: who is in which stage when, what is sent, where weights and bytes are.

The machine is ``serving_machine``'s. In a layer without experts one prompt token takes 88 s of attention and 42 s of
feed-forward: 130 s; a decode on two tokens reads 8 bytes more: 138 s, on three: 146 s. The output head takes 16 s. To
the next stage go two tensors of 4 bytes per token: 5 + 8 = 13 s.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from serving_machine import dense, scenario

import moesim
from moesim import metrics
from moesim.serving.group import example
from moesim.serving.schedulers.vllm import Vllm

TWO = ("model.layers=2", "parallelism.pp=2")
ONE_TOKEN = "scheduler={name: vllm, max_tokens: 1}"
STAGES = ["begin_s_stage_0", "end_s_stage_0", "begin_s_stage_1", "end_s_stage_1"]
DETAILS = pytest.mark.parametrize("detail", ["detail=steps", "detail=events"])


@DETAILS
def test_one_request_goes_through_all_stages_for_every_token(tmp_path: Path, detail: str) -> None:
    """Prompt 130 + 13 + 130 + 16 = 289; decodes 138 + 13 + 138 + 16 = 305 and 146 + 13 + 146 + 16 = 321."""
    result = moesim.simulate(dense(tmp_path, [(7, 1, 3)], 2, *TWO, detail))
    assert result.requests["first_token_s"][0] == 7 + 289 and result.requests["finish_s"][0] == 7 + 289 + 305 + 321
    assert result.steps["start_s"].tolist() == [7, 296, 601]
    assert (result.steps["send_s"] == 13).all() and (result.steps["wait_s"] == 0).all()
    # the same on one device, but for the sends: 130 + 130 + 16 and so on
    whole = moesim.simulate(dense(tmp_path, [(7, 1, 3)], 1, "model.layers=2"))
    assert whole.requests["finish_s"][0] == result.requests["finish_s"][0] - 3 * 13


@DETAILS
def test_two_requests_overlap(tmp_path: Path, detail: str) -> None:
    """A step has one token, so that the requests are in batches of their own, both scheduled at 0; two tokens each."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2), (0, 1, 2)], 2, *TWO, ONE_TOKEN, detail))
    steps = result.steps
    assert steps["start_s"].tolist() == [0, 0, 289, 435]  # the third when the first has come, the fourth likewise
    assert steps["end_s"].tolist() == [289, 435, 594, 748]
    assert steps[STAGES].to_numpy().tolist() == [
        [0, 130, 143, 289],     # 0
        [130, 260, 289, 435],   # 1: arrives at 273, and waits until 289
        [289, 427, 440, 594],   # 0 again: stage 0 was idle from 260 on
        [435, 573, 594, 748]]
    assert result.requests["first_token_s"].tolist() == [289, 435]
    assert result.requests["finish_s"].tolist() == [594, 748]
    assert steps["wait_s"].tolist() == [0, 130 + 16, 0, 8]  # for a stage: 130 and 289 - 273; 594 - 586
    busy = metrics.stages(steps, 748.0)
    assert busy["busy_s"].tolist() == [2 * 130 + 2 * 138, 2 * 146 + 2 * 154]
    assert busy["idle_share"].tolist() == pytest.approx([1 - 536 / 748, 1 - 600 / 748])


@DETAILS
def test_spans_and_links_are_where_stages_are(tmp_path: Path, detail: str) -> None:
    result = moesim.simulate(dense(tmp_path, [(0, 1, 1)], 2, *TWO, detail))
    spans = result.spans[["layer", "device", "server", "phase", "start_s", "end_s"]].to_numpy().tolist()
    assert spans == [[0, 0, "processor", "attention", 0, 88], [0, 0, "processor", "dense", 88, 130],
                     [0, 0, "links", "send", 130, 143],
                     [1, 1, "processor", "attention", 143, 231], [1, 1, "processor", "dense", 231, 273],
                     [-1, 1, "processor", "head", 273, 289]]
    links = result.links.set_index("name")["send_bytes"]
    assert links.to_dict() == {"device0->switch0": 8, "device1->switch0": 0, "switch0->device0": 0,
                               "switch0->device1": 8}
    assert (result.links["bytes"] == result.links["send_bytes"]).all()
    assert any(warning.startswith("parallelism.pp: what a stage sends") for warning in result.meta["warnings"])
    # idle power of both for 289 s, and two watts more while one works: all but the send
    assert result.summary()["energy_j"] == pytest.approx(2 * 289 + 2 * (289 - 13))


@DETAILS
def test_chunks_of_one_prompt_follow_one_another(tmp_path: Path, detail: str) -> None:
    """Two prompt tokens, one a step: both chunks are under way. The first one gives no token: no output head.

    The second looks back at the first: 138 s a stage. It is at stage 1 at 268 + 13 = 281.
    """
    result = moesim.simulate(dense(tmp_path, [(0, 2, 1)], 2, *TWO, ONE_TOKEN, detail))
    assert result.steps["start_s"].tolist() == [0, 0] and result.steps["prefill_tokens"].tolist() == [1, 1]
    assert result.steps[STAGES].to_numpy().tolist() == [[0, 130, 143, 273], [130, 268, 281, 435]]
    assert result.requests["first_token_s"].tolist() == [435]


def test_what_one_step_can_take_is_in_one_batch(tmp_path: Path) -> None:
    """Two requests that fit into one step leave the second stage idle while the first works, as in vLLM."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2), (0, 1, 2)], 2, *TWO, "scheduler={name: vllm}"))
    steps = result.steps
    assert len(steps) == 2 and (steps["start_s"][1:].to_numpy() == steps["end_s"][:-1].to_numpy()).all()


def test_who_comes_while_the_engine_waits_is_seen_when_a_batch_has_come(tmp_path: Path) -> None:
    """0 is under way from 0 to 289, nobody else is there: the engine waits for it, and 1, come at 10, until then."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 1), (10, 1, 1)], 2, *TWO, ONE_TOKEN))
    assert result.requests["scheduled_s"].tolist() == [0, 289] and result.requests["finish_s"].tolist() == [289, 578]


def test_weights_and_memory_are_of_the_layers_of_a_stage(tmp_path: Path) -> None:
    """Three layers on two stages: two on the first. Values: embedding 4; a layer's qkv 12, out 4, gate 2, norms 2 x 2

    are 22; last norm 2 and head 4. Experts have 12 bytes, keys and values 8 bytes per token and layer.
    """
    chosen = {"prompt": [[[0], [0], [0]]], "decode": [[[0], [0], [0]]], "devices": [[0]]}
    result = moesim.simulate(scenario(tmp_path, [(0, 2, 3)], chosen, "hardware.devices_per_node=2", "parallelism.pp=2"))
    assert result.memory["non_expert_bytes"].tolist() == [2 * (4 + 2 * 22), 2 * (22 + 2 + 4)] == [96, 56]
    assert result.memory["expert_bytes"].tolist() == [24, 12]
    assert result.memory["kv_capacity_bytes"].tolist() == [500 - 120, 500 - 68]
    assert result.memory["kv_peak_bytes"].tolist() == [4 * 16, 4 * 8]
    assert sorted(result.spans.loc[result.spans["layer"] == 1, "device"].unique()) == [0]
    assert sorted(result.spans.loc[result.spans["layer"] == 2, "device"].unique()) == [1]


def test_the_stage_with_the_least_room_counts(tmp_path: Path) -> None:
    """Of 185 bytes, stage 0 has 65 left for 16 per token, stage 1 117 for 8: four tokens, not five."""
    chosen = {"prompt": [[[0], [0], [0]]], "decode": [[[0], [0], [0]]], "devices": [[0]]}
    options = ("hardware.devices_per_node=2", "parallelism.pp=2",
               "hardware.device.memory=[{name: hbm, capacity: 370 B, bandwidth: 1 B/s}]")
    result = moesim.simulate(scenario(tmp_path, [(0, 2, 3)], chosen, *options))
    assert result.memory["kv_capacity_bytes"].tolist() == [65, 117]
    assert result.memory["kv_peak_bytes"].tolist() == [64, 32]
    with pytest.raises(moesim.ConfigError, match="KV of 5 tokens, the memory left beside the weights holds 4"):
        moesim.simulate(scenario(tmp_path, [(0, 2, 4)], chosen, *options))


def test_a_table_that_is_both_lies_on_both_ends(tmp_path: Path) -> None:
    """Embedding and head of 4 values, one layer of qkv 12, out 4, up 4, down 2 and norms 2 x 2: 26; last norm 2."""
    tied = moesim.simulate(dense(tmp_path, [(0, 1, 1)], 2, *TWO, "model.tied_embeddings=true"))
    assert tied.memory["non_expert_bytes"].tolist() == [2 * (4 + 26), 2 * (26 + 2 + 4)]
    alone = moesim.simulate(dense(tmp_path, [(0, 1, 1)], 1, "model.layers=2", "model.tied_embeddings=true"))
    assert alone.memory["non_expert_bytes"].tolist() == [2 * (4 + 2 * 26 + 2)]


def test_tensor_parallel_stages_send_shares_and_gather_them(tmp_path: Path) -> None:
    """Each of two devices sends 4 of 8 bytes: 5 + 4; then they give each other their half: 5 + 4 again."""
    heads = ("parallelism.tp=2", "model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}", "model.dense_ffn=2")
    result = moesim.simulate(dense(tmp_path, [(0, 1, 1)], 4, *TWO, *heads))
    assert result.steps["send_s"].tolist() == [18]
    sent = result.links.set_index("name")["send_bytes"]
    assert [sent[f"device{d}->switch0"] for d in range(4)] == [4, 4, 4, 4]
    assert [sent[f"switch0->device{d}"] for d in range(4)] == [0, 0, 8, 8]
    assert result.requests["group"].tolist() == [0]
    reduced = result.links.set_index("name")["attention_reduce_bytes"]
    assert [reduced[f"device{d}->switch0"] for d in range(4)] == [4, 4, 4, 4]  # one layer on each pair
    assert result.memory["kv_peak_bytes"].tolist() == [8, 8, 8, 8]


def test_pipelines_are_islands(tmp_path: Path) -> None:
    """Four devices, two pipelines of two: each serves one request as if it had come to one pipeline."""
    result = moesim.simulate(dense(tmp_path, [(0, 1, 2), (5, 1, 2)], 4, *TWO, "request_router=round_robin"))
    assert result.requests["group"].tolist() == [0, 1]
    assert result.requests["finish_s"].tolist() == [289 + 305, 5 + 289 + 305]
    assert sorted(result.spans.loc[result.spans["phase"] == "head", "device"].unique()) == [1, 3]
    table = metrics.stages(result.steps, 599.0)
    assert table[["island", "stage"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_who_is_under_way_is_in_no_other_batch() -> None:
    """One prompt token each, budget 2: {0, 1}, then {2}; nobody is left until a batch comes."""
    group = example(prompts=[1, 1, 1], outputs=[2, 2, 1], blocks=8)
    scheduler = Vllm(max_tokens=2)
    planned = scheduler.plan(group)
    stepped = group.depart(*planned)
    assert planned[0].tolist() == [0, 1] and stepped.tolist() == [0, 1]
    second = scheduler.plan(group)
    late = group.depart(*second)
    assert second[0].tolist() == [2] and len(scheduler.plan(group)[0]) == 0
    group.arrive(stepped)
    assert group.complete(stepped).tolist() == []
    assert scheduler.plan(group)[0].tolist() == [0, 1]
    group.arrive(late)
    assert group.complete(late).tolist() == [2]


def test_who_is_preempted_under_way_waits_until_its_batch_has_come() -> None:
    """Five blocks of one token. While 1's first token is on its way, 0 needs the memory of 1: it keeps the token.

    Only when that has come it waits, to compute prompt and token again."""
    group = example(prompts=[2, 2], outputs=[3, 3], blocks=5, block=1)
    scheduler = Vllm(max_tokens=3)
    a = scheduler.plan(group)                     # 0: both tokens; 1: its first
    assert [x.tolist() for x in a] == [[0, 1], [2, 1]]
    in_a = group.depart(*a)
    b = scheduler.plan(group)                     # 1: its second; 4 blocks are taken
    assert [x.tolist() for x in b] == [[1], [1]]
    in_b = group.depart(*b)
    group.arrive(in_a)
    group.complete(in_a)
    c = scheduler.plan(group)                     # 0 takes the fifth
    assert [x.tolist() for x in c] == [[0], [1]]
    in_c = group.depart(*c)
    group.arrive(in_c)                      # (in another order than engines have it)
    group.complete(in_c)
    d = scheduler.plan(group)                     # 0 needs a sixth: 1, under way, is thrown out
    assert [x.tolist() for x in d] == [[0], [1]]
    assert group.requests.preemptions.tolist() == [0, 1] and group.n_waiting == 0 and group.pool.free == 1
    group.arrive(in_b)
    group.complete(in_b)
    assert group.n_waiting == 1 and group.requests.produced.tolist() == [2, 1] and group.requests.computed[1] == 0
    in_d = group.depart(*d)
    group.arrive(in_d)
    assert group.complete(in_d).tolist() == [0]
    assert [x.tolist() for x in scheduler.plan(group)] == [[1], [3]]


WRONG = {
    "more stages than layers": (("model.layers=2", "parallelism.pp=4"), 4, (
        "parallelism.pp: 4 stages need a layer each, the model has 2; lower it")),
    "stages that do not divide": (("model.layers=8", "parallelism.pp=3"), 4, (
        "parallelism.pp: 3 stages of 1 devices (parallelism.ep; tp without experts) must divide the 4 of the machine, "
        "a stage and all stages together being an equal part of a node (4 devices) or whole nodes; change pp or ep")),
    "planned ahead": ((*TWO, "engine.asynchronous=true"), 2, (
        "engine.asynchronous: does not go with pipeline stages (parallelism.pp is 2); set it to false (stages have "
        "batches ahead anyway)")),
    "two halves": ((*TWO, "overlap=two_batch", "detail=events"), 2, (
        "overlap: does not go with pipeline stages (parallelism.pp is 2); leave it out")),
    "none": (("parallelism.pp=0",), 2, "parallelism.pp: Input should be greater than or equal to 1, got 0"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_stages_are_refused(tmp_path: Path, what: str) -> None:
    overrides, devices, message = WRONG[what]
    with pytest.raises(moesim.ConfigError) as error:
        dense(tmp_path, [(0, 1, 1)], devices, *overrides)
    assert message in str(error.value)


def test_what_needs_one_stage_is_refused(tmp_path: Path) -> None:
    chosen = {"prompt": [[[0], [0]]], "decode": [[[0], [0]]], "devices": [[0]]}
    (tmp_path / "flows.csv").write_text("src,dst,bytes,start_s\n0,1,1,0\n")
    with pytest.raises(moesim.ConfigError) as error:
        scenario(tmp_path, [(0, 1, 1)], chosen, "hardware.devices_per_node=2", "parallelism.pp=2",
                 "parallelism.mode=context_coherent", "placement.online={every: 5, solver: lpt}", "detail=events",
                 f"background={{flows: {tmp_path}/flows.csv, period: 1 s}}")
    for name in ("parallelism.mode", "placement.online", "background"):
        assert f"{name}: does not go with pipeline stages (parallelism.pp is 2)" in str(error.value)


def test_groups_larger_than_a_stage_are_refused(tmp_path: Path) -> None:
    chosen = {"prompt": [[[0], [0]]], "decode": [[[0], [0]]], "devices": [[0]]}
    with pytest.raises(moesim.ConfigError) as error:
        scenario(tmp_path, [(0, 1, 1)], chosen, "hardware.devices_per_node=2", "parallelism.pp=2", "parallelism.tp=2",
                 "model.attention={kind: gqa, heads: 2, kv_heads: 2, head_dim: 2}")
    assert ("parallelism.pp: 2 devices in 2 stages are 1 each, which must be a multiple of parallelism.tp (2); lower "
            "one of them") in str(error.value)


def test_parts_of_layers() -> None:
    """As vLLM deals 10 layers to 4 stages, 7 to 4, 5 to 4: [2, 3, 3, 2], [2, 2, 2, 1], [1, 1, 2, 1]."""
    sizes = {(layers, pp): [len(part) for part in moesim.scenario.Parallelism(pp=pp).parts(layers)]
             for layers, pp in ((10, 4), (7, 4), (5, 4), (61, 4), (3, 1))}
    assert sizes == {(10, 4): [2, 3, 3, 2], (7, 4): [2, 2, 2, 1], (5, 4): [1, 1, 2, 1], (61, 4): [15, 15, 16, 15],
                     (3, 1): [3]}


def test_stage_columns_are_there_only_with_stages(tmp_path: Path) -> None:
    steps = moesim.simulate(dense(tmp_path, [(0, 1, 2)], 1, "model.layers=2")).steps
    assert not [c for c in steps if "stage" in c] and "send_s" not in steps
    table = metrics.stages(steps, 600.0)
    pd.testing.assert_frame_equal(table, pd.DataFrame({"island": [0], "stage": [0], "busy_s": [568.0],
                                                       "idle_share": [1 - 568 / 600]}))
    assert np.isclose(metrics.breakdown(steps).sum(), 1)
