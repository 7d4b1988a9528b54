"""Configuration: files named in files, overrides, and where a message says the mistake is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import moesim
from moesim import config, fits, registry
from moesim.config import find_file
from moesim.document import read, read_text
from moesim.hardware import HardwareSpec
from moesim.model import ModelSpec

REPO = Path(__file__).resolve().parents[2]
TINY = REPO / "tests" / "data" / "tiny.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without anything in it, and beside it ``files``; messages name paths as seen from the first."""
    (tmp_path / "files").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "files"


def split(folder: Path, model: str = "sub/model.yaml") -> Path:
    """Write the tiny scenario with its model in a file of its own, named *model* there."""
    head, rest = TINY.read_text().split("model:\n", 1)
    body, tail = rest.split("hardware:\n", 1)
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub/model.yaml").write_text("".join(line[2:] + "\n" for line in body.splitlines()))
    (folder / "tiny.yaml").write_text(f"{head}model: {model}\nhardware:\n{tail}")
    return folder / "tiny.yaml"


def problems(make: object) -> list[str]:
    with pytest.raises(moesim.ConfigError) as caught:
        make()  # type: ignore[operator]
    return str(caught.value).splitlines()


# --- finding files -------------------------------------------------------------------------------------------------

def test_beside_the_naming_file_then_in_the_working_folder_then_in_the_library(folder: Path) -> None:
    name = "hw_configs/devices/h100.yaml"
    library = REPO / name
    assert find_file(name, folder) == library
    for nearer in (Path.cwd(), folder):
        (nearer / name).parent.mkdir(parents=True)
        (nearer / name).touch()
        assert find_file(name, folder) == (nearer / name).resolve()


def test_a_file_that_is_nowhere(folder: Path) -> None:
    with pytest.raises(ValueError) as caught:
        find_file("no.yaml", folder)
    assert str(caught.value) == f"no file 'no.yaml' in {folder}, {Path.cwd()}, {REPO}; correct the path"


def test_data_of_the_library_is_named_as_any_machine_finds_it(folder: Path) -> None:
    shipped = sorted((REPO / "workloads/traces").glob("*.parquet"))[0]
    (folder / "own.parquet").touch()
    for path, dumped in ((shipped, shipped.relative_to(REPO).as_posix()), (folder / "own.parquet",) * 2):
        tiny = moesim.load(TINY, (f"trace={{path: {path}, scaled: true}}",))
        assert tiny.trace.path == path and tiny.dump()["trace"]["path"] == str(dumped)


# --- files named in files ------------------------------------------------------------------------------------------

def test_a_file_by_path_and_by_name_is_what_it_holds(folder: Path) -> None:
    assert moesim.load(split(folder)) == moesim.load(TINY)
    named = config.load(ModelSpec, REPO / "workloads/models/mixtral-8x7b.yaml")
    sizes = ("trace.synthetic.layers=32", "trace.synthetic.experts=8", "hardware.device=h100")
    loaded = moesim.load(TINY, ("model=mixtral-8x7b", *sizes))
    assert loaded.model == named
    assert loaded.hardware.device == config.load(HardwareSpec, REPO / "hw_configs/machines/h100-1x8.yaml").device


def test_mistakes_in_a_named_file_are_placed_there(folder: Path) -> None:
    file = split(folder)
    text = (folder / "sub/model.yaml").read_text().splitlines()
    lines = {key: next(i for i, line in enumerate(text, 1) if line.startswith(key)) for key in ("layers", "moe")}
    bad = "\n".join(text).replace("layers: 2", "layers: two").replace("experts: 4,", "experts: 4, expert: 5,")
    (folder / "sub/model.yaml").write_text(bad + "\nname: again\n")
    there = folder / "sub/model.yaml"
    found = problems(lambda: moesim.load(file))
    assert found[0] == (f"{there}:{lines['layers']}: model.layers: Input should be a valid integer, got 'two'")
    assert found[1].startswith(f"{there}:{lines['moe']}: model.moe.expert: unknown key; did you mean 'experts'?")
    assert found[2] == f"{there}:{len(text) + 1}: model.name: given twice (first on line 1); keep one"
    assert len(found) == 3


def test_a_named_file_that_is_not_yaml(folder: Path) -> None:
    file = split(folder)
    (folder / "sub/model.yaml").write_text("name: [x\nhidden: 3\n")
    found = problems(lambda: moesim.load(file))
    assert found[0].startswith(f"{folder / 'sub/model.yaml'}:2: not valid YAML")


@pytest.mark.parametrize(("model", "fact"), [
    ("sub/modell.yaml", "no file 'sub/modell.yaml' in {folder}, {here}, {repo}; correct the path"),
    ("mixtral-8x7", "no 'mixtral-8x7' in workloads/models; did you mean 'mixtral-8x7b'?")])
