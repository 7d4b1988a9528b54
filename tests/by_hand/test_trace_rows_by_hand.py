"""Which trace rows each request uses, worked on paper (machine: ``serving_machine``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from serving_machine import scenario

import moesim
from moesim.sim.inputs import Inputs, prepare


def captured(folder: Path, lengths: dict[int, tuple[int, int]], domains: dict[int, str] | None = None,
             **overrides: str) -> moesim.Scenario:
    """Write a trace as captures do, step by step, of requests with so many prompt and decode rows; load a scenario."""
    made = scenario(folder, [(0, 1, 1)])
    rows = [(request, position, position >= prompt) for request, (prompt, decode) in lengths.items()
            for position in range(prompt + decode)]
    rows.sort(key=lambda row: (row[1] if row[2] else 0, row[1], row[0]))  # all prompts first, interleaved
    request, position, decode = np.array(rows).T
    moesim.RoutingTrace.from_arrays(
        np.zeros((len(rows), 1, 1), int), 1, 1, request=request, position=position, phase=decode, model="hand",
        domain=[(domains or {}).get(r, "text") for r in request]).write(folder / "trace.parquet")
    return moesim.override(made, [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()])


def whole(inputs: Inputs, requests: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the rows of the first tokens, so many, of each of *requests*' prompts."""
    return inputs.rows.span(requests, lengths, np.zeros_like(lengths), lengths)


LENGTHS = {3: (2, 3), 4: (3, 1), 5: (1, 2), 8: (4, 2), 9: (2, 1), 11: (5, 4), 12: (2, 2), 20: (3, 3)}
PAIRED = {"trace__join": "paired", "requests": "{kind: closed_loop, concurrency: 1, count: 4}"}


def test_paired_requests_are_the_traces_own(tmp_path: Path) -> None:
    inputs = prepare(captured(tmp_path, LENGTHS, **PAIRED))
    traced = sorted(inputs.trace.requests.tolist())
    assert len(traced) == 4 and set(traced) < set(LENGTHS)  # the half that solvers do not see
    assert inputs.requests["prompt_tokens"].tolist() == [LENGTHS[r][0] for r in traced]
    assert inputs.requests["output_tokens"].tolist() == [LENGTHS[r][1] + 1 for r in traced]  # the prompt gives one
    tokens = inputs.trace.tokens
    every = np.arange(4)
    prompt = tokens.iloc[whole(inputs, every, inputs.requests["prompt_tokens"].to_numpy())]
    assert list(zip(prompt["request"], prompt["position"], prompt["phase"], strict=True)) == [
        (r, i, 0) for r in traced for i in range(LENGTHS[r][0])]
    for i in range(min(LENGTHS[r][1] for r in traced)):
        decode = tokens.iloc[inputs.rows.decode(every, np.full(4, i))]
        assert list(zip(decode["request"], decode["position"], decode["phase"], strict=True)) == [
            (r, LENGTHS[r][0] + i, 1) for r in traced]


def test_more_paired_requests_than_traced_ones_are_refused(tmp_path: Path) -> None:
    one_more = PAIRED | {"requests": "{kind: closed_loop, concurrency: 1, count: 5}"}
    with pytest.raises(moesim.ConfigError, match="requests.count: 5 is more than the 4 requests of the evaluation"):
        prepare(captured(tmp_path, LENGTHS, **one_more))


def test_resampled_requests_wrap_around(tmp_path: Path) -> None:
    """All traced requests have two prompt rows and three decode rows: 0 1 0 1 0 and 0 1 2 0 1."""
    inputs = prepare(captured(tmp_path, dict.fromkeys(range(6), (2, 3)), requests=(
        "{kind: closed_loop, concurrency: 1, count: 2, prompt_tokens: 5, output_tokens: 6}")))
    tokens, requests = inputs.trace.tokens, np.array([1, 0])
    prompt = tokens.iloc[whole(inputs, requests, np.array([5, 4]))]
    assert prompt["position"].tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 1]
    assert (prompt["phase"] == 0).all()
    assert prompt["request"].iloc[:5].nunique() == prompt["request"].iloc[5:].nunique() == 1
    decode = [tokens.iloc[inputs.rows.decode(requests, np.full(2, i))] for i in range(5)]
    assert [d["position"].tolist() for d in decode] == [[2, 2], [3, 3], [4, 4], [2, 2], [3, 3]]
    assert all(d["request"].tolist() == [prompt["request"].iloc[0], prompt["request"].iloc[5]] for d in decode)


def test_chunks_use_the_rows_of_the_whole_prompt(tmp_path: Path) -> None:
    """Prompts of 5 and 4 in chunks: 2 + 3 tokens, 1 + 3 tokens; the second chunk goes on where the first ended."""
    inputs = prepare(captured(tmp_path, dict.fromkeys(range(6), (3, 3)), requests=(
        "{kind: closed_loop, concurrency: 1, count: 2, prompt_tokens: 5, output_tokens: 6}")))
    requests, prompt = np.array([1, 0]), np.array([5, 4])
    all_rows = whole(inputs, requests, prompt)
    first = inputs.rows.span(requests, prompt, np.array([0, 0]), np.array([2, 1]))
    second = inputs.rows.span(requests, prompt, np.array([2, 1]), np.array([3, 3]))
    assert first.tolist() == all_rows[[0, 1, 5]].tolist() and second.tolist() == all_rows[[2, 3, 4, 6, 7, 8]].tolist()


