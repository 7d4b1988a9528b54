"""A routing trace worked by hand: four tokens, two layers, three experts, two ranked, one used."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moesim.trace import RoutingTrace, TraceError, read_trace

#  request 7: prompt of two tokens, one decoded; request 9: a prompt of one token
EXPERTS = [
    [[0, 1], [2, 0]],
    [[0, 2], [1, 0]],
    [[1, 0], [2, 1]],
    [[2, 0], [2, 0]],
]
PROBS = np.array([0.75, 0.25]) * np.ones((4, 2, 1))


def build(**changes: object) -> RoutingTrace:
    arrays: dict = {"experts": EXPERTS, "n_experts": 3, "top_k": 1, "request": [7, 7, 7, 9], "phase": [0, 0, 1, 0],
                    "probs": PROBS, "domain": ["code", "code", "code", "prose"], "model": "hand"}
    return RoutingTrace.from_arrays(**(arrays | changes))


def test_every_column_is_as_worked_by_hand() -> None:
    trace = build()
    table = pd.DataFrame({
        "request": [7, 7, 7, 9],
        "step": [0, 0, 2, 0],       # prompts run in step 0, a decoded token at its position
        "position": [0, 1, 2, 0],
        "phase": [0, 0, 1, 0],
        "token_id": [-1, -1, -1, -1],
        "domain": ["code", "code", "code", "prose"],
    })
    dtypes = {"request": "int32", "step": "int32", "position": "int32", "phase": "uint8", "token_id": "int32",
              "domain": pd.CategoricalDtype(["code", "prose"])}
    pd.testing.assert_frame_equal(trace.tokens, table.astype(dtypes))
    assert (trace.n_tokens, trace.n_layers, trace.n_ranked, trace.n_experts, trace.top_k) == (4, 2, 2, 3, 1)
    assert trace.experts.dtype == np.uint16 and trace.probs is not None and trace.probs.dtype == np.float16
    assert trace.chosen.tolist() == [[[0], [2]], [[0], [1]], [[1], [2]], [[2], [2]]]
    assert trace.domains() == ("code", "prose") and trace.requests.tolist() == [7, 9]
    assert trace.meta == {
        "version": 1, "model": "hand", "revision": None, "moe_layer_indices": None, "renormalised": None,
        "origin": None, "licence": None, "synthetic": False, "n_layers": 2, "n_experts": 3, "top_k": 1, "n_ranked": 2}


def test_counts_and_transitions_are_as_worked_by_hand() -> None:
    trace = build()
    assert trace.counts().tolist() == [[2, 1, 1], [0, 1, 3]]
    assert trace.counts(step=2).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert trace.transitions().tolist() == [[[0, 1, 1], [0, 0, 1], [0, 0, 1]]]
    both = build(top_k=2)
    assert both.counts().tolist() == [[4, 2, 2], [3, 2, 3]]
    assert both.transitions().tolist() == trace.transitions().tolist()
    assert both.transitions(top1=False).tolist() == [[[3, 2, 3], [1, 1, 2], [2, 1, 1]]]


def test_parts_of_a_trace_are_traces() -> None:
    trace = build()
    assert trace.phase("decode").tokens["position"].tolist() == [2]
    assert trace.phase("prefill").n_tokens == 3
    assert trace.of_requests([9]).experts.tolist() == [EXPERTS[3]]
    prose = trace.of_domain("prose")
    assert prose.domains() == ("prose",) and prose.probs is not None and prose.probs.shape == (1, 2, 2)
    assert trace.select([0, 3]).tokens["request"].tolist() == [7, 9]
    assert trace.select(trace.tokens["position"] > 0).n_tokens == 2


def test_arrays_cannot_be_changed_afterwards() -> None:
    trace = build()
    with pytest.raises(ValueError, match="read-only"):
        trace.experts[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        trace.probs[0, 0, 0] = 1


def test_from_arrays_does_not_swallow_columns_as_meta() -> None:
    trace = build(token_id=[5, 6, 7, 8], step=[0, 0, 4, 1])
    assert trace.tokens["token_id"].tolist() == [5, 6, 7, 8] and trace.tokens["step"].tolist() == [0, 0, 4, 1]
    assert "token_id" not in trace.meta and "step" not in trace.meta


def test_split_keeps_requests_whole_and_ignores_the_order_of_rows() -> None:
    requests = np.repeat(np.arange(10), 3)
    experts = np.zeros((30, 1, 1), dtype=int)
    trace = RoutingTrace.from_arrays(experts, 2, 1, request=requests)
    backwards = RoutingTrace.from_arrays(experts, 2, 1, request=requests[::-1])
    seen, unseen = trace.profile(0.3, seed=4), trace.evaluation(0.3, seed=4)
    assert len(seen.requests) == 3 and len(unseen.requests) == 7
    assert sorted([*seen.requests, *unseen.requests]) == list(range(10))
    assert backwards.profile(0.3, seed=4).requests.tolist() == seen.requests.tolist()
    assert len({tuple(trace.profile(0.3, seed=s).requests) for s in range(20)}) > 10
    assert len(trace.profile(0.01).requests) == 1 and len(trace.evaluation(0.99).requests) == 1


TWICE = [[[0, 1], [2, 2]], *EXPERTS[1:]]
HIGH = [*EXPERTS[:3], [[2, 0], [3, 0]]]
PADDED = [*EXPERTS[:3], [[2, 0], [-1, 0]]]
UNSORTED = PROBS.copy()
UNSORTED[1, 1] = [0.25, 0.75]
BIG, LOGITS, NAN = PROBS.copy(), PROBS.copy(), PROBS.copy()
BIG[2, 0, 0], LOGITS[2, 0, 0], NAN[2, 0, 0] = 1.01, 1e6, np.nan


@pytest.mark.parametrize(("changes", "message"), [
    ({"experts": HIGH}, "token row 3, layer 1: expert 3 is out of range, ids go from 0 to 2 (n_experts = 3); "
     "ranked: [3, 0]; count experts from 0 and leave shared experts out, or raise n_experts"),
    ({"experts": PADDED}, "token row 3, layer 1: expert -1 is out of range, ids go from 0 to 2; drop padding (-1) "
     "rows"),
    ({"experts": TWICE}, "token row 0, layer 1: expert 2 is chosen twice in [2, 2]; a gate chooses distinct experts: "
     "remove padding or placeholder rows, map replicas to logical experts"),
    ({"experts": [[0, 1]]}, "request has shape [4] but experts has 1 tokens"),
    ({"experts": np.zeros((4, 0, 2), int)}, "experts has shape [4, 0, 2]; it must be [tokens, layers, ranked] with at "
     "least one of each"),
    ({"experts": np.ones((4, 2, 2))}, "experts has dtype float64; expert ids are integers"),
    ({"top_k": 3}, "top_k is 3 but experts has 2 ranked candidates per layer (its last axis); top_k lies in "
     "1..n_ranked"),
    ({"n_experts": 70000}, "n_experts is 70000; ids are uint16, so it lies in 1..65536"),
    ({"probs": UNSORTED}, "token row 1, layer 1: probabilities [0.25, 0.75] do not descend; sort the candidates of "
     "every (token, layer) by probability first: some gates return them unsorted"),
    ({"probs": BIG}, "token row 2, layer 0: probability 1.009765625 lies outside [0, 1]; store what the gate's "
     "softmax or sigmoid gave, not logits and not weights scaled afterwards"),
    ({"probs": LOGITS}, "token row 2, layer 0: probability inf lies outside [0, 1]; store what the gate's softmax or "
     "sigmoid gave, not logits and not weights scaled afterwards"),
    ({"probs": NAN}, "token row 2, layer 0: probability nan lies outside [0, 1]; store what the gate's softmax or "
     "sigmoid gave, not logits and not weights scaled afterwards"),
    ({"probs": PROBS[:, :1]}, "probs has shape [4, 1, 2] but experts has [4, 2, 2]; one probability belongs to each "
     "ranked expert"),
    ({"probs": np.ones((4, 2, 2), int)}, "probs has dtype int64; probabilities are floats, stored as float16"),
    ({"position": [0, 1, 1, 0]}, "token row 2: position 1 of request 7 comes after position 1 (row 1); rows of one "
     "request follow its tokens, each once"),
    ({"step": [0, 3, 2, 0]}, "token row 2: step 2 of request 7 comes after step 3 (row 1); a token cannot run before "
     "the ones it attends to; pass step= if the default (prefill 0, decode its position) does not fit, as with "
     "several turns"),
    ({"phase": [0, 0, 2, 0]}, "token row 2: phase is 2, outside 0..1; 0 is prefill, 1 is decode"),
    ({"position": [-1, 0, 1, 0]}, "token row 0: position is -1, outside 0..2147483647; count from 0"),
    ({"token_id": -2}, "token row 0: token_id is -2, outside -1..2147483647; -1 means unknown"),
    ({"request": [0.0, 1.0, 2.0, 3.0]}, "column 'request' has dtype float64; it must hold integers without gaps"),
    ({"domain": [1, 2, 3, 4]}, "column 'domain' has categories [1, 2, 3]; domains are text"),
    ({"request": [1, 2]}, "request has shape [2] but experts has 4 tokens"),
    ({"n_layers": 5}, "meta says n_layers = 5 but the trace has 2; leave it out"),
    ({"version": 2}, "meta says version = 2 but the trace has 1; this moesim reads version 1"),
    ({"moe_layer_indices": [3]}, "meta names 1 moe_layer_indices but the trace has 2 layers"),
    ({"note": np.arange(3)}, "meta is stored as JSON: Object of type ndarray is not JSON serializable; convert arrays "
     "with .tolist()"),
])
def test_what_is_wrong_is_said_with_place_fact_and_remedy(changes: dict, message: str) -> None:
    with pytest.raises(TraceError) as error:
        build(**changes)
    assert str(error.value) == message


@pytest.mark.parametrize(("use", "message"), [
    (lambda t: t.of_requests([9]).profile(), "the trace has one request (9); a split into profile and evaluation keeps "
     "requests whole and needs two: capture more, or give rows their true request ids"),
    (lambda t: t.profile(1.0), "fraction is 1.0; the profile part is more than 0 and less than 1 of the trace"),
    (lambda t: t.phase("decod"), "unknown phase 'decod'; did you mean 'decode'?"),
    (lambda t: t.of_requests([9]).phase("decode"), "the trace has no decode tokens, only prefill"),
    (lambda t: t.of_domain("pros"), "the trace has no domain 'pros'; did you mean 'prose'?"),
    (lambda t: t.of_requests([9, 8]), "request 8 is not in the trace; it has 2 requests, 7..9"),
    (lambda t: t.counts(step=1), "step 1 is not in the trace; steps go from 0 to 2"),
    (lambda t: t.select([4]), "row 4 is selected but the trace has 4 tokens, from row 0"),
    (lambda t: t.select([True]), "the mask has shape [1] but the trace has 4 tokens"),
    (lambda t: t.select([]), "the selection keeps none of the 4 tokens; a trace needs at least one"),
    (lambda t: t.select([0.5]), "rows has dtype float64 and shape [1]; give a mask or row numbers"),
    (lambda t: t.select([1, 0]), "token row 1: position 0 of request 7 comes after position 1 (row 0); rows of one "
     "request follow its tokens, each once"),
    (lambda t: RoutingTrace(t.tokens.rename(columns={"phase": "phases"}), t.experts, None, 3, 1),
     "tokens has no column 'phase'; did you mean 'phases'?"),
    (lambda t: RoutingTrace(t.tokens.assign(domian="x"), t.experts, None, 3, 1),
     "tokens has an unknown column 'domian'; did you mean 'domain'?"),
    (lambda t: RoutingTrace(t.tokens[:2], t.experts, None, 3, 1),
     "tokens has 2 rows but experts has 4; one row belongs to each token"),
    (lambda t: t.write("no/such/folder/t.parquet"),
     "no/such/folder/t.parquet: the folder no/such/folder does not exist; create it first"),
])
def test_wrong_use_is_told(use: object, message: str) -> None:
    with pytest.raises(TraceError) as error:
        use(build())  # type: ignore[operator]
    assert str(error.value) == message


def test_missing_and_unknown_files_are_told(tmp_path) -> None:
    build().write(tmp_path / "decode.parquet")
    (tmp_path / "decode.csv").write_text("a,b\n")
    with pytest.raises(TraceError, match=r"decode.parqet: no such file; did you mean 'decode.parquet'\?"):
        read_trace(tmp_path / "decode.parqet")
    with pytest.raises(TraceError, match=r"no format fits a file that ends in '.csv'; known: .*moesim_parquet, npz"):
        read_trace(tmp_path / "decode.csv")
    with pytest.raises(ValueError, match=r"unknown format 'moesim_parqet'; did you mean 'moesim_parquet'\?"):
        read_trace(tmp_path / "decode.parquet", format="moesim_parqet")
    assert read_trace(tmp_path / "decode.parquet", format="moesim_parquet").n_tokens == 4
