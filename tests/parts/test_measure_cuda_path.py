"""Every line that measures on a GPU, run on a CPU: the device's name, its streams, events and graphs are stand-ins.

What runs is what a GPU would be asked to do; times mean nothing. Kernels in Triton have tests of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.overrides import TorchFunctionMode  # noqa: E402

from moesim import registry  # noqa: E402
from moesim.measure import energy, engines, layers, runner, shapes, timing  # noqa: E402
from moesim.measure.blocks import activated_experts, layer_stack, offload  # noqa: E402
from moesim.measure.blocks import energy as energies  # noqa: E402
from moesim.measure.blocks.layer_stack import small  # noqa: E402
from moesim.measure.journal import Journal  # noqa: E402
from moesim.measure.plan import Item, Plan  # noqa: E402
from moesim.measure.target import Target  # noqa: E402

GPU = Target("cuda", "a GPU", "bf16", 2e9, 1e5, 132, 400e12, 2e12)
TINY = {"hidden": 64, "layers": 2, "experts": 8, "top_k": 2, "ffn": 32}


class OnCpu(TorchFunctionMode):
    """Makes on the CPU what is asked for on a GPU, without pinning."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: "cpu" if value == "cuda" else value for name, value in (kwargs or {}).items()
                  if name != "pin_memory"}
        return function(*("cpu" if isinstance(a, str) and a == "cuda" else a for a in args), **kwargs)


class Stream:
    def wait_stream(self, other: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None: ...


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


class Graph:
    """Replays nothing: its calls ran when they were captured."""

    def replay(self) -> None: ...


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    @contextmanager
    def graph(graph: Graph, stream: Stream | None = None) -> Iterator[None]:
        assert isinstance(graph, Graph)
        yield

    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    for name, value in {"Stream": Stream, "Event": Event, "CUDAGraph": Graph, "graph": graph, "synchronize": nothing,
                        "current_stream": Stream, "stream": nullcontext, "empty_cache": nothing}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setitem(timing.NORMAL, "cuda", timing.Effort(2, 1))
    monkeypatch.setattr(timing, "GRAPH_SECONDS", 0.0)
    monkeypatch.setattr("moesim.measure.blocks.launch.EAGER", 3)
    monkeypatch.setattr("moesim.measure.blocks.interference.COPIED", 1e4)
    monkeypatch.setattr("moesim.measure.blocks.interference.SIZES", {
        "gemm": [(4, 8), (4, 8)], "stream": [(1, 8), (4, 8)], "experts": [(4, 8), (4, 2), (4, 8, 8), (4, 8, 4)],
        "decode": [(2, 4, 16), (2, 2, 8, 16), (2, 2, 8, 16)]})
    monkeypatch.setitem(shapes.EXPERTS, "cuda", ((8, 64, 32, 2),))
    monkeypatch.setitem(activated_experts.LAYERS, "cuda", ((8, 64, 32, 2),))
    monkeypatch.setattr(energies, "FROM", {"memory": 1, "router": 1})
    monkeypatch.setattr(energies, "loops", partial(energies.loops, seconds=1e-3))
    monkeypatch.setitem(shapes.HEADS, "cuda", (shapes.Heads(4, 2, 16),))
    monkeypatch.setattr("moesim.measure.blocks.interference.SHORT_S", 1e-5)
    monkeypatch.setattr(layer_stack, "model", lambda name, dtype: small(name, dtype, heads=(4, 2, 16), **TINY))
    monkeypatch.setattr(layer_stack, "STEPS", {"cuda": [(0, 0, 2, 8), (8, 0, 0, 0), (16, 4, 2, 8)]})
    monkeypatch.setattr(offload, "CONTEXT", {"cuda": 8})
    monkeypatch.setattr(energies, "SECONDS", 1e-3)
    monkeypatch.setattr(energy, "counter", lambda kind: time.perf_counter)
    monkeypatch.setattr(engines, "experts", lambda impl: (layers.experts_loop, True))
    monkeypatch.setattr(engines, "decode_triton", decode)
    with OnCpu():
        yield


def nothing() -> None: ...


def decode(lengths: list[int], device: str) -> Callable[..., Any]:
    return lambda q, keys, values: layers.decode_sdpa(q, keys, values, lengths)


def cheapest(block: str) -> list[Any]:
    """The cheapest points of a block: one of every implementation, routing and graph or not; small enough for a CPU."""
    found: dict[tuple[str, str, str], Any] = {}
    for point in registry.make("bench", block).points(GPU):
        name = (point.op, point.impl, point.extra.get("lengths", ""))
        if name not in found or cost(point) < cost(found[name]):
            found[name] = point
    return list(found.values())


def cost(point: Any) -> float:
    return float(point.whole_s or GPU.guess_s(point))


def run(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    items = [Item(block, point, 1.0) for point in cheapest(block) if "nodes" not in point.extra
             or point.extra["nodes"] <= 10]
    monkeypatch.setattr(runner, "planned", lambda target, options: Plan(items, [], {}))
    monkeypatch.setattr(runner, "describe", lambda target: dict.fromkeys(runner.SAME, "a GPU"))
    return runner.measure(GPU, folder, runner.Options()).rows


@pytest.mark.parametrize("block", registry.names("bench"))
def test_every_block_measures_on_a_gpu(block: str, gpu: None, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(block, tmp_path, monkeypatch)
    assert rows
    # back-ends of attention, and bf16 products of groups, that a CPU does not have
    wrong = [(row["impl"], row["x_error"]) for row in rows if row["status"] != "ok"
             and row["impl"] not in ("sdpa_flash", "sdpa_cudnn", "sdpa_efficient")]
    assert not wrong, wrong


def test_a_kernel_that_loses_the_device_twice_is_left_out(gpu: None, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Three points of one kernel: two runs end by a lost device; the third goes on without, to the other kernel."""
    points = [p for p in registry.make("bench", "dense_gemm").points(GPU) if p.shapes["m"] == 1][:3]
    other = cheapest("memory")[0]
    items = [*(Item("dense_gemm", p, 1.0) for p in points), Item("memory", other, 1.0)]
    monkeypatch.setattr(runner, "planned", lambda target, options: Plan(items, [], {}))
    monkeypatch.setattr(runner, "describe", lambda target: dict.fromkeys(runner.SAME, "a GPU"))
    monkeypatch.setattr("moesim.measure.blocks.dense_gemm.DenseGemm.work", lambda *given: 1 / 0)
    monkeypatch.setattr(runner, "_answers", lambda kind: False)
    for _ in range(2):
        with pytest.raises(runner.DeviceLost, match="does not answer after gemm, linear"):
            runner.measure(GPU, tmp_path, runner.Options())
    monkeypatch.setattr(runner, "_answers", lambda kind: True)
    rows = runner.measure(GPU, tmp_path, runner.Options()).rows
    assert [(r["status"], r.get("x_lost", False)) for r in rows] == [
        ("error", True), ("error", True), ("error", False), ("ok", False)]
    assert rows[2]["x_error"] == "skipped: linear lost the device 2 times before"
    assert Journal(tmp_path).rows == rows
