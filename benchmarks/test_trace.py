"""Reading a trace as large as a day of DeepSeek-V3's: 1 M tokens x 58 layers x 8 of 256 experts. Run: `make bench`.

Counts are asserted, times reported (ids per second under "extra_info"); memory is a bound and asserted. The target is
50 M routed ids per second from file to tokens per expert and step, and 1 GB of memory above the raw ids.
MOESIM_BENCH_TOKENS sets another number of tokens.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.synthetic import SyntheticTrace
from moesim.trace import RoutingTrace, read_trace
from moesim.trace_checks import checked_meta
from moesim.trace_file import TraceWriter
from moesim.trace_stats import step_counts

TOKENS = int(os.environ.get("MOESIM_BENCH_TOKENS", 1 << 20))
LAYERS, TOP_K, EXPERTS = 58, 8, 256
PER_REQUEST = 1024  # tokens; every request decodes one per step
BLOCK = 1 << 16
IDS = TOKENS * LAYERS * TOP_K


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a trace with uniformly random choices, block by block: only its size matters here."""
    path = tmp_path_factory.mktemp("bench") / "large.parquet"
    rng = np.random.default_rng(0)
    rows = np.argpartition(rng.random((BLOCK, EXPERTS), dtype=np.float32), TOP_K, axis=1)[:, :TOP_K].astype(np.uint16)
    block = np.stack([(np.roll(rows, 37 * layer, axis=0) + 7 * layer) % EXPERTS for layer in range(LAYERS)], axis=1)
    sizes = {"n_layers": LAYERS, "n_experts": EXPERTS, "top_k": TOP_K, "n_ranked": TOP_K}
    with TraceWriter(path, checked_meta({"model": "uniform", "synthetic": True}, sizes), probs=False) as writer:
        for start in range(0, TOKENS, BLOCK):
            row = np.arange(start, min(start + BLOCK, TOKENS))
            tokens = pd.DataFrame({"request": row // PER_REQUEST, "step": row % PER_REQUEST,
                                   "position": row % PER_REQUEST, "phase": 1, "token_id": -1,
                                   "domain": pd.Categorical(["x"] * len(row))})
            tokens = tokens.astype({"request": "i4", "step": "i4", "position": "i4", "phase": "u1", "token_id": "i4"})
            writer.write(tokens, (block[:len(row)] + start // BLOCK) % np.uint16(EXPERTS), None)
    return path


def report(benchmark: Any, function: Callable[[], Any], ids: int = IDS) -> Any:
    """Run *function* three times and note its ids per second."""
    result = benchmark.pedantic(function, rounds=3, warmup_rounds=0)
    benchmark.extra_info["million_ids_per_s"] = round(ids / 1e6 / benchmark.stats.stats.min)
    return result


def check(steps: np.ndarray, counts: np.ndarray) -> None:
    assert len(steps) == min(PER_REQUEST, TOKENS)
    assert counts.shape == (len(steps), LAYERS, EXPERTS)
    assert counts.sum() == IDS
    assert (counts.sum(axis=2) == counts[:, :1].sum(axis=2)).all(), "every layer routes every token"


def test_file_to_step_counts(benchmark: Any, file: Path) -> None:
    check(*report(benchmark, lambda: step_counts(file)))


def test_file_to_trace_to_step_counts(benchmark: Any, file: Path) -> None:
    check(*report(benchmark, lambda: step_counts(read_trace(file))))


MEASURE = """
import sys
import numpy as np
from moesim.trace import RoutingTrace, read_trace
from moesim.trace_stats import step_counts
def peak():  # not getrusage: its maximum survives exec and would be that of pytest
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
step_counts(RoutingTrace.from_arrays(np.zeros((2, 2, 1), np.uint16), 1, 1))  # compile before measuring
before = peak()
steps, counts = step_counts(sys.argv[1] if sys.argv[2] == "stream" else read_trace(sys.argv[1]))
print(counts.sum(), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("way", ["stream", "whole"])
def test_memory(benchmark: Any, file: Path, way: str) -> None:
    command = [sys.executable, "-c", MEASURE, str(file), way]
    out = benchmark.pedantic(lambda: subprocess.run(command, capture_output=True, text=True, check=True), rounds=1)
    ids, peak = map(int, out.stdout.split())
    raw = IDS * 2 if way == "whole" else 0
    benchmark.extra_info |= {"peak_mb": round(peak / 1e6), "above_raw_ids_mb": round((peak - raw) / 1e6)}
    assert ids == IDS
    assert peak - raw < 1e9


def test_checks_of_a_trace_in_memory(benchmark: Any, file: Path) -> None:
    trace = read_trace(file).select(np.arange(min(TOKENS, BLOCK)))
    arguments = (trace.tokens, trace.experts, None, EXPERTS, TOP_K, trace.meta)
    report(benchmark, lambda: RoutingTrace(*arguments), trace.experts.size)


def test_synthetic_generation(benchmark: Any) -> None:
    recipe = SyntheticTrace(preset="gpt_oss_20b", requests=128, prompt_tokens=64, output_tokens=64)
    trace = report(benchmark, recipe.generate, 128 * 128 * 24 * 4)
    assert trace.counts().sum() == 128 * 128 * 24 * 4
