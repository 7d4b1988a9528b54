"""Files that are not what they should be: the exact message, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import moesim
from moesim import config, plots, requests
from moesim.cli import app
from moesim.placement import evaluate, solve
from moesim.requests import Replay
from moesim.synthetic import GateParameters

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
THREE = moesim.RoutingTrace.from_arrays(np.array([[[0, 1]], [[0, 2]], [[0, 1]]]), 3, 2)

# what is in the YAML file -> the message after "FILE:"
NOT_YAML = {
    b"\xff\xfe\x00": "1: is not UTF-8 text; give a YAML file",
    b"name: a\x01b\n": "1: not valid YAML: unacceptable character #x0001: special characters are not allowed",
    b"a: 1\n? [b, c]\n: 3\n": "2: keys are text; a list or mapping is not",
    b"a:\n  <<: {b: 1}\n": "2: a: '<<' is no plain value; write it out, without '<<' and without a '!' tag",
    b"a: !foo bar\n": "1: a: 'bar' is no plain value; write it out, without '<<' and without a '!' tag",
    b"a: &a [*a]\n": "1: a.0.0: is nested more than 50 deep, or holds itself; write it flat",
}


@pytest.mark.parametrize("content", NOT_YAML)
def test_yaml_that_is_none(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(moesim.ConfigError) as caught:
        config.read(file)
    assert str(caught.value) == f"{file}:{NOT_YAML[content]}"


@pytest.mark.parametrize(("old", "new", "kind"), [
    ("bandwidth: 10 GB/s", "bandwidth: 0 GB/s", "'0 GB/s' is zero: nothing would ever finish; write a bandwidth"),
    ("bf16: 10 TFLOP/s", "bf16: 0 TFLOP/s", "'0 TFLOP/s' is zero: nothing would ever finish; write a compute rate")])
def test_rates_of_zero(old: str, new: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "zero.yaml"
    assert old in TINY.read_text()
    file.write_text(TINY.read_text().replace(old, new, 1))
    with pytest.raises(moesim.ConfigError, match=kind):
        moesim.load(file)


HEAD = "arrival_s,prompt_tokens,output_tokens\n"
# content of a replayed file -> the message after "FILE: "
REPLAYED = {
    "": "not a readable CSV or Parquet file (No columns to parse from file); write a table with request, arrival_s, "
        "prompt_tokens, output_tokens",
    HEAD: "holds no request; give at least one row",
    HEAD + "0,ten,5\n": "row 0: prompt_tokens is ten; it must be at least 1",
    HEAD + "0,10.5,5\n": "row 0: prompt_tokens is 10.5; tokens are whole numbers",
    HEAD + "0,1e30,5\n": "row 0: prompt_tokens is 1e+30; it must be at least 1 and below 2.14748e+09",
    HEAD + "inf,10,5\n": "row 0: arrival_s is inf; it must be at least 0 and below 2.14748e+09",
}


@pytest.mark.parametrize("content", REPLAYED)
def test_replayed_requests(content: str, tmp_path: Path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text(content)
    with pytest.raises(ValueError) as caught:
        requests.table(Replay(kind="replay", path=file), seed=0)
    assert str(caught.value) == f"{file}: {REPLAYED[content]}"


def test_replayed_parquet_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "requests.parquet"
    file.write_text("hello")
    with pytest.raises(ValueError, match="requests.parquet: not a readable CSV or Parquet file"):
        requests.table(Replay(kind="replay", path=file), seed=0)


def test_unknown_option_of_a_plot() -> None:
    with pytest.raises(ValueError, match="affinity has no option 'layr'; did you mean 'layer'"):
        plots.draw("affinity", None, layr=3)


def test_trace_that_cannot_be_written(repo: Path) -> None:
    done = CliRunner().invoke(app, ["convert", str(repo / "workloads/traces/reference-moe.parquet"), "/proc/o.parquet"])
    assert done.exit_code == 2
    assert done.stderr.startswith("/proc/o.parquet: cannot be written (")


def test_negative_seed_of_place(repo: Path) -> None:
    done = CliRunner().invoke(app, ["place", str(repo / "workloads/traces/reference-moe.parquet"), "--devices", "4",
                                    "--seed", "-1"])
    assert done.exit_code == 2
    assert "--seed" in done.stderr


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_gate_parameters_are_finite(number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        GateParameters(sigma_b=number, a=1.0, s=1.0, sigma_d=1.0)


def test_requests_of_the_next_century(repo: Path) -> None:
    """Past 2**31 s a step is too short to be told from its start: mfu was infinite."""
    rare = "requests={kind: poisson, rate: 1e-300 /s, count: 3, prompt_tokens: 8, output_tokens: 2}"
    with pytest.raises(moesim.ConfigError, match=r"requests: the last of 3 requests would arrive after \S+ s, beyond "
                                                 r"2.14748e\+09; raise rate \(1e-300 /s\), or lower count"):
        moesim.simulate(moesim.load(repo / "tests/data/tiny.yaml", [rare]))


def test_files_beside_a_missing_one(tmp_path: Path) -> None:
    """Only what ends alike is told, in order: not the whole folder."""
    for name in ("b.parquet", "a.parquet", ".hidden.parquet", "c.md"):
        (tmp_path / name).touch()
    for missing, told in (("zz.parquet", "; known: a.parquet, b.parquet"), ("zz.npy", "; correct the path"),
                          ("aa.parquet", "; did you mean 'a.parquet'?"), ("zz", "; correct the path")):
        with pytest.raises(ValueError) as caught:
            moesim.read_trace(tmp_path / missing)
        assert str(caught.value) == f"{tmp_path / missing}: no such file{told}"


@pytest.mark.parametrize(("call", "text"), [
    (lambda: moesim.simulate(str(TINY)), "scenario is a str; give what moesim.load(path) returns"),
    (lambda: moesim.sweep(str(TINY), {}, ["mfu"]), "scenario is a str; give what moesim.load(path) returns"),
    (lambda: solve("t.parquet", 8), "trace is a str; give what moesim.read_trace(path) returns"),
    (lambda: solve(THREE, 1.5), "n_devices is a float; give a whole number"),
    (lambda: evaluate(THREE, solve(THREE, 2, "lpt")), "placement is a RoutingTrace; give evaluate(placement, trace), "
                                                      "with what solve returns"),
    (lambda: moesim.sweep(moesim.load(TINY), {}, "mfu"), "metrics are 'mfu'; give a list, ['mfu']")])
def test_arguments_of_the_wrong_kind(call: Callable[[], Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert str(caught.value) == text
