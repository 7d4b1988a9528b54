"""Routing that engines record: SGLang's recorder, routed_experts of vLLM and SGLang, ExFlow's arrays; by hand."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim import registry
from moesim.placement import PlacementError, read_counts, read_placement, solve, write_placement
from moesim.trace import TraceError, read_trace

# Three hidden layers, the first dense; 3 experts in 4 slots, slot 3 a copy of expert 0 in layer 1 and of 2 in layer 2.
SLOT_MAP = [[0, 1, 2, 0], [0, 1, 2, 0], [0, 1, 2, 2]]


def record(mode: int, lengths: list[int] | None, positions: list[int], slots: list, **more: Any) -> dict[str, Any]:
    """Return a pass as _DetailSinglePassGatherer.collect makes it; *slots* [tokens][MoE layers][2 choices]."""
    padded = np.full((3, len(positions), 8), -1, np.int32)
    padded[1:, :, :2] = np.array(slots).transpose(1, 0, 2)
    counts = np.stack([np.bincount(layer[layer >= 0], minlength=4) for layer in padded])
    return {"forward_pass_id": 5, "rank": 0, "gatherer_key": "primary", "input_ids": [40 + p for p in positions],
            "positions": positions, "extend_seq_lens": lengths, "forward_mode": mode, "topk_ids_of_layer": padded,
            "misc_objects": [], "global_physical_count": counts} | more


# Two prompts of 2 and 1 tokens; both decoded; then a third prompt; then the first and the third (the second has ended).
RECORDS = [record(1, [2, 1], [0, 1, 0], [[[3, 1], [3, 0]], [[1, 2], [0, 1]], [[0, 1], [2, 0]]]),
           record(2, None, [2, 1], [[[2, 0], [1, 0]], [[1, 3], [3, 1]]]),
           record(4, None, [], np.zeros((0, 2, 2))),
           record(1, [1], [0], [[[0, 1], [1, 2]]]),
           record(2, None, [3, 1], [[[3, 2], [1, 0]], [[1, 0], [3, 1]]])]


def save(path: Path, content: Any) -> Path:
    """Save *content* as SGLang does, arrays as tensors."""
    torch = pytest.importorskip("torch")

    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tensors(v) for k, v in value.items()}
        if isinstance(value, list):
            return [tensors(v) for v in value]
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    torch.save(tensors(content), path)
    return path


def recording(path: Path, records: list = RECORDS, slot_map: list = SLOT_MAP) -> Path:
    return save(path, {"records": records, "last_physical_to_logical_map": np.array(slot_map)})


def test_a_recording_of_sglang_becomes_a_trace(tmp_path: Path) -> None:
    trace = read_trace(recording(tmp_path / "expert_distribution_recorder_1.5_0.pt"))
    assert trace.experts.tolist() == [[[0, 1], [2, 0]], [[1, 2], [0, 1]], [[0, 1], [2, 0]], [[2, 0], [1, 0]],
                                      [[1, 0], [2, 1]], [[0, 1], [1, 2]], [[0, 2], [1, 0]], [[1, 0], [2, 1]]]
    columns = {name: trace.tokens[name].tolist() for name in ("request", "step", "position", "phase", "token_id")}
    assert columns == {"request": [0, 0, 1, 0, 1, 2, 0, 2], "step": [0, 0, 0, 1, 1, 2, 3, 3],
                       "position": [0, 1, 0, 2, 1, 0, 3, 1], "phase": [0, 0, 0, 1, 1, 0, 1, 1],
                       "token_id": [40, 41, 40, 42, 41, 40, 43, 41]}
    assert (trace.n_experts, trace.top_k, trace.meta["moe_layer_indices"]) == (3, 2, [1, 2])
    assert trace.meta["ambiguous_joins"] == 0


def test_requests_that_expect_the_same_position_are_counted(tmp_path: Path) -> None:
    one = [[0, 1], [0, 1]]
    records = [record(1, [1, 1], [0, 0], [one, one]), record(2, None, [1, 1], [one, one]), record(2, None, [2], [one]),
               record(2, None, [9, 3], [one, one])]
    trace = read_trace(recording(tmp_path / "x.pt", records))
    assert trace.tokens["request"].tolist() == [0, 1, 0, 1, 0, 2, 0], "9: a request from before the recording"
    assert trace.meta["ambiguous_joins"] == 2


def test_a_request_that_misses_a_pass_has_ended(tmp_path: Path) -> None:
    one = [[0, 1], [0, 1]]
    records = [record(1, [4, 1], [0, 1, 2, 3, 0], [one] * 5), record(2, None, [4, 1], [one] * 2),
               record(2, None, [2], [one]), record(2, None, [3, 5], [one] * 2)]
    trace = read_trace(recording(tmp_path / "x.pt", records))
    assert trace.tokens["request"].tolist() == [0, 0, 0, 0, 1, 0, 1, 1, 1, 2], "0 expected 5, but was not there before"


@pytest.mark.parametrize(("change", "message"), [
    ({"forward_mode": 3}, "record 0: forward_mode is 3, read are 1 (prompts) and 2 (decode); record mode per"),
    ({"positions": [0, 1]}, "record 0: input_ids and positions are no lists of 3 numbers"),
    ({"extend_seq_lens": [2, 2]}, "record 0: extend_seq_lens are no lengths that sum to 3 tokens"),
    ({"topk_ids_of_layer": None}, "record 0: topk_ids_of_layer is no tensor [layers, tokens, choices]"),
    ({"topk_ids_of_layer": np.full((3, 3, 8), 4, np.int32)}, "token row 0, layer 0: choice 0 is slot 4 of 4"),
    ({"topk_ids_of_layer": np.full((3, 3, 8), -1, np.int32)}, "3 layers, 0 of them with choices"),
    ({"topk_ids_of_layer": np.zeros((3, 3, 2), np.int32)}, "token row 0, layer 0: expert 0 is chosen twice in [0, 0]"),
])
def test_recordings_that_contradict_themselves(tmp_path: Path, change: dict, message: str) -> None:
    path = recording(tmp_path / "x.pt", [RECORDS[0] | change])
    with pytest.raises(TraceError) as error:
        read_trace(path)
    assert str(error.value).startswith(f"{path}: {message}"), str(error.value)


def test_counts_are_no_trace_but_a_profile_that_balances_load(tmp_path: Path) -> None:
    counts = np.array([[[0, 0, 0], [3, 1, 0], [2, 2, 0]], [[0, 0, 0], [3, 0, 1], [0, 2, 2]]], np.int32)
    dumped = {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}
    stat = save(tmp_path / "stat.pt", dumped)
    with pytest.raises(TraceError, match=r"mode stat\), not the choices of each token, .*read_counts makes a profile"):
        read_trace(stat)
    profile, layers = read_counts(stat, top_k=2)
    assert profile.counts.tolist() == [[6, 1, 1], [2, 4, 2]] and profile.n_tokens == 4 and layers == (1, 2)
    placement = solve(profile, 2, "eplb", redundant=1)
    assert placement.counts().tolist() == [[2, 2], [2, 1]], "both copies of layer 2's expert 1 are on one device"
    with pytest.raises(PlacementError, match=r"stat.pt: counts tokens per expert, not what one token chose in all"):
        solve(profile, 2, "affinity_sweep")
    write_placement(placement, tmp_path / "p.json", {"name": "sglang", "layers": list(layers), "fill": True})
    rows = json.loads((tmp_path / "p.json").read_text())["physical_to_logical_map"]
    assert rows[0] == [0, 1, 2, 0] and sorted(rows[2]) == [0, 1, 1, 2]


def test_ranks_of_a_recording_are_summed(tmp_path: Path) -> None:
    per_pass = [{k: r[k] for k in ("forward_pass_id", "rank", "global_physical_count")} for r in RECORDS]
    files = [recording(tmp_path / f"{rank}.pt", per_pass) for rank in range(2)]
    with pytest.raises(TraceError, match=r"mode per_pass\), not the choices of each token"):
        read_trace(files[0])
    one = read_trace(recording(tmp_path / "tokens.pt"))
    assert (read_counts(files, top_k=2).profile.counts == 2 * one.counts()).all()
    assert read_counts(files[0], 2).profile.n_tokens == one.n_tokens == 8
    for arguments, message in ((([], 2), "need files of one recording"),
                               ((files[0], 0), "top_k is 0, but a token uses 1"),
                               ((files[0], 2, [0]), r"has 3 layers, 2 with counted tokens, asked for \[0\]")):
        with pytest.raises(PlacementError, match=message):
            read_counts(*arguments)
    with pytest.raises(PlacementError, match="holds neither logical_count nor records"):
        read_counts(save(tmp_path / "x.pt", [1]), 2)
    with pytest.raises(PlacementError, match=r"logical_count is no tensor of whole numbers"):
        read_counts(save(tmp_path / "x.pt", {"logical_count": np.array([[0.5]])}), 2)


def test_placements_in_files_of_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "p.pt", {"physical_to_logical_map": np.array(SLOT_MAP[:1])})
    assert read_placement(path, 2).replicas[0].astype(int).tolist() == [[1, 1], [1, 0], [0, 1]]
    path = save(tmp_path / "p.pt", {"phy2log": np.array([[0, 1]]), "log2phy": np.array([[[0], [1]]]),
                                    "logcnt": np.array([[1, 1]])})
    assert read_placement(path, 2).device_of.tolist() == [[0, 1]]


ROWS = [[[0, 1], [2, 0]], [[3, 1], [0, 1]], [[1, 0], [3, 2]]]  # 3 tokens, 2 layers, top 2
RAW = base64.b64encode(np.array(ROWS, "<i4").tobytes()).decode()
USAGE = {"prompt_tokens": 2, "completion_tokens": 2}


def npy(array: Any) -> str:
    buffer = io.BytesIO()
    np.save(buffer, np.array(array, np.uint8))
    return base64.b64encode(buffer.getvalue()).decode()


SGLANG = {"text": "ab", "meta_info": {"id": "1", "routed_experts": RAW} | USAGE}
OPENAI = {"choices": [{"text": "ab"}], "usage": USAGE, "sglext": {"routed_experts": RAW}}
VLLM_021 = {"choices": [{"routed_experts": ROWS[2:]}], "prompt_routed_experts": ROWS[:2], "usage": USAGE}
VLLM = {"choices": [{"routed_experts": npy(ROWS)}], "usage": USAGE}


@pytest.mark.parametrize("answer", [SGLANG, OPENAI, VLLM_021, VLLM], ids=["sglang", "sglext", "vllm 0.21", "vllm"])
def test_answers_of_engines_become_a_trace(tmp_path: Path, answer: dict) -> None:
    reader = {"name": "routed_experts", "n_experts": 4, "n_layers": 2, "top_k": 2}
    for name, text in (("a.json", json.dumps(answer)), ("b.json", json.dumps([answer, answer])),
                       ("c.jsonl", f"{json.dumps(answer)}\n\n{json.dumps(answer)}\n")):
        (tmp_path / name).write_text(text)
        trace = read_trace(tmp_path / name, reader)
        n = 1 if name == "a.json" else 2
        assert trace.experts.tolist() == ROWS * n and trace.tokens["phase"].tolist() == [0, 0, 1] * n
        assert trace.tokens["request"].tolist() == [i for i in range(n) for _ in ROWS]
        assert trace.tokens["step"].tolist() == [0, 0, 2] * n and trace.meta["moe_layer_indices"] == [0, 1]
    last = read_trace(tmp_path / "a.json", reader | {"layers": [1]})
    assert last.experts.tolist() == [row[1:] for row in ROWS] and last.meta["moe_layer_indices"] == [1]


@pytest.mark.parametrize(("answer", "options", "message"), [
    (SGLANG, {"n_experts": None}, "does not say how many experts a layer has; give it: {name: routed_experts, n_exp"),
    (SGLANG, {"top_k": None}, "answer 0: routed_experts is int32 without a shape; give it: {name: routed_experts, n_l"),
    (SGLANG, {"n_layers": 5}, "answer 0: routed_experts has 48 bytes, no whole tokens of 5 layers x 2 int32"),
    (SGLANG, {"n_experts": 3}, "token row 1, layer 0: expert 3 is out of range"),
    (SGLANG, {"layers": [2]}, "has layers 0 to 1, layers names [2]"),
    ({"meta_info": USAGE}, {}, "answer 0: has no routed_experts; start the engine with --enable-return-routed-experts"),
    ({"meta_info": USAGE | {"routed_experts": RAW[:-1]}}, {}, "answer 0: routed_experts is not base64, or cut short"),
    ({"meta_info": {"routed_experts": RAW}}, {}, "answer 0: says no prompt_tokens and completion_tokens"),
    (SGLANG | {"meta_info": SGLANG["meta_info"] | {"prompt_tokens": 3}}, {},  # type: ignore[operator]
     "answer 0: has 3 rows for 3 prompt and 2 output tokens, which need 4"),
    (VLLM | {"choices": VLLM["choices"] * 2}, {}, "answer 0: has 2 choices, which share a prompt; ask for one (n = 1)"),
    (VLLM_021 | {"prompt_routed_experts": ROWS}, {}, "answer 0: prompt_routed_experts has shape [3, 2, 2], which does"),
    (VLLM_021 | {"prompt_routed_experts": [[1], [2, 3]]}, {}, "answer 0: routed_experts is no array [tokens][layers]"),
    (VLLM_021 | {"prompt_routed_experts": [[[-1, -1]] * 2] * 2}, {}, "token row 0, layer 0: expert -1 is out of range"),
    (VLLM | {"choices": [{"routed_experts": npy([[1]])}]}, {}, "answer 0: routed_experts is uint8 of shape [1, 1]"),
    ([1], {}, "answer 0: is int, no answer"), ([], {}, "holds no answers"), ({}, {}, "answer 0: has no routed_experts"),
])
def test_answers_that_cannot_be_read(tmp_path: Path, answer: Any, options: dict, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(answer))
    with pytest.raises(TraceError) as error:
        read_trace(path, {"name": "routed_experts", "n_experts": 4, "n_layers": 2, "top_k": 2} | options)
    assert str(error.value).startswith(str(path)) and message in str(error.value), str(error.value)


def test_saved_arrays_are_a_request_each(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.array(ROWS, np.int16))
    np.savez(tmp_path / "two.npz", a=np.array(ROWS), b=np.array(ROWS[:1]))
    reader = {"name": "routed_experts", "n_experts": 4, "prompt_tokens": 1}
    assert read_trace(tmp_path / "one.npy", reader).tokens["phase"].tolist() == [0, 1, 1]
    two = read_trace(tmp_path / "two.npz", reader)
    assert two.experts.tolist() == ROWS + ROWS[:1] and two.tokens["request"].tolist() == [0, 0, 0, 1]
    assert registry.make("format", "routed_experts").matches(tmp_path / "one.npy")
    with pytest.raises(TraceError, match=r"one.npy: does not say where the prompts end; give it \(0: all"):
        read_trace(tmp_path / "one.npy")
    np.savez(tmp_path / "two.npz", a=np.array(ROWS), b=np.array(ROWS)[:, :1])
    with pytest.raises(TraceError, match=r"its requests have \[\(1, 2\), \(2, 2\)\] layers and choices"):
        read_trace(tmp_path / "two.npz", reader)
    np.save(tmp_path / "one.npy", np.ones((2, 2, 2)))
    with pytest.raises(TraceError, match=r"is float64 of shape \[2, 2, 2\]"):
        read_trace(tmp_path / "one.npy", reader)
    (tmp_path / "cut.jsonl").write_text('{"meta_info": ')
    with pytest.raises(TraceError, match=r"cut.jsonl: not JSON, or cut short"):
        read_trace(tmp_path / "cut.jsonl")


def test_a_trace_of_exflow(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([[0, 3], [1, 2], [3, 3]]))
    trace = read_trace(tmp_path / "t.npy", {"name": "exflow_npy", "n_experts": 4})
    assert trace.experts.tolist() == [[[0], [3]], [[1], [2]], [[3], [3]]] and trace.top_k == 1
    assert trace.tokens["request"].tolist() == [0, 1, 2], "nothing says which tokens belong together"
    with pytest.raises(TraceError, match="does not say how many experts a layer has; give it: {name: exflow_npy"):
        read_trace(tmp_path / "t.npy")
    with pytest.raises(TraceError, match="t.npy: token row 0, layer 1: expert 3 is out of range"):
        read_trace(tmp_path / "t.npy", {"name": "exflow_npy", "n_experts": 3})
    np.save(tmp_path / "t.npy", np.zeros((2, 2, 2), int))
    with pytest.raises(TraceError, match=r"holds {'array': \[2, 2, 2\]}, not one array \[tokens, layers\]"):
        read_trace(tmp_path / "t.npy", {"name": "exflow_npy", "n_experts": 3})
    (tmp_path / "t.npy").write_bytes((tmp_path / "t.npy").read_bytes()[:50])
    with pytest.raises(TraceError, match="not a NumPy file, or cut short|no format fits"):
        read_trace(tmp_path / "t.npy")
