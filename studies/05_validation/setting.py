"""The two public runs of this study: where they are in a download, and how they are simulated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import moesim
from moesim import runs

HERE = Path(__file__).resolve().parent
RUNS = {"llama": "Llama-3.1-8B", "qwen": "Qwen3-30B-A3B-Instruct-2507"}  # scenario -> folder of run and profile
SHOWN = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E"}
JITTER = 0.01  # of step times: assumed; kernels of one shape repeat to about 1 % (study 04, separate collections)
T = TypeVar("T")


def places(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the run of the scenario *name* in *folder*, and the profile of its model. Raises ``ValueError``."""
    found = [sorted(folder.glob(f"**/RTXPRO6000/{pattern}")) for pattern in (
        f"{RUNS[name]}/vllm/requests.jsonl", f"*/{RUNS[name]}/bf16/tp1/attention.csv")]
    if not all(found):
        raise ValueError(f"{folder}: holds no RTXPRO6000/{RUNS[name]}/vllm, or no profile of that model; give a clone "
                         f"of casys-kaist/LLMServingSim")
    return found[0][0].parent, found[1][0].parent.parent


def validate(folder: Path, name: str, overrides: Iterable[str] = ()) -> runs.Validation:
    """Return the run of the scenario *name*, found in *folder*, beside its simulation with *overrides*.

    Layer times are those of LLMServingSim's profile of the GPU in *folder*. Raises ``ValueError``.
    """
    run, profile = places(folder, name)
    scenario = moesim.load(HERE / f"{name}.yaml", [f"profile={{name: llmservingsim, path: {profile}}}", *overrides])
    return runs.validate(runs.read(run), scenario)


def jittered(seed: int) -> list[str]:
    """Return the overrides of a run whose steps differ by ``JITTER`` at random."""
    return [f"engine.jitter={JITTER}", f"seed={seed}"]


def spread(function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], workers: int | None = None) -> list[T]:
    """Return ``function(*task)`` of all *tasks*, in order, from one process per CPU."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    with ProcessPoolExecutor(workers or min(len(tasks), os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        return [waiting.result() for waiting in [pool.submit(function, *task) for task in tasks]]
