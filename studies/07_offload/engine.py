"""What a miss should become, in the engine: tokens/s of decode by the share of experts that fit, for every answer.

Three models on an A100 with a host that computes (a100-xeon-1x1), which has as much memory as each point asks for.
"""

from __future__ import annotations

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import setting

import moesim
from moesim.result import Result
from moesim.scenario import Scenario, load, override
from moesim.synthetic import SyntheticTrace
from moesim.trace import read_trace

SCENARIO = Path(__file__).resolve().parent / "scenario.yaml"
SHARES, BATCHES, OUTPUT = (0.125, 0.25, 0.5, 0.75), (1, 4, 16), 16
ROOM = "[{name: hbm, capacity: 200 GB, bandwidth: 1.555 TB/s}]"  # a what-if: the A100's, with room for every point
OWN, FEW = setting.MODELS.parent / "traces" / "reference-moe.parquet", 80  # requests of it: read again by every run


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, where its routing is from, and what ways do to it.

    Half of top-k is put off or skipped. ``keep`` and ``window`` of rerouting as in arXiv 2412.00099 (keep one for
    Mixtral, two for DeepSeek) and twice top-k. ``recall``: of the next layer's experts, one layer ahead.
    """

    experts: int
    top_k: int
    keep: int
    recall: float
    synthetic: SyntheticTrace | None = None

    def ways(self) -> dict[str, dict[str, Any]]:
        """Return every way to answer a miss: the section ``cache`` without its capacity."""
        half, static = self.top_k // 2, {"policy": "static"}
        return {
            "fetch": {"policy": "lru"},
            "fetch, prefetched": {"policy": "lru", "prefetcher": {"name": "next_layer_gate", "recall": self.recall}},
            "cheapest": static | {"miss": "cheapest"},
            "host": static | {"miss": "host"},
            "defer": static | {"miss": {"name": "defer", "choices": half}},
            "low precision": {"policy": "lru", "miss": {"name": "low_precision", "threshold": 1 / self.top_k}},
            "skip": {"policy": "lru", "miss": {"name": "skip", "keep": self.top_k - half}},
            "reroute": {"policy": "lru", "reroute": {"name": "cache_conditional", "keep": self.keep,
                                                     "window": 2 * self.top_k}}}


# One layer ahead: 84 % of Mixtral's choices (DAOP, arXiv 2501.10375), 66.9 % of models with small experts (skip-based,
# ProMoE, arXiv 2410.22134); of our own model it is not known: taken as Mixtral's, top-2 as well
CASES = {
    "mixtral-8x7b": Case(8, 2, 1, 0.84),  # routing: scenario.yaml's
    "deepseek-v2-lite": Case(64, 6, 2, 0.669, SyntheticTrace(preset="dsv2_lite", requests=32, prompt_tokens=32,
                                                             output_tokens=48, ranked=12)),
    "reference-moe-scaled": Case(32, 2, 1, 0.84)}  # routing: captured, the trace that ships
EXACT = ("fetch", "fetch, prefetched", "cheapest", "host")  # the others change answers


def measured(result: Result) -> dict[str, float]:
    """Return what steps that only decode say: tokens/s, hits, shares of choices and of time."""
    steps = result.steps.query("decode_tokens > 0 and prefill_tokens == 0")
    length, total = steps["end_s"] - steps["start_s"], steps.sum(numeric_only=True)

    def of_choices(*columns: str) -> float:
        return sum(float(total.get(f"{c}_choices", 0.0)) for c in columns) / total.get("expert_choices", 1.0)

    return {"tokens_per_s": total["decode_tokens"] / length.sum(), "step_s": float(length.mean()),
            "hits": total["expert_hits"] / (total["expert_hits"] + total["expert_misses"]),
            "changed": of_choices("skipped", "deferred", "low_precision", "swapped"), "at_host": of_choices("host"),
            "fetch_share": total["fetch_s"] / length.sum(), "fetched_bytes": float(total.get("fetched_bytes", 0.0))}


def _one(what: str, result: Result) -> float:
    return measured(result)[what]


def base(name: str, folder: Path) -> Scenario:
    """Return the scenario of model *name*; its routing is written into *folder*."""
    case, made = CASES[name], load(SCENARIO)
    path, synthetic = folder / f"{name}.parquet", case.synthetic or made.traced.synthetic
    if name == "reference-moe-scaled":
        trace = read_trace(OWN)
        trace.of_requests(trace.requests[:FEW]).write(path)
    else:
        assert synthetic is not None, "written in the scenario"
        synthetic.generate().write(path)
    return override(made, (f"model={name}", f"trace={{path: {path}, scaled: true}}",
                           f"hardware.device.memory={ROOM}", "cache=null"))


def curves() -> pd.DataFrame:
    """Return a row for every model, batch, share of experts that fit and way."""
    tables = []
    kept = ("tokens_per_s", "hits", "changed", "at_host", "fetch_share")
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            wanted = [(batch, share, way) for batch in BATCHES for share in SHARES for way in case.ways()
                      if way != "cheapest" or batch == BATCHES[-1]]  # with fewer tokens the host costs even less
            points = [_point(batch, round(share * case.experts), case.ways()[way]) for batch, share, way in wanted]
            found = moesim.sweep(base(name, Path(folder)), points, {what: partial(_one, what) for what in kept})
            if found["error"].notna().any():
                raise RuntimeError(found["error"].dropna().iloc[0])
            labels = pd.DataFrame(wanted, columns=["batch", "share", "way"])
            tables.append(pd.concat([labels, found[list(kept)]], axis=1).assign(model=name))
    return pd.concat(tables, ignore_index=True)[["model", "batch", "share", "way", *kept]]


def _point(batch: int, capacity: int, way: dict[str, Any]) -> dict[str, Any]:
    return {"requests": {"kind": "closed_loop", "concurrency": batch, "count": max(batch, 2), "prompt_tokens": 32,
                         "output_tokens": OUTPUT},
            "scheduler": {"name": "prefill_first", "max_batch": batch, "max_tokens": 1024},
            "cache": {"capacity": capacity, "overflow": "stream"} | way}
