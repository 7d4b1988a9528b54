"""The command line: every command, what goes to stdout and what to stderr, exit status 0, 1 and 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

import moesim
from moesim.cli import app
from moesim.cli.errors import input_error
from moesim.synthetic import SyntheticTrace


@pytest.fixture(scope="module")
def tiny(repo: Path) -> str:
    return str(repo / "tests/data/tiny.yaml")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("trace") / "trace.parquet"
    SyntheticTrace(preset="gpt_oss_20b", requests=8, prompt_tokens=20, output_tokens=20, layers=3, experts=8,
                   top_k=2).generate().write(path)
    return str(path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def process(*arguments: object, **options) -> subprocess.CompletedProcess[str]:  # type: ignore[no-untyped-def]
    command = [sys.executable, "-c", "from moesim.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_run_prints_data_on_stdout_and_notes_on_stderr(tiny: str, tmp_path: Path) -> None:
    done = call("run", tiny, "--json", "--set", "scheduler.max_batch=2", "--out", tmp_path / "r")
    assert done.exit_code == 0, done.stderr
    numbers = json.loads(done.stdout)
    result = moesim.simulate(moesim.load(tiny, ["scheduler.max_batch=2"]))
    assert numbers.items() >= result.summary().items()
    assert "note: the routing is synthetic" in done.stderr
    assert json.loads((tmp_path / "r/summary.json").read_text()) == result.summary()
    table = call("run", tiny)
    assert table.exit_code == 0
    names = {line.split()[0] for line in table.stdout.splitlines()}
    assert {"ttft_p50_s", "load_max_over_mean", "share_experts"} <= names


def test_check_reads_the_trace_of_a_scenario(tmp_path: Path, tiny: str) -> None:
    """Eight experts in the model, four in the trace: what a run would refuse, check refuses."""
    file = tmp_path / "other.yaml"
    text = Path(tiny).read_text().replace("experts: 4, top_k: 2, ffn: 32", "experts: 8, top_k: 2, ffn: 32")
    file.write_text(text)
    done = call("check", file)
    assert done.exit_code == 2 and "the trace has 4 experts, model tiny has 8" in done.stderr


def test_demo_prints_the_table_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(out: Path) -> pd.DataFrame:
        assert out == tmp_path / "demo"
        modes, placements = ("dispatch_combine", "context_coherent"), ("linear", "lpt")
        rows = [(placement, mode) for mode in modes for placement in placements]
        return pd.DataFrame(rows, columns=["placement", "mode"]).assign(
            throughput_tok_per_s=[2e4, 3e4, 1e4, 1e4], tpot_mean_s=0.01, ttft_mean_s=0.1)

    monkeypatch.setattr("moesim.demo.run", run)
    done = call("demo", "--out", tmp_path / "demo")
    assert done.exit_code == 0, done.exception
    lines = [line.split() for line in done.stdout.splitlines() if line]
    assert [line[:2] for line in lines[1:-1]] == [
        ["dispatch_combine"], ["placement", "tokens/s"], ["linear", "20000"], ["lpt", "30000"],
        ["context_coherent"], ["placement", "tokens/s"], ["linear", "10000"], ["lpt", "10000"]]
    assert "`lpt`" in done.stdout.splitlines()[-1] and "+50.0%" in done.stdout.splitlines()[-1]
    assert done.stderr == f"report, figures and tables: {tmp_path}/demo\n"


def test_the_processes_streams_and_status(tiny: str, tmp_path: Path) -> None:
    good = process("run", tiny, "--json")
    assert (good.returncode, good.stderr.splitlines()[0]) == (0, "note: the routing is synthetic")
    json.loads(good.stdout)
    bad = process("run", tiny, "--set", "scheduler.max_batc=2")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.endswith("scheduler: prefill_first has no parameter 'max_batc'; did you mean 'max_batch'?\n")
    usage = process("run")
    assert (usage.returncode, usage.stdout) == (2, "") and "Missing argument" in usage.stderr
    version = process("--version")
    assert (version.returncode, version.stdout) == (0, f"{moesim.__version__}\n")


def test_a_bug_keeps_its_traceback(tiny: str, tmp_path: Path) -> None:
    code = ("import moesim.sim.engine as e\ndef broken(scenario): return {}['x']\ne.simulate = broken\n"
            f"from moesim.cli import main\nimport sys\nsys.argv = ['moesim', 'run', {tiny!r}]\nmain()")
    bug = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (bug.returncode, bug.stdout) == (1, "")
    assert bug.stderr.startswith("Traceback") and bug.stderr.endswith("KeyError: 'x'\n")


def test_which_errors_are_wrong_input() -> None:
    def caught(function):  # type: ignore[no-untyped-def]
        with pytest.raises(Exception) as error:
            function()
        return input_error(error.value)

    assert caught(lambda: moesim.load("nope.yaml")) == (
        "nope.yaml:1: cannot be read: No such file or directory; correct the path")
    assert caught(lambda: moesim.read_trace("nope.npz")).startswith("nope.npz: no such file")
    assert caught(lambda: moesim.units.parse("4 Gb", "byte")) is not None
    assert caught(lambda: open("/nope")) == "/nope: no such file or directory; correct the path"
    assert caught(lambda: __import__("torch.no_such_module")) is None
    assert caught(lambda: np.zeros(2) + np.zeros(3)) is None


def test_capture_without_torch_says_what_to_install(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "text.txt").write_text("hello")
    done = process("capture", "--model", tmp_path, "--text", tmp_path / "text.txt", "--out", "t.parquet",
                   env=os.environ | {"PYTHONPATH": f"{tmp_path}:{repo}"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "moesim.capture needs PyTorch: pip install 'moesim[torch]'\n"


def test_check(tiny: str, trace: str, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = repo / "workloads/models/mixtral-8x7b.yaml"
    (tmp_path / "m.yaml").write_text(model.read_text())
    (tmp_path / "sweep.yaml").write_text(f"scenario: {tiny}\nmetrics: [steps]\n")
    good = [tiny, trace, model, "m.yaml", repo / "hw_configs/machines/h200-2x8.yaml",
            repo / "hw_configs/devices/h100.yaml", "sweep.yaml"]
    done = call("check", *good)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{path}: ok" for path in good]
    (tmp_path / "points.yaml").write_text(f"scenario: {tiny}\naxes: {{parallelism.tp: [1, 3]}}\nmetrics: [steps]\n")
    (tmp_path / "sweep.yaml").write_text(f"scenario: {tiny}\nmetrics: [stepz]\nmetric: 1\n")
    (tmp_path / "odd.yaml").write_text("a: 1\n")
    wrong = call("check", tiny, "points.yaml", "sweep.yaml", "odd.yaml", "gone.yaml")
    assert (wrong.exit_code, wrong.stdout) == (2, f"{tiny}: ok\n")
    assert wrong.stderr.splitlines() == [
        "points.yaml:2: axes: point 1: override parallelism.tp=3: parallelism.tp: 3 does not divide the 2 devices of a "
        "node; use a divisor",
        "sweep.yaml:2: metrics.0: unknown metric 'stepz'; did you mean 'steps'?",
        "sweep.yaml:3: metric: unknown key; did you mean 'metrics'?",
        "odd.yaml: its keys (a) are those of no scenario, sweep, model, machine, device, kernels",
        "gone.yaml:1: cannot be read: No such file or directory; correct the path"]


def test_check_reads_requests_and_placement(tiny: str, tmp_path: Path) -> None:
    """A dense model has no trace to read: check fell over that."""
    (tmp_path / "requests.csv").write_text("arrival_s,prompt_tokens,output_tokens\nnan,8,4\n")
    (tmp_path / "placement.json").write_text("{}")
    text = Path(tiny).read_text()
    for line, new in (("requests", "{kind: replay, path: requests.csv}"), ("placement", "{path: placement.json}")):
        file = tmp_path / f"{line}.yaml"
        file.write_text("\n".join(f"{line}: {new}" if old.startswith(f"{line}:") else old for old in text.splitlines()))
        done = call("check", file)
        assert (done.exit_code, done.stdout) == (2, "") and f": {line}: " in done.stderr
    file.write_text("name: dense\nmodel: llama-3.1-8b\nhardware: h200-1x1\nscheduler: vllm\nrequests: {kind: "
                    "closed_loop, concurrency: 1, count: 1, prompt_tokens: 8, output_tokens: 2}\n")
    done = call("check", file)
    assert (done.exit_code, done.stderr) == (0, "")


def test_show_scenario_loads_back(tiny: str, tmp_path: Path) -> None:
    done = call("show", tiny, "--set", "seed=3")
    (tmp_path / "again.yaml").write_text(done.stdout)
    assert moesim.load(tmp_path / "again.yaml") == moesim.load(tiny, ["seed=3"])


@pytest.mark.parametrize(("name", "facts"), [
    ("mixtral-8x7b", {"total_parameters": "46702792704", "weights": "93.41 GB"}),
    ("duplex-1x4", {"beside_logic_pim": "107.3 TFLOP/s at 16 bit, 13.41 TB/s x 0.75"}),
    ("h200-2x8", {"devices": "16, 8 in each of 2 node(s)", "all_hbm": "2.256 TB", "peak_bf16": "989.4 TFLOP/s"}),
    ("h100", {"device": "H100 SXM 80GB"})])
def test_show_numbers(name: str, facts: dict[str, str]) -> None:
    done = call("show", name)
    assert done.exit_code == 0, done.stderr
    shown = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert {key: shown[key].strip() for key in facts} == facts


def test_show_trace_and_unknown(trace: str) -> None:
    shown = dict(line.split(maxsplit=1) for line in call("show", trace).stdout.splitlines())
    assert (shown["tokens"], shown["decode_tokens"], shown["synthetic"]) == ("320", "160", "True")
    assert float(shown["load_max_over_mean"]) > 1
    unknown = call("show", "mixtral-8x7")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert unknown.stderr == ("mixtral-8x7: no such file, and nothing of that name in the library; "
                              "did you mean 'mixtral-8x7b'?\n")


def test_show_does_not_guess_between_files_of_one_name(repo: Path) -> None:
    done = call("show", "reference-moe")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"reference-moe: several files have this name; give the path of one: {repo}/workloads/models/"
        f"reference-moe.yaml, {repo}/workloads/traces/reference-moe.parquet\n")


def test_list() -> None:
    everything = call("list")
    assert everything.exit_code == 0, everything.stderr
    rows = [line.split(maxsplit=2) for line in everything.stdout.splitlines()[1:]]
    assert all(len(row) == 3 for row in rows), [row for row in rows if len(row) < 3]
    found = {(kind, name) for kind, name, _ in rows}
    assert found >= {("solver", "lpt"), ("scheduler", "prefill_first"), ("model", "mixtral-8x7b"), ("format", "npz"),
                     ("machine", "h200-2x8"), ("metric", "tpot_p50_s"), ("plot", "pareto")}
    solvers = call("list", "solver").stdout.splitlines()[1:]
    assert [line.split()[1] for line in solvers] == list(moesim.registry.names("solver"))
    wrong = call("list", "solvr")
    assert (wrong.exit_code, wrong.stderr) == (2, "unknown kind 'solvr'; did you mean 'solver'?\n")


def test_place_judges_on_both_parts(trace: str, tmp_path: Path) -> None:
    done = call("place", trace, "--devices", 4, "--solver", "lpt", "--no-domains", "--out",
                tmp_path / "p/placement.json")
    assert done.exit_code == 0, done.stderr
    whole, placement = moesim.read_trace(trace), moesim.placement.Placement.load(tmp_path / "p/placement.json")
    header, *lines = (line.split() for line in done.stdout.splitlines())
    rows = {tuple(line[:2]): dict(zip(header[2:], map(float, line[2:]), strict=True)) for line in lines}
    assert list(rows) == [(part, name) for part in ("profile", "evaluation") for name in ("fitted", "linear")]
    for name, part in (("profile", whole.profile()), ("evaluation", whole.evaluation())):
        expected = {"tokens": part.n_tokens} | moesim.placement.evaluate(placement, part).to_dict()
        assert rows[name, "fitted"] == pytest.approx(expected, rel=1e-4)
    nodes = call("place", trace, "--devices", 4, "--devices-per-node", 2, "--solver", "{name: lpt}")
    assert "node_fanout" in nodes.stdout
    for arguments, text in ((("--solver", "lptt"), "unknown solver 'lptt'; did you mean 'lpt'?"),
                            (("--solver", "{name: "), "--solver {name: : not a YAML value"),
                            (("--profile-fraction", 2), "fraction is 2.0; the profile part")):
        wrong = call("place", trace, "--devices", 4, *arguments)
        assert wrong.exit_code == 2 and wrong.stderr.startswith(text), wrong.stderr


def test_convert(trace: str, tmp_path: Path) -> None:
    whole = moesim.read_trace(trace)
    meta = json.dumps({"num_experts": 8, "top_k": 2, "phase": "prefill"})
    np.savez(tmp_path / "t.npz", topk_ids=whole.chosen, seq_id=whole.tokens["request"],
             pos=whole.tokens["position"], meta=meta)
    done = call("convert", tmp_path / "t.npz", tmp_path / "new/t.parquet")
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert done.stderr.endswith("t.parquet: 320 tokens, 3 layers, 8 experts, top 2\n")
    assert np.array_equal(moesim.read_trace(tmp_path / "new/t.parquet").experts, whole.chosen)
    wrong = call("convert", tmp_path / "t.npz", tmp_path / "t.csv")
    assert wrong.exit_code == 2 and "end the name in .parquet" in wrong.stderr
    form = call("convert", tmp_path / "t.npz", tmp_path / "t.parquet", "--format", "npy")
    assert form.exit_code == 2 and form.stderr == "unknown format 'npy'; did you mean 'npz'?\n"


def test_placements_go_to_engines_and_back(trace: str, tmp_path: Path) -> None:
    engine, own, again = tmp_path / "new/sglang.json", tmp_path / "p.json", tmp_path / "again.yaml"
    place = ("place", trace, "--devices", 4, "--solver", "lpt", "--out")
    done = call(*place, engine, "--format", "{name: sglang, layers: [1, 2, 3]}")
    assert done.exit_code == 0 and done.stderr == f"placement: {engine}\n", done.stderr
    assert list(json.loads(engine.read_text())) == ["physical_to_logical_map"]
    assert call(*place, own).exit_code == 0
    back = call("convert", engine, again, "--to", "trtllm", "--devices", 4, "--format",
                "{name: sglang, layers: [1, 2, 3]}")
    assert (back.exit_code, back.stderr) == (0, f"{again}: 3 layers, 8 experts, 4 devices, 24 replicas\n"), back.stderr
    done = call("convert", again, tmp_path / "last.json", "--to", "moesim_json", "--devices", 4)
    assert done.exit_code == 0, done.stderr
    saved = [moesim.placement.Placement.load(path).replicas for path in (tmp_path / "last.json", own)]
    assert np.array_equal(*saved)
    before = sorted(tmp_path.rglob("*"))
    for arguments, text in (
            ((*place, tmp_path / "x.yaml"), "the file counts all layers of the model, but nothing says which 3"),
            ((*place, tmp_path / "x.txt"), f"{tmp_path / 'x.txt'}: no placement format ends in '.txt'; end it in .csv"),
            ((*place[:-1], "--format", "vllm"), "--format vllm: there is no file to write; give --out"),
            (("convert", own, tmp_path / "x.json", "--to", "vlm"), "unknown placement format 'vlm'; did you mean"),
            (("convert", again, tmp_path / "x.json", "--to", "vllm"), f"{again}: the file says which expert is in"),
            (("convert", trace, tmp_path / "x.json", "--to", "vllm"), f"{trace}: no placement formats fit this file"),
            (("convert", own, tmp_path / "x.parquet", "--devices", 4), "--devices and --experts are for placements"),
            (("convert", "no.json", tmp_path / "x.json", "--to", "vllm"), "no.json: no such file")):
        wrong = call(*arguments)
        assert wrong.exit_code == 2 and wrong.stderr.startswith(text), wrong.stderr
    assert sorted(tmp_path.rglob("*")) == before, "nothing half-written"


def test_plot(tiny: str, trace: str, tmp_path: Path) -> None:
    assert call("run", tiny, "--out", tmp_path / "r").exit_code == 0
    done = call("plot", tmp_path / "r")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / f"r/figures/{name}.png")
                                   for name in ("breakdown", "latency_cdf", "links")]
    one = call("plot", trace, "--kind", "affinity", "--set", "layer=1", "--out", tmp_path / "f", "--format", "svg")
    assert one.stdout == f"{tmp_path}/f/affinity.svg\n"
    assert "Layer 1 to 2" in (tmp_path / "f/affinity.svg").read_text()
    for arguments, text in (((tmp_path / "r", "--kind", "pareto"), "no figure 'pareto' of this; known: breakdown"),
                            ((tmp_path,), "neither a result folder"),
                            ((trace, "--set", "layer"), "--set layer: is not of the form name=value"),
                            ((trace, "--kind", "affinity", "--format", "jpg"), "saved as .png or .svg")):
        wrong = call("plot", *arguments)
        assert wrong.exit_code == 2 and text in wrong.stderr, wrong.stderr


def sweep_file(folder: Path, tiny: str, axes: str) -> Path:
    path = folder / "batches.yaml"
    path.write_text(f"scenario: {tiny}\naxes: {axes}\nmetrics: [steps, load_max_over_mean, bytes_scale_up_out]\n")
    return path


def test_sweep_then_plot(tiny: str, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, tiny, "{scheduler.max_batch: [1, 4, -1]}")
    done = call("sweep", file, "--out", tmp_path / "out", "--workers", 1, "--set", "seed=2")
    assert done.exit_code == 0, done.stderr
    notes, last = done.stderr.splitlines()[:-2], done.stderr.splitlines()[-2:]
    assert last == ["1 of 3 points failed (column error)", f"table: {tmp_path}/out/table.parquet"]
    assert notes[0] == "note: the routing is synthetic"
    assert len([note for note in notes if "moe: largest shapes" in note]) == 1  # not again with other numbers
    table = pd.read_parquet(tmp_path / "out/table.parquet")
    assert table["scheduler.max_batch"].tolist() == [1, 4, -1]
    expected = moesim.simulate(moesim.load(tiny, ["seed=2", "scheduler.max_batch=4"]))
    assert table["steps"].tolist()[1] == len(expected.steps)
    lines = done.stdout.splitlines()
    assert lines[0].split() == [*table.columns.drop("warnings")] and len(lines) == 4
    drawn = call("plot", tmp_path / "out", "--set", "x=steps", "--set", "y=bytes_scale_up_out")
    assert drawn.exit_code == 0, drawn.stderr
    assert (tmp_path / "out/figures/pareto.png").stat().st_size > 1000


def test_a_sweep_of_failures_is_wrong_input(tiny: str, tmp_path: Path) -> None:
    done = call("sweep", sweep_file(tmp_path, tiny, "{scheduler.max_batch: [-1]}"), "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "1 of 1 points failed" in done.stderr and "ConfigError" in done.stdout


def test_an_interrupted_sweep_says_how_to_go_on(tiny: str, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, tiny, f"{{seed: {list(range(300))}}}")
    command = [sys.executable, "-c", "from moesim.cli import main; main()", "sweep", str(file), "--out", "out",
               "--workers", "1"]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # not so in jobs
    end = time.monotonic() + 60
    while not list(tmp_path.glob("out/points/*.parquet")):
        assert time.monotonic() < end and running.poll() is None
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)  # what Ctrl-C does: everybody in the terminal gets it
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, "")
    assert err == "stopped; what is finished is in out: run the same command to go on\n"


def test_help_is_quick_and_imports_little() -> None:
    code = ("import sys\nfrom moesim.cli import main\nsys.argv = ['moesim', '--help']\ntry:\n    main()\n"
            "finally:\n    heavy = {'numpy', 'pandas', 'matplotlib', 'numba', 'torch', 'scipy'} & set(sys.modules)\n"
            "    print(sorted(heavy), file=sys.stderr)")
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "[]\n"
    assert time.perf_counter() - start < 5  # 0.6 s on an idle machine; the promise is 1.5 s
    for command in ("demo", "run", "sweep", "show", "check", "list", "plot", "place", "convert"):
        assert command in done.stdout


def test_json_of_a_run_has_no_nan(repo: Path, tiny: str) -> None:
    done = call("run", tiny, "--json", "--set", "requests.output_tokens=1")
    assert json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["tpot_p50_s"] is None


def test_show_prints_yaml_without_python_tags(tiny: str) -> None:
    assert isinstance(YAML(typ="safe").load(call("show", tiny).stdout), dict)