def test_a_name_of_no_file_is_one_mistake(folder: Path, model: str, fact: str) -> None:
    """And the fields that the file would have had are not missing as well."""
    file = split(folder, model)
    line = file.read_text().splitlines().index(f"model: {model}") + 1
    fact = fact.format(folder=folder, here=Path.cwd(), repo=REPO)
    assert problems(lambda: moesim.load(file)) == [f"{file}:{line}: model: {fact}"]


def test_files_seen_from_the_working_folder_are_shown_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    split(folder)
    (folder / "sub/model.yaml").write_text("name: x\n" * 2)
    found = problems(lambda: moesim.load(folder / "tiny.yaml"))
    assert "sub/model.yaml:2: model.name: given twice (first on line 1); keep one" in found
    assert problems(lambda: moesim.load("none.yaml")) == [
        "none.yaml:1: cannot be read: No such file or directory; correct the path"]


def test_a_mistake_inside_a_list_is_placed_at_its_item() -> None:
    document = read_text("a:\n  - 1\n  - b: 2\n    c: 3\n", "file", Path.cwd())
    assert document.data == {"a": [1, {"b": 2, "c": 3}]}
    assert [document.place(path) for path in (("a", 0), ("a", 1), ("a", 1, "c"), ("a", 1, "d"), ("z",))] == [
        ("file", 2), ("file", 3), ("file", 4), ("file", 3), ("file", 1)]


def test_text_that_is_no_mapping() -> None:
    assert problems(lambda: read_text("- 1\n", "file", Path.cwd())) == ["file:1: must be a mapping of keys to values"]


# --- overrides -----------------------------------------------------------------------------------------------------

def test_overrides_of_parts() -> None:
    """By name; its parameters after that; parameters of a part that the file has given by name alone."""
    scheduler = registry.make("scheduler", {"name": "prefill_first", "max_batch": 3, "max_tokens": 64})
    assert moesim.load(TINY, ("scheduler.max_batch=3",)).scheduler == scheduler
    assert moesim.load(TINY, ("placement.solver=joint", "placement.solver.balance=0.5")).placement.solver == (
        registry.make("solver", {"name": "joint", "balance": 0.5}))
    default = registry.make("scheduler", "prefill_first")
    assert moesim.load(TINY, ("scheduler=prefill_first",)).scheduler == default != scheduler


def test_overrides_inside_a_named_file(folder: Path) -> None:
    """The file is put in place first, and a file named by an override too."""
    file = split(folder)
    assert moesim.load(file, ("model.hidden=128",)).model.hidden == 128
    layers = ("trace.synthetic.layers=32", "trace.synthetic.experts=8", "hardware.device=h100")
    made = moesim.load(file, ("model=mixtral-8x7b", *layers, "model.attention.kv_heads=4"))
    assert (made.model.name, made.model.hidden, made.model.attention.kv_heads) == ("mixtral-8x7b", 4096, 4)


@pytest.mark.parametrize(("overrides", "message"), [
    (("seed=-1",), "override seed=-1: seed: Input should be greater than or equal to 0, got -1"),
    (("model.hidden=wide",), "override model.hidden=wide: model.hidden: Input should be a valid integer, got 'wide'"),
    (("model={}",), "override model={}: model.name: missing; add it"),
    (("seed",), "override 'seed' is not of the form path=value"),
    (("=1",), "override '=1' is not of the form path=value"),
    (("seed=[1",), "seed: override 'seed=[1': '[1' is not valid YAML"),
    (("seed.x=1",), "seed: override 'seed.x=1': not a mapping"),
    (("placement.solver=lptt",),
     "override placement.solver=lptt: placement.solver: unknown solver 'lptt'; did you mean 'lpt'?"),
    (("model=mixtral",), "override model=mixtral: model: no 'mixtral' in workloads/models; did you mean 'mixtral-"),
])
def test_mistakes_in_overrides_say_so(overrides: tuple[str, ...], message: str) -> None:
    assert any(line.startswith(message) for line in problems(lambda: moesim.load(TINY, overrides)))


def test_overriding_a_loaded_scenario_still_finds_the_files_beside_it(folder: Path) -> None:
    trace = moesim.RoutingTrace.from_arrays([[[0]]], 1, 1)
    trace.write(folder / "own.parquet")
    (folder / "placement.json").touch()
    loaded = moesim.load(split(folder))
    made = moesim.override(loaded, ("trace={path: own.parquet}", "placement={path: placement.json}"))
    assert made.trace.path == folder / "own.parquet" and made.placement.path == folder / "placement.json"
    assert loaded.trace.path is None, "the first is as it was"


# --- what does not go together -------------------------------------------------------------------------------------

