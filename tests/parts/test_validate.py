"""The command validate with a measured run: what it prints and writes, and wrong input."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import moesim
from moesim.cli import app

RUN = pd.DataFrame({"request": ["a", "b", "c"], "arrival_s": [10.0, 10.001, 11.0], "first_token_s": [10.5, 11.0, 11.5],
                    "last_token_s": [11.0, 12.0, 11.5], "prompt_tokens": [10, 20, 30], "output_tokens": [5, 3, 1]})


def call(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def tiny(repo: Path) -> Path:
    return repo / "tests/data/tiny.yaml"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.csv"
    RUN.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def printed(tiny: Path, measured: Path) -> tuple[int, str, str]:
    """What the command says; its folder o is beside the run."""
    return call("validate", measured, "--scenario", tiny, "--set", "scheduler=vllm", "--out", measured.parent / "o")


def test_a_run_is_compared_and_reported(printed: tuple[int, str, str], measured: Path, tiny: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = printed
    assert status == 0, err
    folder = measured.parent / "o"
    assert [line.split()[0] for line in out.splitlines()[:4]] == ["metric", "TTFT", "TPOT", "E2E"]
    assert "makespan (% off)" in out and "note: the routing is synthetic" in err
    figures = {f"{kind}_{name}.png" for kind in ("cdf", "scatter") for name in ("ttft", "tpot", "e2e")}
    assert {f.name for f in (folder / "figures").iterdir()} == figures | {"timeline.png"}
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert page.count("data:image/png;base64,") == 7
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "the page needs no other file"
    for shown in re.findall(r"\]\((\S+)\)", text):
        assert (folder / shown).is_file()
    assert "The routing is synthetic." in text and "3 requests with 60 prompt and 9 output tokens in 2.0 s" in text
    errors = pd.read_csv(folder / "errors.csv").set_index(["metric", "statistic"])
    assert errors.loc[("ttft", "mean"), "measured"] == pytest.approx((0.5 + 0.999 + 0.5) / 3, rel=1e-5)
    monkeypatch.setattr("moesim.runs.report.draw", lambda found, folder: {})
    assert call("validate", measured, "--scenario", tiny, "--set", "scheduler=vllm", "--out", folder)[0] == 0
    assert not list((folder / "figures").iterdir()), "its own folder is replaced"


def test_the_scenario_that_is_kept_repeats_the_run(printed: tuple[int, str, str], measured: Path) -> None:
    folder = measured.parent / "o"
    kept = moesim.simulate(moesim.load(folder / "scenario.yaml")).requests
    compared = pd.read_parquet(folder / "requests.parquet")
    assert kept["arrival_s"].tolist() == pytest.approx([0.0, 0.001, 1.0])
    assert kept["ttft_s"].tolist() == compared["ttft_simulated_s"].tolist()  # the run has no queued_s: from arrival


@pytest.mark.parametrize(("arguments", "message"), [
    (["RUN"], "run.csv: needs a scenario that serves its requests; add --scenario FILE"),
    (["RUN", "--scenario", "TINY", "--threads", "1"], "--threads is for steps that are measured here, without RUN"),
    (["RUN", "--scenario", "TINY", "--seed", "1"], "leave it out (--set seed=N is the scenario's)"),
    (["--scenario", "TINY"], "--scenario is for comparing with a measured run; give RUN too: moesim validate RUN"),
    (["--set", "seed=1"], "--set is for comparing with a measured run; give RUN too"),
    (["nothing.csv", "--scenario", "TINY"], "nothing.csv: no such file or folder; correct the path"),
    (["RUN", "--scenario", "TINY", "--set", "seeds=1"], "seeds: unknown key; did you mean 'seed'?"),
    (["RUN", "--scenario", "TINY", "--set", "kv.prefix_cache=true"], "kv.prefix_cache: needs the tokens of requests"),
    (["RUN", "--scenario", "TINY", "--out", "TINY"], "tiny.yaml is a file; choose a folder"),
])
def test_wrong_input_is_a_message(arguments: list[str], message: str, tiny: Path, measured: Path) -> None:
    named = {"RUN": measured, "TINY": tiny}
    status, out, err = call("validate", *[named.get(a, a) for a in arguments])
    assert status == 2 and message in err and not out and "Traceback" not in err
