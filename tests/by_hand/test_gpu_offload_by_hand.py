"""Study 08: tokens per second with experts on the host, worked out on paper from made-up rows, and what a page says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch")

from moesim.measure.blocks.layer_stack import small
from moesim.measure.journal import as_table

MODULES = ("offloading", "judging", "figures", "pages")
# Experts of two products, [128, 64] and [64, 64]: 49152 bytes in fp32, 32768 and 16384.
SPEC = small("synthetic", "fp32", hidden=64, layers=2, experts=16, top_k=2, ffn=64, heads=(4, 2, 16))
LAUNCH = {"layer_submit": 3e-3, "experts_submit_8": 2e-3, "experts_submit_64": 16e-3, "guess_submit": 1e-3,
          "copy_submit": 0.5e-3, "sync": 0.1e-3, "graph_100": 2e-4, "graph_1000": 1.1e-3}


@pytest.fixture(scope="module")
def parts(study_modules: Callable[..., Any], repo: Path) -> Iterator[SimpleNamespace]:
    with study_modules(repo / "studies/08_gpu_evidence", MODULES) as found:
        yield SimpleNamespace(**found)


class Kernels:
    """A product takes 0.1 ms per row, whatever its size."""

    dtype, model = "fp32", None

    def time_s(self, op: str, m: float, n: float, k: float) -> np.ndarray:
        return np.array(1e-4 * m)


def row(op: str, impl: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {"op": op, "impl": impl, "time_s": seconds, "time_p10_s": seconds, "time_p90_s": 1.1 * seconds,
            "status": "ok", "dtype": "fp32", "cold": True, "sentinel": False, "source": "synthetic", **more}


def run(impl: str, seconds: float, missed: float, fetched: float) -> dict[str, Any]:
    """Two layers, each of 8 experts used by 8 choices of 4 tokens."""
    return row("offload", impl, seconds, x_resident=0.5, x_batch=4, x_model="small-16", x_fetch="pinned", x_context=64,
               x_hit_rate=1 - missed / 16, x_hits_per_step=16 - missed, x_misses_per_step=missed,
               x_bytes_per_step=49152 * fetched)


def folder(place: Path, runs: list[dict[str, Any]], launch: dict[str, float] = LAUNCH) -> Path:
    """Copies take 1 ms and 1 ms per 16384 bytes: an expert's two take 3 + 2 = 5 ms."""
    copies = [row("copy", "h2d_pinned_1", 1e-3 * (1 + n), bytes=16384.0 * n) for n in (1, 4, 100)]
    for name, table in (("kernels/measurements", copies + [row("launch", n, s) for n, s in launch.items()]),
                        ("offload/others", runs)):
        (place / name).parent.mkdir(parents=True)
        (place / f"{name}.parquet").write_bytes(as_table(table).to_parquet(index=False))
    return place