FABRIC = "hardware.fabric={name: switch, hosts: 4, link: 10 Gbit/s}"
SCALE_OUT = "hardware.scale_out={efficiency: 0.9, startup: 1 us, ramp: 0 s}"


@pytest.mark.parametrize(("overrides", "message"), [
    (("parallelism.mode=context_coherent", "parallelism.tp=2"), "parallelism.tp: must be 1 with mode context_coherent"),
    (("parallelism.tp=2", "model.attention.heads=3", "model.attention.kv_heads=3"),
     "parallelism.tp: 2 does not divide the 3 attention heads; use a divisor"),
    (("requests.concurrency=9",), "requests.concurrency: 9 is above requests.count 8; lower it"),
    (("requests={kind: closed_loop, concurrency: 1, count: 1, prompt_tokens: 1}",),
     "requests.output_tokens: missing; add it (trace.join is resampled: lengths are not the trace's)"),
    (("requests={kind: replay, path: tests/data/tiny.yaml}", "trace.join=paired"),
     "trace.join: paired takes the trace's own requests; use requests.kind poisson or closed_loop"),
    (("trace.path=tests/data/tiny.yaml",), "give exactly one of path (a captured trace), synthetic"),
    (("placement.path=tests/data/tiny.yaml",), "give exactly one of solver and path"),
    (("trace={}",), "give exactly one of path"), (("placement={}",), "give exactly one of solver and path"),
    (("hardware.nodes=2", FABRIC), "2 nodes need a fabric and scale_out to join them"),
    (("hardware.nodes=2", SCALE_OUT), "2 nodes need a fabric and scale_out to join them"),
    (("hardware.nodes=3", FABRIC, SCALE_OUT), "the fabric has 4 hosts for 6 devices (one network port each)"),
    (("hardware.device.processor.peak={fp8: 1 TFLOP/s}",), "peak must give bf16 or fp16"),
    (("parallelism.ep=3",),
     "parallelism.ep: 3 must be a multiple of parallelism.tp (1), and part of a node (2 devices)"),
    (("parallelism.ep=1", "parallelism.mode=context_coherent"),
     "parallelism.mode: the machine is 2 islands (parallelism.ep); this needs one: all devices"),
    (("parallelism.ep=1", "placement.online={every: 2}"), "placement.online: the machine is 2 islands"),
    (("placement=null",), "placement: missing; add it"), (("trace=null",), "trace: missing; add it"),
    (("model.moe=null", "model.dense_ffn=8"), "placement: model tiny has no experts; remove it"),
    (("scheduler.max_batch=0",), "scheduler: prefill_first: max_batch: Input should be greater than or equal to 1"),
    (("too_long=ignore",), "too_long: Input should be 'stop' or 'refuse'"),
    (("scheduler=null",),
     "scheduler: None is not a scheduler; write its name, one of: decode_first, expert_aware, prefill_first, static"),
])
def test_what_does_not_go_together(overrides: tuple[str, ...], message: str) -> None:
    assert any(message in line for line in problems(lambda: moesim.load(TINY, overrides)))


def test_what_goes_together_exactly() -> None:
    assert moesim.load(TINY, ("requests.concurrency=8",)).requests.concurrency == 8
    assert moesim.load(TINY, ("hardware.nodes=2", FABRIC, SCALE_OUT)).hardware.n_devices == 4
    peak = "hardware.device.processor.peak={fp16: 3 TFLOP/s, bf16: 2 TFLOP/s, fp8: 4 TFLOP/s}"
    processor = moesim.load(TINY, (peak,)).hardware.device.processor
    assert [processor.peak_flop_per_s(d) for d in ("fp8", "bf16", "fp16", "mxfp4")] == [4e12, 2e12, 3e12, 2e12]


def test_weights_that_fill_the_memory_to_the_last_expert(tmp_path: Path) -> None:
    """Four experts of 12 288 bytes in each of two layers, on two devices: four each; three experts: also four."""
    whole = moesim.load(TINY)
    assert whole.model.expert_bytes == 3 * 64 * 32 * 2 == 12288
    three = moesim.load(TINY, ("model.moe.experts=3", "trace.synthetic.experts=3"))
    for made in (whole, three):
        demand = fits.weight_bytes_per_device(made)
        assert demand == 4 * 12288 + made.model.non_expert_bytes(1)
        enough, full = (("memory_fraction=0.5", f"hardware.device.memory=[{{name: hbm, capacity: {2 * bytes_} B, "
                       "bandwidth: 100 GB/s}]") for bytes_ in (demand + 1, demand))
        assert fits.usable_bytes(moesim.override(made, enough)) == demand + 1
        assert any("the weights do not fit" in line for line in problems(partial(moesim.override, made, full)))


def test_read_remembers_the_folder(folder: Path) -> None:
    split(folder)
    assert read(folder / "sub/model.yaml").folder == folder / "sub"
