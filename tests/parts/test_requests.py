"""Request tables: arrivals as their law says, lengths as given, and files with exact messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.requests import ClosedLoop, Poisson, Replay, Uniform, table


def poisson(**given: object) -> Poisson:
    return Poisson.model_validate({"kind": "poisson", "rate": "50 /s", "count": 40_000} | given)


def test_poisson_gaps_are_exponential() -> None:
    arrival = table(poisson(), seed=0)["arrival_s"].to_numpy()
    gaps = np.diff(arrival, prepend=0.0)
    assert (gaps >= 0).all(), "in order of arrival"
    # Mean and standard deviation of an exponential are both 1 / rate = 20 ms; four standard errors of the mean of
    # 40 000 gaps are 4 / sqrt(40 000) = 2 %; of the standard deviation sqrt(2) times that.
    assert gaps.mean() == pytest.approx(0.02, rel=0.02)
    assert gaps.std() == pytest.approx(0.02, rel=0.03)
    assert np.quantile(gaps, 0.5) == pytest.approx(0.02 * np.log(2), rel=0.03)
    per_second = np.bincount(arrival[arrival < 600].astype(int))  # a Poisson count: its variance is its mean
    assert per_second.mean() == pytest.approx(50, rel=0.03) and per_second.var() == pytest.approx(50, rel=0.25)


def test_the_seed_decides() -> None:
    spec = poisson(count=9, prompt_tokens={"low": 1, "high": 10**6}, output_tokens=3)
    assert table(spec, 1).equals(table(spec, 1))
    for column in ("arrival_s", "prompt_tokens"):
        assert not table(spec, 1)[column].equals(table(spec, 2)[column])


def test_uniform_lengths_reach_both_ends() -> None:
    lengths = table(poisson(prompt_tokens={"low": 3, "high": 6}, output_tokens={"low": 4, "high": 4}), 0)
    found, counts = np.unique(lengths["prompt_tokens"], return_counts=True)
    assert found.tolist() == [3, 4, 5, 6]
    assert counts / 10_000 == pytest.approx(np.ones(4), rel=0.04)  # four standard errors: 4 sqrt(3 / 40 000) = 3.5 %
    assert (lengths["output_tokens"] == 4).all()


def test_closed_loop_begins_with_one_request_per_user() -> None:
    loop = ClosedLoop(kind="closed_loop", concurrency=2, count=5, output_tokens=7)
    requests = table(loop, 0)
    assert requests["request"].tolist() == [0, 1, 2, 3, 4]
    assert requests["arrival_s"].fillna(-1).tolist() == [0, 0, -1, -1, -1]
    assert requests["output_tokens"].tolist() == [7] * 5
    assert requests["prompt_tokens"].tolist() == [-1] * 5  # left to the trace


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Uniform(low=3, high=2), "high 2 is below low 3; swap them"),
    (lambda: poisson(rate="0 /s"), "rate is 0: no request would ever arrive; write e.g. '10 /s'"),
    (lambda: poisson(rate="10 s"), "'10 s' is not a rate; write e.g. '10 /s'"),
    (lambda: poisson(count=0), "greater than or equal to 1, got 0"),
    (lambda: poisson(prompt_tokens=0), "greater than or equal to 1, got 0"),
])
def test_wrong_specs_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()  # type: ignore[operator]
    assert message in str(caught.value)


GOOD = pd.DataFrame({"arrival_s": [0.0, 0.5, 0.5], "prompt_tokens": [3, 1, 2], "output_tokens": [1, 2, 9]})


def replayed(file: Path) -> pd.DataFrame:
    return table(Replay.model_validate({"kind": "replay", "path": str(file)}), 0)


@pytest.mark.parametrize("more", [{}, {"domain": ["a", "b", "a"]}, {"priority": [3, -1, 0]}])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_files_are_read_and_other_columns_left_out(tmp_path: Path, suffix: str, more: dict[str, list]) -> None:
    wanted = GOOD.assign(**more)
    file, given = tmp_path / f"requests.{suffix}", wanted.assign(user="somebody", request=[7, 7, 7])
    given.to_csv(file, index=False) if suffix == "csv" else given.to_parquet(file)
    found = replayed(file)
    assert found["request"].tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(found.drop(columns="request"), wanted)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.drop(columns=["output_tokens", "arrival_s"]),
     "no column arrival_s, output_tokens; a request table has request, arrival_s, prompt_tokens, output_tokens"),
    (lambda t: t.assign(arrival_s=[0.0, -1.0, 2.0]), "row 1: arrival_s is -1.0; it must be at least 0"),
    (lambda t: t.assign(prompt_tokens=[3, 2, 0]), "row 2: prompt_tokens is 0; it must be at least 1"),
    (lambda t: t.assign(output_tokens=[1, 0, 0]), "row 1: output_tokens is 0; it must be at least 1"),
    (lambda t: t.assign(output_tokens=[1, np.nan, 1]), "row 1: output_tokens is nan; it must be at least 1"),
    (lambda t: t.assign(arrival_s=[0.0, 2.0, 1.0]), "arrival_s is not sorted; sort the rows by arrival_s"),
    (lambda t: t.assign(prompt_tokens=[3, 2.5, 1]), "row 1: prompt_tokens is 2.5; tokens are whole numbers"),
    (lambda t: t.assign(output_tokens=["3", "many", "1"]), "row 1: output_tokens is many; it must be at least 1"),
    (lambda t: t.assign(arrival_s=[0, 1, np.inf]),
     "row 2: arrival_s is inf; it must be at least 0 and below 2.14748e+09"),
    (lambda t: t.iloc[:0], "holds no request; give at least one row"),
    (lambda t: t.assign(priority=[0, 1.5, 1]),
     "row 1: priority is 1.5; it must be a whole number (the smallest goes first)"),
    (lambda t: t.assign(priority=[0, 1, "high"]),
     "row 2: priority is high; it must be a whole number (the smallest goes first)"),
    (lambda t: t.assign(prompt_ids="[1, 2, 3]"), "prompt_ids and output_ids come together; add the other column"),
    (lambda t: t.assign(prompt_ids="[1, 2, 3]", output_ids="[1]"),
     "row 0: prompt_ids must be a list of 3 token ids (prompt_tokens); lists need a Parquet file or JSON lines"),
])
def test_impossible_files_are_refused(tmp_path: Path, change: object, message: str) -> None:
    file = tmp_path / "requests.csv"
    change(GOOD).to_csv(file, index=False)  # type: ignore[operator]
    with pytest.raises(ValueError) as caught:
        replayed(file)
    assert str(caught.value) == f"{file}: {message}"


def test_token_ids_are_as_many_as_tokens(tmp_path: Path) -> None:
    ids = GOOD.assign(prompt_ids=[[1, 2, 3], [4], [5, 6]], output_ids=[[7], [8, 9], list(range(9))])
    ids.to_parquet(tmp_path / "requests.parquet")
    found = replayed(tmp_path / "requests.parquet")
    assert [list(row) for row in found["prompt_ids"]] == ids["prompt_ids"].tolist()
    ids.assign(output_ids=[[7], [8, 9], [1]]).to_parquet(tmp_path / "requests.parquet")
    with pytest.raises(ValueError, match=r"row 2: output_ids must be a list of 9 token ids \(output_tokens\)"):
        replayed(tmp_path / "requests.parquet")


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    for name in ("requests.csv", "requests.parquet"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=f"{name}: not a readable CSV or Parquet file .*; write a table with"):
            replayed(tmp_path / name)


def test_tokens_and_priorities_are_kept(tmp_path: Path) -> None:
    ids = [[5, 6, 7], [5], [5, 6]]
    wanted = GOOD.assign(priority=[1, -2, 0], prompt_ids=ids, output_ids=[[1], [1, 2], list(range(9))])
    wanted.to_parquet(tmp_path / "requests.parquet")
    found = replayed(tmp_path / "requests.parquet")
    assert list(found.columns) == ["request", "arrival_s", "prompt_tokens", "output_tokens", "priority", "prompt_ids",
                                   "output_ids"]
    assert found["priority"].tolist() == [1, -2, 0]
    assert [list(row) for row in found["prompt_ids"]] == ids
    names = {"prompt_tokens": "input_toks", "output_tokens": "output_toks", "prompt_ids": "input_tok_ids",
             "output_ids": "output_tok_ids", "arrival_s": "arrival_time_ns"}
    lines = wanted.assign(arrival_s=[0, 500_000_000, 500_000_000]).rename(columns=names)
    lines.to_json(tmp_path / "requests.jsonl", orient="records", lines=True)
    again = replayed(tmp_path / "requests.jsonl")
    lists = ["prompt_ids", "output_ids"]
    pd.testing.assert_frame_equal(again.drop(columns=lists), found.drop(columns=lists))
    assert all(list(a) == list(b) for name in lists for a, b in zip(again[name], found[name], strict=True))


@pytest.mark.parametrize(("change", "message"), [
    ({"priority": [0, 0.5, 1]}, "row 1: priority is 0.5; it must be a whole number (the smallest goes first)"),
    ({"prompt_ids": [[1, 2, 3], [1, 2], [1, 2]]}, "row 1: prompt_ids must be a list of 1 token ids (prompt_tokens)"),
    ({"output_ids": [[1], [1, 2], "1 2 3"]}, "row 2: output_ids must be a list of 9 token ids (output_tokens); lists "),
    ({"output_ids": [[1.5], [1, 2], [1] * 9]}, "row 0: output_ids must be a list of 1 token ids"),
    ({"output_ids": None}, "prompt_ids and output_ids come together; add the other column"),
])
def test_impossible_tokens_are_refused(tmp_path: Path, change: dict[str, list[object]], message: str) -> None:
    table = GOOD.assign(prompt_ids=[[1] * 3, [1], [1] * 2], output_ids=[[1], [1] * 2, [1] * 9]).assign(**change)
    table.dropna(axis=1, how="all").to_json(tmp_path / "requests.jsonl", orient="records", lines=True)
    with pytest.raises(ValueError) as caught:
        replayed(tmp_path / "requests.jsonl")
    assert str(caught.value).startswith(f"{tmp_path / 'requests.jsonl'}: {message}")


def test_lines_that_are_no_requests(tmp_path: Path) -> None:
    for text, message in (("{}\n[]\n", ":2: not an object; write one request per line"),
                          ("{}\nx\n", ":2: not JSON"), ("", ": no column arrival_s, prompt_tokens, output_tokens")):
        (tmp_path / "requests.jsonl").write_text(text)
        with pytest.raises(ValueError, match=f"requests.jsonl{message}"):
            replayed(tmp_path / "requests.jsonl")