def test_a_preempted_request_computes_the_rows_of_its_answer_again(tmp_path: Path) -> None:
    """A prompt of 2 and three decoded tokens: after preemption rows of the prompt, then those it decoded with."""
    inputs = prepare(captured(tmp_path, dict.fromkeys(range(6), (2, 3)), requests=(
        "{kind: closed_loop, concurrency: 1, count: 2, prompt_tokens: 2, output_tokens: 6}")))
    one, two = np.array([1]), np.array([2])
    again = inputs.rows.span(one, two, np.array([0]), np.array([5]))
    decoded = [inputs.rows.decode(one, np.array([i]))[0] for i in range(3)]
    assert again.tolist() == [*whole(inputs, one, two), *decoded]
    assert inputs.rows.span(one, two, np.array([3]), np.array([2])).tolist() == decoded[1:]  # the end of it, a chunk


def test_traced_requests_are_dealt_in_turn_and_begin_elsewhere_the_second_time(tmp_path: Path) -> None:
    """Forty requests, three to draw from: 14, 13 and 13. The first draw of each begins with its first row."""
    inputs = prepare(captured(tmp_path, dict.fromkeys(range(6), (2, 3)), requests=(
        "{kind: closed_loop, concurrency: 1, count: 40, prompt_tokens: 5, output_tokens: 6}")))
    tokens, every = inputs.trace.tokens, np.arange(40)
    drawn = tokens["request"].to_numpy()[inputs.rows.prompt_start]
    assert sorted(np.unique(drawn, return_counts=True)[1]) == [13, 13, 14] and set(drawn) == set(inputs.trace.requests)
    begin = tokens["position"].to_numpy()[inputs.rows.decode(every, np.zeros(40, int))]
    assert begin[:3].tolist() == [2, 2, 2] and set(begin[3:]) == {2, 3, 4}
    after = tokens["position"].to_numpy()[inputs.rows.decode(every, np.ones(40, int))]
    assert ((after - begin) % 3 == 1).all()


def test_requests_without_decode_rows_are_not_drawn(tmp_path: Path) -> None:
    lengths = dict.fromkeys(range(20), (2, 0)) | {r: (2, 1) for r in range(20, 28)}
    inputs = prepare(captured(tmp_path, lengths, requests=(
        "{kind: closed_loop, concurrency: 1, count: 30, prompt_tokens: 1, output_tokens: 2}")))
    assert (inputs.trace.tokens["request"].to_numpy()[inputs.rows.prompt_start] >= 20).all()
    assert (inputs.rows.decode_count == 1).all()


def test_a_domain_draws_from_its_own_requests(tmp_path: Path) -> None:
    domains = {r: "code" if r % 3 else "prose" for r in range(30)}
    made = captured(tmp_path, dict.fromkeys(range(30), (1, 1)), domains)
    wanted = ["code", "prose", "prose", "code"] * 5
    table = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": 1, "output_tokens": 1, "domain": wanted})
    table.to_csv(tmp_path / "requests.csv", index=False)
    inputs = prepare(made)
    drawn = inputs.trace.tokens.iloc[inputs.rows.prompt_start]
    assert drawn["domain"].tolist() == wanted and drawn["request"].nunique() > 4
    table.assign(domain="verse").to_csv(tmp_path / "requests.csv", index=False)
    with pytest.raises(moesim.ConfigError, match="domain 'verse' is not in the evaluation part of the trace, which "
                                                 "has code, prose; correct it"):
        prepare(made)


@pytest.mark.parametrize(("name", "lengths", "there"), [("decode", (2, 0), 0), ("prefill", (0, 2), 1)])
def test_a_phase_that_was_not_traced(tmp_path: Path, name: str, lengths: tuple[int, int], there: int) -> None:
    made = captured(tmp_path, dict.fromkeys(range(4), lengths))
    with pytest.raises(moesim.ConfigError, match=f"the trace has no {name} rows; set trace.any_phase: true"):
        prepare(made)
    result = moesim.simulate(moesim.override(made, ["trace.any_phase=true"]))
    assert "trace rows of one phase may stand for those of the other (trace.any_phase)" in result.meta["warnings"]
    inputs = prepare(moesim.override(made, ["trace.any_phase=true"]))
    assert (inputs.trace.tokens["phase"] == there).all()
    assert inputs.rows.decode(np.array([0, 0]), np.array([0, 2])).tolist() == [inputs.rows.prompt_start[0]] * 2


@pytest.mark.parametrize(("override", "message"), [
    ("model.name=other", "the trace was taken from 'hand', the model is 'other'; set trace.scaled: true"),
    ("model.moe.experts=2", "the trace has 1 experts, model hand has 2; choose the model that was traced"),
    ("model.layers=2", "the trace has 1 MoE layers, model hand has 2"),
])
def test_a_trace_of_another_model_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(moesim.ConfigError) as caught:
        prepare(scenario(tmp_path, [(0, 2, 3)], None, override))
    assert message in str(caught.value) and "hand.yaml" in str(caught.value)