@pytest.fixture
def judged(parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A layer's rest takes 2 ms on the device, its experts in one kernel 5 ms."""
    monkeypatch.setattr(parts.offloading.layer_stack, "model", lambda name, dtype: SPEC)
    monkeypatch.setattr(parts.offloading.validate, "predicted_phases_s",
                        lambda case, device, kernels, ids: {"attention": 3e-3, "head": 1e-3, "experts": 10e-3})
    return lambda place, kind="cuda": parts.offloading.offload(place, None, Kernels(), kind)


def test_copies_are_a_line(parts: SimpleNamespace, tmp_path: Path) -> None:
    found = parts.offloading.fitted_copies(folder(tmp_path, []), "h2d_pinned_1", 1)
    assert found == pytest.approx((1e-3, 1e-3 / 16384)) and found.seconds(32768) == pytest.approx(3e-3)
    assert parts.offloading.fitted_copies(tmp_path, "host_memcpy", 2) is None


def test_a_layer_is_bound_by_the_cpu_or_by_copies(judged: Callable[..., Any], tmp_path: Path) -> None:
    """Of 8 experts each computes 2 x 0.1 ms and two kernels of 1 us: 1.616 ms; with the rest 3.616 ms, 0.1 ms to wait.

    None missed: the CPU starts 8 experts in 2 ms and the rest in 3 ms, longer than 3.716 ms: 10 ms both layers. One
    missed per layer: 5 ms fetch it, 8.716 ms; 6 ms of the CPU.
    """
    found, why = judged(folder(tmp_path, [run("lru", 10e-3, 0, 0), run("lru", 20e-3, 2, 2)]))
    assert not why and found["missed_per_layer"].tolist() == [0, 1] and found["used_per_layer"].tolist() == [8, 8]
    assert found["predicted_tok_s"].tolist() == pytest.approx([4 / 10e-3, 4 / (2 * 8.716e-3)])
    assert found["error_percent"].tolist() == pytest.approx([0.0, 100 * (20 / 17.432 - 1)]), "of tokens per second"


def test_what_is_fetched_ahead_runs_beside_the_rest_of_the_layer(judged: Callable[..., Any], tmp_path: Path) -> None:
    """Two of a layer ahead: 2 ms to start 4 copies, 10 ms until they are there; the routing is known after 2 + 3 ms.

    Then none is missed and experts compute 1.616 ms: 11.616 ms, and 1 ms for the next guess. One missed: 5 ms more.
    """
    found, _ = judged(folder(tmp_path, [run("lru_prefetch", 1.0, 0, 4), run("lru_prefetch", 2.0, 2, 6)]))
    assert found["ahead_per_layer"].tolist() == [2, 2]
    assert found["predicted_tok_s"].tolist() == pytest.approx([4 / (2 * 12.616e-3), 4 / (2 * 17.616e-3)])


def test_on_a_cpu_everything_is_one_after_the_other(judged: Callable[..., Any], tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch, parts: SimpleNamespace) -> None:
    """2 ms rest, 5 ms experts, 3 fetched of 5 ms each: 22 ms a layer."""
    monkeypatch.setitem(parts.offloading.COPIES, "cpu", ("h2d_pinned_1", 1))
    found, _ = judged(folder(tmp_path, [run("lru_prefetch", 1.0, 2, 6)]), "cpu")
    assert found["predicted_tok_s"].tolist() == pytest.approx([4 / 44e-3])


def test_what_is_missing_is_said_and_nothing_predicted(judged: Callable[..., Any], tmp_path: Path) -> None:
    without = {name: seconds for name, seconds in LAUNCH.items() if name != "layer_submit"}
    found, why = judged(folder(tmp_path / "a", [run("lru", 1.0, 0, 0)], without))
    assert found.empty and why == "Measured, and not predicted: layer_submit missing among the rows; measure again."
    old = {n: v for n, v in run("lru", 1.0, 0, 0).items() if n != "x_misses_per_step"}
    assert "x_misses_per_step missing" in judged(folder(tmp_path / "b", [old]))[1]
    assert judged(folder(tmp_path / "c", []))[1] == "Not measured."


def test_the_page_says_what_was_cut_short(parts: SimpleNamespace) -> None:
    done = {"turns": [9, 9], "points": {"measured": 9, "planned": 9, "all": 9}, "failed_rows": 0}
    said = {name: done for name in ("kernels", "offload", "again", "rest")} | {
        "steps": {"turns": [68, 70], "points": {"measured": 66, "planned": 68, "all": 96}, "failed_rows": 2},
        "training": {"steps": 400, "planned_steps": 500},
        "capture": {"complete": False, "prefill": 41000, "decode": 20100, "wanted": [50000, 20000]}}
    found = parts.judging.Found({}, *[pd.DataFrame()] * 4, "", said, {"steps": "cut", "training": "open"})
    told = parts.pages.incomplete(found).splitlines()[2:]
    assert told == [
        "| steps | its time was used up; stopped after 68 of 70 turns; 66 of 96 points measured (68 were planned for "
        "its time, 2 rows failed) |",
        "| training | not at its end when this was packed; 400 of 500 training steps |",
        "| capture | 41,000 of 50,000 tokens of prefill, 20,100 of 20,000 of decode |"]
    found.said, found.standing = {name: done for name in parts.pages.PIECES}, {}
    assert parts.pages.incomplete(found) == "Nothing: every piece came to its end."
