"""Published serving points of gpt-oss-120b on one H200, from kernels that were fitted to kernel timings alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import moesim

HERE = Path(__file__).resolve().parent
LONG = 4096  # output tokens from which the first wave of requests is enough
KEYS = ["isl", "osl", "concurrency"]
# Nobody recorded the routing. The first is what was chosen beforehand (gpt_oss.yaml says why); the other shows what the
# choice is worth.
CHOSEN = "skewed as gpt-oss-20b"
_EVEN = "trace.synthetic.parameters={sigma_b: 0, a: 0, s: 0, sigma_d: 0, domains: 1}"
ROUTINGS = {CHOSEN: [], "every expert equally likely": [_EVEN]}


def published(path: Path) -> pd.DataFrame:
    """Return the points: isl, osl, concurrency, engine, tpot_ms, ttft_ms; each once.

    *path*: ``silicon_sample.csv`` of ai-dynamo/aiconfigurator, a part of it, or a folder that holds it. Raises
    ``ValueError``.
    """
    files = [path] if path.is_file() else sorted([*path.glob("**/silicon_sample.csv"), *path.glob("**/*gptoss*.csv")])
    if not files:
        raise ValueError(f"{path}: holds no silicon_sample.csv; give a clone of ai-dynamo/aiconfigurator")
    table = pd.read_csv(files[0], low_memory=False)
    here = ((table["system"] == "h200_sxm") & (table["backend"] == "vllm") & (table["tp_size"] == 1)
            & (table["model_path"] == "openai/gpt-oss-120b") & (table["moe_ep_size"] == 1))
    if "mode" in table:
        here &= table["mode"] == "agg"
    rows = table[here].rename(columns={"silicon_tpot_ms": "tpot_ms", "silicon_ttft_ms": "ttft_ms"})
    rows = rows.assign(engine=rows["backend_version"].fillna("not recorded"))
    return rows.drop_duplicates(KEYS).sort_values(KEYS, ignore_index=True)[[*KEYS, "engine", "tpot_ms", "ttft_ms"]]


def tasks(folder: Path) -> list[tuple[dict[str, Any], str]]:
    """Return the arguments of every ``simulate``, the long ones first."""
    points = sorted(published(folder).to_dict("records"), key=lambda point: -point["osl"])
    return [(point, routing) for routing in ROUTINGS for point in points]


def scenario(point: dict[str, Any], routing: str) -> moesim.Scenario:
    """Return the scenario of a published *point*: four waves of requests, two where outputs are long."""
    users = int(point["concurrency"])
    lengths = {name: f"{{low: {int(0.8 * point[key])}, high: {int(point[key])}}}"
               for name, key in (("prompt_tokens", "isl"), ("output_tokens", "osl"))}
    return moesim.load(HERE / "gpt_oss.yaml", [
        f"requests.concurrency={users}", f"requests.count={users * (2 if point['osl'] > LONG else 4)}",
        *(f"requests.{name}={given}" for name, given in lengths.items()), f"scheduler.max_batch={users}",
        *ROUTINGS[routing]])


def simulate(point: dict[str, Any], routing: str) -> dict[str, Any]:
    """Return a row: *point*, and mean milliseconds per output token and to the first one, while the load is full.

    That is the second and third of four waves. Of two, the first: long outputs hardly notice the prompts that come in.
    """
    began = time.perf_counter()
    result = moesim.simulate(scenario(point, routing))
    users = int(point["concurrency"])
    waves = slice(0, users) if point["osl"] > LONG else slice(users, 3 * users)
    seen = result.requests.sort_values("arrival_s", kind="stable").iloc[waves]
    return point | {"routing": routing, "simulated_tpot_ms": 1e3 * seen["tpot_s"].mean(),
                    "simulated_ttft_ms": 1e3 * seen["ttft_s"].mean(), "steps": len(result.steps),
                    "seconds": time.perf_counter() - began}


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per routing: median error (%) as it is and with one factor, bias, and rank correlation.

    The factor of a point is fitted to all others (the median of measured over simulated); ``by_engine``: to those of
    the same engine version.
    """
    found = []
    for routing, some in rows.groupby("routing", sort=False):
        ratio = np.log((some["tpot_ms"] / some["simulated_tpot_ms"]).to_numpy())
        engine = some["engine"].to_numpy()
        every = np.arange(len(ratio))
        others = [np.median(ratio[every != i]) for i in every]
        same = [np.median(ratio[(every != i) & (engine == engine[i])]) for i in every]
        off = {name: 100 * float(np.median(np.abs(np.expm1(np.asarray(factor) - ratio))))
               for name, factor in (("zero_shot", np.zeros(len(ratio))), ("one_factor", others), ("by_engine", same))}
        found.append({"routing": routing, **off, "bias": 100 * float(np.expm1(-np.median(ratio))),
                      "factor": float(np.exp(np.median(ratio))),
                      "spearman": float(some["tpot_ms"].corr(some["simulated_tpot_ms"], method="spearman"))})
    return pd.DataFrame(found)
