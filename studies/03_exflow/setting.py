"""The points of ExFlow's experiment: models, GPUs, placements; and how to make a scenario of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import moesim
from moesim import Scenario
from moesim.trace import RoutingTrace, read_trace

HERE = Path(__file__).resolve().parent
PER_NODE = 4
GPUS = (4, 8, 16, 32, 64)
EXPERTS = (8, 16, 32, 64)
GRID = tuple((e, n) for e in EXPERTS for n in GPUS if n <= e)  # at least one expert of a layer on every GPU
PER_GPU = 16  # requests per GPU; not in the sources at hand: assumed, and varied at one point (BATCHES)
BATCHES = (1, 4, 16, 64, 256, 512)  # with 1024 the keys and values of 8 GPUs do not fit on every one of them
PLACEMENTS = ("linear", "affinity_sweep", "joint")
# Layers with experts: as assumed, or all (then 12 layers, because the trace has 12).
LAYERS: dict[str, dict[str, Any]] = {
    "every second": {}, "all": {"model__layers": 12, "model__moe__layers": "all", "model__dense_ffn": 0}}
SEED = 0


class Published(NamedTuple):
    """What ExFlow reports of a model on a number of GPUs, as third-party notes of arXiv 2401.08383 have it."""

    experts: int
    gpus: int
    speedup: float | None = None  # throughput over DeepSpeed-MoE's
    fewer: float | None = None  # tokens that change GPU, less of them than without affinity


# "Up to": 1.6 is said of 8 to 16 GPUs. 67 % fewer is said without a point ("up to").
PUBLISHED = (Published(8, 8, speedup=1.10), Published(16, 8, speedup=2.2), Published(32, 8, speedup=1.6),
             Published(32, 16, speedup=1.6), Published(64, 4, fewer=0.40), Published(64, 32, fewer=0.25))
UP_TO_FEWER = 0.67
# ExFlow's own placements of Mixtral 8x7B: the cost in the names of its repository's files over 31 layer pairs
# (YJHMITWEB/ExFlow, solutions/: 17.495 on 4 GPUs, 22.166 on 8).
MIXTRAL = {4: 17.495347692691237 / 31, 8: 22.166013704896926 / 31}


def trace_path(experts: int) -> Path:
    """Return where the routing of the small model with *experts* is."""
    return HERE / "traces" / f"moe-{experts}.parquet"


def trace(experts: int) -> RoutingTrace:
    """Return that routing."""
    return read_trace(trace_path(experts))


def nodes_of(gpus: int) -> int | None:
    """Return the devices of a node for solvers and ``evaluate``; None if there is one node."""
    return PER_NODE if gpus > PER_NODE else None


def scenario(experts: int, gpus: int, per_gpu: int = PER_GPU, **changes: Any) -> Scenario:
    """Return scenario.yaml for this point; *changes* are overrides, ``__`` for dots (``parallelism__mode=...``)."""
    count = per_gpu * gpus
    fixed = {"model.moe.experts": experts, "hardware.nodes": gpus // PER_NODE, "trace.path": trace_path(experts),
             "requests.count": count, "requests.concurrency": count, "seed": SEED}
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return moesim.load(HERE / "scenario.yaml", [f"{key}={value}" for key, value in (fixed | given).items()])
