"""Measured runs: three requests whose table is worked out on paper, and files that are refused with exact messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moesim
from moesim import runs
from moesim.runs.replay import requests_of
from moesim.runs.run import Run, of_requests, rate
from moesim.runs.simulated import token_s

# request  arrives  queued  scheduled  first  last  prompt  output      ttft  tpot            e2e  (from the queue)
#    0      0.0      0.0      0.0       0.5    2.5    10      5         0.5   2.0 / 4 = 0.5   2.5
#    1      1.0      1.5      2.0       2.5    3.5    20      3         1.0   1.0 / 2 = 0.5   2.0
#    2      2.0      2.0      3.0       4.0    4.0    30      1         2.0   none            2.0
MEASURED = pd.DataFrame({"request": [0, 1, 2], "arrival_s": [0.0, 1.0, 2.0], "queued_s": [0.0, 1.5, 2.0],
                         "scheduled_s": [0.0, 2.0, 3.0], "first_token_s": [0.5, 2.5, 4.0],
                         "last_token_s": [2.5, 3.5, 4.0], "prompt_tokens": [10, 20, 30], "output_tokens": [5, 3, 1]})
#    0      0.0      0.0      0.0       0.5    2.1    10      5         0.5   1.6 / 4 = 0.4   2.1
#    1      1.0      1.0      1.0       3.0    4.0    20      3         2.0   0.5             3.0
#    2      2.0      2.0      2.0       3.0    3.0    30      1         1.0   none            1.0
SIMULATED = MEASURED.assign(queued_s=[0.0, 1.0, 2.0], scheduled_s=[0.0, 1.0, 2.0], first_token_s=[0.5, 3.0, 3.0],
                            last_token_s=[2.1, 4.0, 3.0])
META = {"path": "run", "model": "", "clock": "", "engine": {}, "workload": None}
ROW = {"request_id": "a", "input_toks": 10, "output_toks": 5, "arrival_time": 1.7e9, "queued_ts": 100.25,
       "scheduled_ts": 100.5, "first_token_ts": 100.75, "last_token_ts": 102.75}
NEXT = ROW | {"arrival_time": 1.7e9 + 1, "queued_ts": 101.5, "scheduled_ts": 102.0, "first_token_ts": 102.5,
              "last_token_ts": 103.5}


def run(table: pd.DataFrame) -> Run:
    made = Run(table, None, META)
    return Run(table, of_requests(made), META)


def test_the_error_table_on_paper() -> None:
    found = runs.compare(run(MEASURED), run(SIMULATED))
    errors = found.errors.set_index(["metric", "statistic"])
    means = errors.xs("mean", level="statistic")
    # TTFT: 3.5 / 3 both, in another order; TPOT: 0.5 and 0.45; E2E: 6.5 / 3 and 6.1 / 3
    assert means.loc["ttft", ["measured", "simulated"]].tolist() == pytest.approx([3.5 / 3, 3.5 / 3])
    assert means.loc["tpot", "error_percent"] == pytest.approx(-10.0)
    assert means.loc["e2e", "error_percent"] == pytest.approx(100 * (6.1 / 6.5 - 1))
    # from arrival: request 1 waits half a second more in the measured run, and in it alone
    assert means.loc["ttft_from_arrival", "measured"] == pytest.approx(4.0 / 3)
    assert means.loc["ttft_from_arrival", "simulated"] == pytest.approx(3.5 / 3)
    # percentiles of three values: p50 the middle one, p90 at 1.8 of the steps between, 1 + 0.8 * (2 - 1)
    assert errors.loc[("ttft", "p50"), ["measured", "simulated"]].tolist() == [1.0, 1.0]
    assert errors.loc[("ttft", "p90"), "measured"] == pytest.approx(1.8)
    assert errors.loc[("makespan", "total"), ["measured", "simulated"]].tolist() == [4.0, 4.0]
    assert errors.loc[("output_tok_per_s", "total"), "measured"] == pytest.approx(9 / 4)
    # TTFT ranks 1 2 3 against 1 3 2: Spearman 1 - 6 * 2 / 24, Kendall (2 - 1) / 3
    ranks = found.ranks.set_index("metric")
    assert ranks.loc["ttft", ["requests", "spearman", "kendall"]].tolist() == pytest.approx([3, 0.5, 1 / 3])
    assert ranks.loc["tpot", "requests"] == 2 and np.isnan(ranks.loc["tpot", "spearman"])  # measured: both 0.5
    assert ranks.loc["ttft", "median_error_percent"] == pytest.approx(50.0)  # 0, 100 and 50 %
    table = found.table()
    assert table["metric"].tolist() == ["TTFT", "TPOT", "E2E", "TTFT from arrival", "E2E from arrival"]
    assert table["mean (%)"].iloc[1] == pytest.approx(-10.0)


def test_without_queued_times_both_count_from_arrival() -> None:
    found = runs.compare(run(MEASURED.drop(columns="queued_s")), run(SIMULATED))
    assert found.table()["metric"].tolist() == ["TTFT", "TPOT", "E2E"]
    assert found.table()["measured (ms)"].iloc[0] == pytest.approx(4000 / 3)


def test_a_timeline_made_from_requests_on_paper() -> None:
    line = of_requests(Run(MEASURED, None, META))
    assert line["time_s"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert line["prompt_tok_per_s"].tolist() == [10, 0, 20, 30]
    # request 0: a token every half second from 0.5 to 2.5; request 1: at 2.5, 3.0, 3.5; request 2: at 4.0
    assert line["output_tok_per_s"].tolist() == pytest.approx([2, 2, 1 + 2, 1 + 1])
    assert line["running"].tolist() == [1, 2, 2, 0]  # request 1 from 2.0 to 3.5, request 2 from 3.0 to 4.0
    assert line["waiting"].tolist() == [1, 1, 0, 0]
    errors = runs.compare(run(MEASURED), run(SIMULATED)).timeline_errors.set_index("quantity")
    # simulated: 10, 0, 50, 0 prompt tokens/s; of the three ticks in which one is not 0 the errors are 0, 30, 30
    assert errors.loc["prompt_tok_per_s", ["measured_mean", "simulated_mean", "median_error"]].tolist() == [15, 15, 30]
    assert errors.loc["prompt_tok_per_s", "median_error_percent"] == pytest.approx(200.0)


def test_ticks_hold_what_ends_in_them() -> None:
    ends = np.array([1.0, 2.0, 4.0])  # nothing was logged from 2 to 3
    found = rate(np.array([0.0, 0.5, 1.0, 1.5, 2.5, 3.5, 4.0, 5.0]), np.ones(8), ends)
    assert found.tolist() == [2, 1, 2]  # 0.0 is before the first tick, 2.5 in none, 5.0 behind the last


def test_two_clocks_are_joined_at_the_fastest_hand_over(tmp_path: Path) -> None:
    """100.25 - 1.7e9 and 101.5 - (1.7e9 + 1) = 100.5 - 1.7e9: the first is the smaller, so it took no time."""
    found = runs.read(bench(tmp_path, [ROW, NEXT])).requests
    assert found["arrival_s"].tolist() == [0, 1]
    assert found["queued_s"].tolist() == pytest.approx([0, 1.25], abs=1e-6)
    assert found["first_token_s"].tolist() == pytest.approx([0.5, 2.25], abs=1e-6)
    same = [row | {"arrival_time": t} for row, t in ((ROW, 100.0), (NEXT, 101.25))]
    assert runs.read(bench(tmp_path, same)).requests["queued_s"].tolist() == pytest.approx([0.25, 1.5])


def test_the_timeline_counts_from_the_first_arrival(tmp_path: Path) -> None:
    (tmp_path / "timeseries.csv").write_text("t,prompt_throughput,gen_throughput,running,waiting,kv_cache_pct\n"
                                             "1.0,10,2,1,0,0.0\n2.0,0,4,2,1,0.0\n")
    meta = {"started_at": "2023-11-14T22:13:19.500000Z", "num_requests": 2}  # half a second before 1.7e9
    found = runs.read(bench(tmp_path, [ROW, NEXT], meta)).timeline
    assert found is not None and found["time_s"].tolist() == [0.5, 1.5]
    assert found["output_tok_per_s"].tolist() == [2, 4] and "kv_used" not in found  # 0 throughout: not recorded
    with pytest.raises(ValueError, match=r"cannot be placed in time: started_at of meta.json is 86400\d\d s after"):
        runs.read(bench(tmp_path, [ROW, NEXT], meta | {"started_at": "2024-02-22T22:13:20Z"}))
    (tmp_path / "timeseries.csv").write_text("t,prompt_throughput,gen_throughput,running,waiting\n1.0,10,,1,0\n")
    with pytest.raises(ValueError, match=r"timeseries.csv:2: gen_throughput is nan; give a number"):
        runs.read(bench(tmp_path, [ROW, NEXT], meta))


def bench(folder: Path, rows: list[dict[str, Any]], meta: dict[str, Any] | None = None) -> Path:
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if meta is not None:
        (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.mark.parametrize(("rows", "message"), [
    ([{k: v for k, v in ROW.items() if k != "queued_ts"}], "requests.jsonl: no column queued_ts; a run has input_toks"),
    ([], "requests.jsonl: holds no row; give at least one"),
    ([ROW, NEXT | {"last_token_ts": None}],
     "requests.jsonl:2: last_token_ts is nan; a request without it did not end: take it out, or let the run finish"),
    ([ROW, NEXT | {"first_token_ts": "soon"}], "requests.jsonl:2: first_token_ts is soon; a request without it did"),
    ([NEXT, ROW], "requests.jsonl:2: arrival_time is 1.000000 s before that of the row above; sort the rows by"),
    ([ROW, NEXT | {"first_token_ts": 101.75}],
     "requests.jsonl:2: first_token_ts is 0.250000 s before scheduled_ts: time goes backwards; correct the row"),
    ([ROW, NEXT | {"queued_ts": 1.7e9 + 1}], "requests.jsonl:2: queued_ts is 1700000001.000, that of the first row "
                                             "100.250: more than a day apart; write all from one clock, in seconds"),
    ([ROW, NEXT | {"output_toks": 0}], "requests.jsonl:2: output_toks is 0; it must be a whole number from 1 up"),
    ([ROW, NEXT | {"input_toks": 1.5}], "requests.jsonl:2: input_toks is 1.5; it must be a whole number from 1 up"),
])
def test_bench_files_that_are_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        runs.read(bench(tmp_path, rows))
    assert message in str(caught.value)


def test_bench_folders_that_do_not_fit_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"requests.jsonl: holds 1 requests, .*meta.json says 2; copy the whole file"):
        runs.read(bench(tmp_path, [ROW], {"num_requests": 2}))
    (tmp_path / "sent.jsonl").write_text("{}\n")
    (tmp_path / "vllm").mkdir()
    meta = {"dataset_path": "sent.jsonl", "dataset_hash": "0" * 64}
    with pytest.raises(ValueError, match=r"sent.jsonl: is not the file that was sent \(its SHA-256 is not the dataset"):
        runs.read(bench(tmp_path / "vllm", [ROW], meta))
    (tmp_path / "vllm/requests.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"requests.jsonl:1: not JSON"):
        runs.read(tmp_path / "vllm")
    (tmp_path / "meta.json").write_text("[")
    with pytest.raises(ValueError, match=r"meta.json: not a JSON object"):
        runs.read(bench(tmp_path, [ROW]))
    with pytest.raises(ValueError, match=r"no such file or folder; correct the path"):
        runs.read(tmp_path / "nothing")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes.txt: not a measured run; give one of these. moesim_csv: A table"):
        runs.read(tmp_path / "notes.txt")


CSV = MEASURED.assign(request=["a", "b", "c"])


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.drop(columns="first_token_s"), "no column first_token_s; a run has request, arrival_s, first_token_s"),
    (lambda t: t.iloc[:0], "holds no row; give at least one"),
    (lambda t: t.assign(request=["a", "b", "a"]), ":4: request a is there twice; write one row per request"),
    (lambda t: t.assign(arrival_s=[0.0, 1.0, 0.5]), ":4: arrival_s is 0.500000 s before that of the row above"),
    (lambda t: t.assign(last_token_s=[2.5, np.nan, 4.0]), ":3: last_token_s is nan; a request without it did not end"),
    (lambda t: t.assign(first_token_s=[0.5, 2.5, 1.9]), ":4: first_token_s is 1.100000 s before scheduled_s: time"),
    (lambda t: t.assign(arrival_s=t["arrival_s"] + 1.7e9), ":2: arrival_s is 1700000000.000 and queued_s 0.000: of "
                                                           "different clocks (one counts from 1970?); write all times"),
    (lambda t: t.assign(token_s="0.5 1.0"), ":2: token_s is '0.5 1.0', not a list of times; write it to Parquet"),
])
def test_tables_that_are_refused(tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    change(CSV).to_csv(tmp_path / "run.csv", index=False)
    with pytest.raises(ValueError) as caught:
        runs.read(tmp_path / "run.csv")
    assert str(caught.value).startswith(str(tmp_path / "run.csv")) and message in str(caught.value)


TOKENS = [[0.5, 1.0, 1.5, 2.0, 2.5], [2.5, 3.0, 3.5], [4.0]]


def test_times_of_tokens_give_inter_token_latencies(tmp_path: Path) -> None:
    CSV.assign(token_s=TOKENS).to_parquet(tmp_path / "run.parquet")
    measured = run(runs.read(tmp_path / "run.parquet").requests)
    late = [np.array([0.5, 0.9, 1.3, 1.7, 2.1]), None, np.array([3.0])]
    errors = runs.compare(measured, run(SIMULATED.assign(token_s=late))).errors.set_index(["metric", "statistic"])
    # measured: six gaps of 0.5 s; simulated: four of 0.4, a request whose tokens are not known, one without a gap
    assert errors.loc[("itl", "mean"), ["measured", "simulated"]].tolist() == pytest.approx([0.5, 0.4])
    CSV.assign(token_s=[*TOKENS[:2], [4.0, 4.0]]).to_parquet(tmp_path / "run.parquet")
    with pytest.raises(ValueError, match="row 2: token_s has 2 times for 1 output tokens; give one each"):
        runs.read(tmp_path / "run.parquet")
    CSV.assign(token_s=[TOKENS[0], [2.5, 3.6, 3.5], TOKENS[2]]).to_parquet(tmp_path / "run.parquet")
    with pytest.raises(ValueError, match="row 1: token_s does not increase from first_token_s to last_token_s"):
        runs.read(tmp_path / "run.parquet")


def test_a_replay_joins_the_tokens_that_were_sent(tmp_path: Path, repo: Path) -> None:
    sent = [{"input_toks": n, "output_toks": m, "arrival_time_ns": i * 10**9, "input_tok_ids": [7] * n,
             "output_tok_ids": [8] * m} for i, (n, m) in enumerate([(10, 5), (20, 3), (30, 1)])]
    path = tmp_path / "sent.jsonl"
    path.write_text("\n".join(map(json.dumps, sent)))
    scenario = moesim.load(repo / "tests/data/tiny.yaml")
    late = Run(MEASURED.assign(arrival_s=[0.0, 1.125, 2.0]), None, META)
    assert list(requests_of(late, scenario)) == ["request", "arrival_s", "prompt_tokens", "output_tokens"]
    joined = requests_of(Run(late.requests, None, META | {"workload": path}), scenario)
    assert joined["arrival_s"].tolist() == [0.0, 1.125, 2.0], "when the client really sent it"
    assert joined["prompt_ids"].map(len).tolist() == [10, 20, 30]
    named = moesim.override(scenario, [f"requests={{kind: replay, path: {path}}}"])
    assert requests_of(late, named)["output_ids"].map(sum).tolist() == [40, 24, 8]
    other = Run(MEASURED.assign(output_tokens=[5, 4, 1]), None, META)
    with pytest.raises(ValueError, match="sent.jsonl: row 1: output_tokens is 3, in the run run it is 4; give the "):
        requests_of(other, named)
    with pytest.raises(ValueError, match="sent.jsonl: holds 3 requests, the run run has 2; give the file that was"):
        requests_of(Run(MEASURED.iloc[:2], None, META), named)


def test_what_is_simulated_is_read_off_the_steps(repo: Path) -> None:
    """A request is in the queue when the next step begins, and its tokens come as steps end."""
    scenario = moesim.load(repo / "tests/data/tiny.yaml", ["scheduler=vllm"])
    table = MEASURED.assign(arrival_s=[0.0, 1e-5, 1.0])
    found = runs.validate(Run(table, None, META), scenario)
    steps, requests = found.result.steps, found.result.requests
    second = steps["start_s"].iloc[1]
    assert 0 < 1e-5 < second
    compared = found.comparison.requests
    assert compared["e2e_simulated_s"].tolist() == (requests["finish_s"] - requests["queued_s"]).tolist()
    assert compared["e2e_from_arrival_simulated_s"].tolist() == requests["e2e_s"].tolist()
    assert requests["queued_s"].tolist() == [0.0, second, 1.0]
    ends = steps["end_s"].tolist()
    tokens = token_s(found.result, scenario)
    assert [len(t) for t in tokens if t is not None] == [5, 3, 1]
    assert tokens[0] is not None and tokens[0].tolist() == ends[:5] and tokens[0][-1] == requests["finish_s"].iloc[0]
    line = found.comparison.timeline
    simulated = line[line["source"] == "simulated"]
    assert simulated["output_tok_per_s"].sum() == 9 and simulated["prompt_tok_per_s"].sum() == 60
    assert found.comparison.errors.set_index("metric").loc["makespan", "measured"] == 4.0
    assert "the run has no timeline; it is made from its requests, their output tokens evenly spread" in found.notes


def test_a_run_does_not_go_with_requests_of_the_trace(repo: Path) -> None:
    paired = moesim.load(repo / "tests/data/tiny.yaml", [
        "trace.join=paired", "requests={kind: closed_loop, concurrency: 2, count: 3}"])
    with pytest.raises(ValueError, match="trace.join: paired takes the trace's own requests, not those of the run"):
        runs.validate(Run(MEASURED, None, META), paired)


def test_other_settings_of_the_engine_are_named(repo: Path) -> None:
    scenario = moesim.load(repo / "tests/data/tiny.yaml", ["scheduler={name: vllm, max_batch: 64, max_tokens: 2048}"])
    engine = {"max_num_seqs": 128, "max_num_batched_tokens": 2048, "tensor_parallel_size": 1, "data_parallel_size": 1}
    found = runs.validate(Run(MEASURED, None, META | {"engine": engine, "model": "meta-llama/Llama-3.1-8B"}), scenario)
    assert found.notes[:3] == [
        "the run is of model meta-llama/Llama-3.1-8B, the scenario has tiny",
        "the run had max_num_seqs 128, the scenario (vllm, 2 groups) has 64",
        "the run had data_parallel_size 1, the scenario (vllm, 2 groups) has 2"]
