"""Predicting 100,000 rows in one call with the fitted H200 kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.kernels import load

ROWS = 100_000
RNG = np.random.default_rng(0)
SHAPES: dict[str, dict[str, Any]] = {
    "gemm": {"m": RNG.integers(1, 8192, ROWS), "n": 4096, "k": RNG.integers(512, 8192, ROWS)},
    "moe": {"tokens_per_expert": RNG.poisson(3.0, (ROWS, 128)), "hidden": 2048, "inter": 768},
    "attention_prefill": {"batch": 1, "q_len": RNG.integers(1, 8192, ROWS), "kv_len": 8192, "heads_q": 32,
                          "heads_kv": 4, "head_dim": 128},
    "attention_decode": {"batch": RNG.integers(1, 256, ROWS), "kv_len": RNG.integers(1, 8192, ROWS), "heads_q": 32,
                         "heads_kv": 4, "head_dim": 128},
}


@pytest.mark.parametrize("name", ["h200-tile", "h200-residual"])
@pytest.mark.parametrize("op", SHAPES)
def test_predict(benchmark: Any, name: str, op: str) -> None:
    kernels = load(name)
    kernels.time_s(op, **SHAPES[op])  # compiles the loops
    times = benchmark(kernels.time_s, op, **SHAPES[op])
    assert len(times) == ROWS and (times > 0).all()
