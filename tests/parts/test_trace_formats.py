"""Readers of other tools' files, and the contract that every reader keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moesim import registry
from moesim.trace import RoutingTrace, TraceError, read_trace

META = {"model": "tiny", "num_experts": 4, "top_k": 2, "phase": "decode only", "source": "by hand", "licence": "MIT",
        "moe_layers": [1, 2], "weights": "softmax, not renormalised", "num_shared_experts": 1}


def write(path: Path, without: tuple[str, ...] = (), meta: dict | None = None, **more: object) -> Path:
    arrays: dict = {"topk_ids": np.array([[[0, 1], [3, 2]], [[2, 1], [0, 1]], [[1, 0], [2, 3]]], np.uint8),
                    "seq_id": np.array([0, 0, 1], np.int32), "pos": np.array([5, 6, 9], np.int32),
                    "meta": json.dumps(META | (meta or {}))}
    np.savez(path, **{k: v for k, v in (arrays | more).items() if k not in without})
    return path


def test_an_archive_of_choices_becomes_a_trace(tmp_path: Path) -> None:
    weights = np.full((3, 2, 2), [0.6, 0.3], np.float16)
    labels = json.dumps([["mmlu", "law", 5, 2], ["gpqa", "physics", 9, 1]])
    trace = read_trace(write(tmp_path / "t.npz", topk_weights=weights, labels=labels))
    assert trace.tokens["domain"].tolist() == ["mmlu", "mmlu", "gpqa"]
    assert trace.tokens["step"].tolist() == trace.tokens["position"].tolist() == [5, 6, 9]
    assert trace.tokens["phase"].tolist() == [1, 1, 1]
    assert trace.experts.dtype == np.uint16 and trace.experts[1].tolist() == [[2, 1], [0, 1]]
    assert trace.probs is not None and (trace.probs == weights).all()
    assert trace.meta == {
        "version": 1, "model": "tiny", "revision": None, "moe_layer_indices": [1, 2], "renormalised": False,
        "origin": "by hand", "licence": "MIT", "synthetic": False, "weights": "softmax, not renormalised",
        "n_shared_experts": 1, "n_layers": 2, "n_experts": 4, "top_k": 2, "n_ranked": 2}


def test_without_labels_and_weights(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t.npz", meta={"domain": "intent", "phase": "prefill (teacher-forced)"}))
    assert trace.domains() == ("intent",) and trace.tokens["step"].tolist() == [0, 0, 0] and trace.probs is None
    assert trace.meta["renormalised"] is None, "nothing is known about weights that are not there"


@pytest.mark.parametrize(("changes", "message"), [
    ({"without": ("topk_ids", "pos")}, "not a routing trace, it lacks topk_ids, pos; it holds seq_id, meta"),
    ({"meta": {"phase": "both"}}, "meta says phase 'both'; it must begin with 'prefill' or 'decode'"),
    ({"meta": {"num_experts": 3}}, "token row 0, layer 1: expert 3 is out of range, ids go from 0 to 2 (n_experts = "
     "3); ranked: [3, 2]; count experts from 0 and leave shared experts out, or raise n_experts"),
    ({"labels": json.dumps([["mmlu", "law", 5, 2]])}, "seq_id 1 has no label; labels has 1 entries"),
    ({"labels": "["}, "labels is not JSON"),
    ({"without": ("topk_ids",), "count_frequency": np.ones((1, 2, 4))}, "holds how often each expert is used by whole "
     "groups of tokens (count_frequency[group, layer, expert]), not the choices of each token, so no trace can be "
     "made of it; read it with numpy.load for comparison with counts and transitions of a trace"),
    ({"without": ("topk_ids",), "olmoe__expert_counts__c4": np.ones((3, 4))}, "holds expert counts and cross-layer "
     "pair counts per model and domain, summed over tokens, not the choices of each token, so no trace can be made of "
     "it; read it with numpy.load for comparison with counts and transitions of a trace"),
])
def test_archives_that_are_no_trace_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = write(tmp_path / "t.npz", **changes)
    with pytest.raises(TraceError) as error:
        read_trace(path)
    assert str(error.value) == f"{path}: {message}"


def test_an_archive_without_sizes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "t.npz", without=("meta",))
    with pytest.raises(TraceError, match="lacks meta"):
        read_trace(tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", topk_ids=[[[0]]], seq_id=[0], pos=[0], meta=json.dumps({"top_k": 1}))
    with pytest.raises(TraceError, match="meta lacks num_experts, phase"):
        read_trace(tmp_path / "t.npz")
    (tmp_path / "t.npz").write_bytes(b"junk")
    with pytest.raises(TraceError, match="not a readable NumPy archive"):
        read_trace(tmp_path / "t.npz")


def test_a_folder_of_esft_text_becomes_a_trace(tmp_path: Path) -> None:
    folder = tmp_path / "law"
    folder.mkdir()
    (folder / "expert_weights_2.txt").write_text("1\t2\t\t0.5\t0.25\n3\t0\t2\t1\t\t0.1\t0.2\t0.3\t0.3\n")
    (folder / "expert_weights_10.txt").write_text("0\t2\t\t0.1\t0.25\n3\t1\t2\t0\t\t0.1\t0.2\t0.3\t0.0\n")
    (folder / "summary.json").write_text("{}")
    assert registry.make("format", "esft_text").matches(folder)
    trace = registry.make("format", {"name": "esft_text", "n_experts": 4, "top_k": 2}).read(folder)
    assert trace.experts.tolist() == [[[1, 2], [2, 0]], [[0, 3], [1, 3]], [[2, 1], [2, 0]]]
    assert trace.probs is not None and trace.probs[1].tolist() == np.float16([[0.2, 0.1], [0.2, 0.1]]).tolist()
    assert trace.tokens["request"].tolist() == [0, 1, 1] and trace.tokens["position"].tolist() == [0, 0, 1]
    assert trace.domains() == ("law",) and trace.meta["moe_layer_indices"] == [2, 10]
    with pytest.raises(TraceError, match=r"expert_weights_2.txt:1: not ids, an empty cell and as many weights"):
        read_trace(folder)  # as DeepSeek-V2-Lite: top 6
    (folder / "expert_weights_10.txt").write_text("0\t2\t\t0.1\t0.25\n")
    with pytest.raises(TraceError, match=r"expert_weights_10.txt: has sequences of \[1\]... tokens, the first layer's"):
        registry.make("format", {"name": "esft_text", "n_experts": 4, "top_k": 2}).read(folder)


@pytest.mark.parametrize("name", registry.names("format"))
def test_every_reader_knows_its_own_and_refuses_junk(name: str, tmp_path: Path) -> None:
    reader = registry.make("format", name)
    assert registry.summary("format", name)
    assert not reader.matches(tmp_path / "something.else")
    junk = tmp_path / "junk"
    junk.write_bytes(b"\x00\x01 junk")
    with pytest.raises(TraceError, match="junk"):
        reader.read(junk)


@pytest.mark.parametrize("name", registry.names("transform"))
def test_every_transform_keeps_tokens_is_seeded_and_says_what_it_did(name: str) -> None:
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((60, 3, 6)), axis=2)[:, :, :3]
    probs = np.sort(rng.random((60, 3, 3)), axis=2)[:, :, ::-1]
    trace = RoutingTrace.from_arrays(experts, 6, 2, request=np.repeat(np.arange(6), 10), probs=probs, model="x")
    transform = registry.make("transform", name)
    done = transform.apply(trace, seed=3)
    assert done.tokens.equals(trace.tokens) and done.experts.shape == trace.experts.shape and done.top_k == trace.top_k
    assert done.probs is not None, "probabilities belong to the choices and move with them"
    assert done.meta["transforms"] == [{"name": name, "seed": 3}] and done.meta["model"] == "x"
    assert (done.experts == transform.apply(trace, seed=3).experts).all()
    assert (done.experts != transform.apply(trace, seed=4).experts).any()
    twice = transform.apply(done, seed=5)
    assert [step["seed"] for step in twice.meta["transforms"]] == [3, 5]
    assert "transforms" not in trace.meta
