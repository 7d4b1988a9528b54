"""What an iteration costs, part by part, and the speed-up under four ways of counting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import setting

import moesim
from moesim import placement as placing
from moesim.network import Network
from moesim.placement import Placement

COMPUTE = ("attention_s", "gate_s", "experts_s", "dense_s", "head_s")
COUNTINGS = ("exflow", "waiting", "kv", "full")  # each with one cost more: ``accounted``
PARTS = (*COMPUTE, "wait_s", "dispatch_s", "combine_s", "context_s")
# DeepSpeed's MoE layer (deepspeed/moe/layer.py): eval_capacity_factor 1, min_capacity 4, every expert's rows are sent
CAPACITY_FACTOR, MIN_CAPACITY = 1.0, 4


def measure(scenario: moesim.Scenario) -> dict[str, float]:
    """Run *scenario*; return seconds of an iteration (step_s), of its parts, and of the prompts' step (prefill_s).

    Means over the decode steps but the first (a token has no last expert yet). ``kv_room``: tokens whose keys and
    values the fullest device has room for.
    """
    result = moesim.simulate(scenario)
    steps = result.steps
    took = steps["end_s"] - steps["start_s"]
    decode = (steps["prefill_tokens"] == 0).to_numpy(copy=True)
    decode[np.argmax(decode)] = False
    if not np.allclose(steps.loc[decode, "decode_tokens"], scenario.requests.count):
        raise ValueError("not all requests ran together: the KV memory is too small for this point; fewer per GPU")
    parts = {part: float(steps.loc[decode, part].mean()) if part in steps else 0.0 for part in PARTS}
    room = result.memory["kv_capacity_bytes"].min() / scenario.model.kv_bytes_per_token
    return parts | {"step_s": float(took[decode].mean()), "prefill_s": float(took.iloc[0]),
                    "load_max_over_mean": float(steps.loc[decode, "load_max_over_mean"].mean()), "kv_room": float(room)}


def rows(experts: int, gpus: int, per_gpu: int = setting.PER_GPU, names: tuple[str, ...] = setting.PLACEMENTS,
         layers: str = "every second") -> list[dict[str, Any]]:
    """Return one row for the baseline (dispatch_combine, linear) and one per placement of *names*, context-coherent.

    *layers*: which layers have experts (``setting.LAYERS``). ``context_hidden_s``: the exchange after an iteration, if
    one vector per token were enough.
    """
    about, changes = {"experts": experts, "gpus": gpus, "per_gpu": per_gpu, "layers": layers}, setting.LAYERS[layers]
    base = setting.scenario(experts, gpus, per_gpu, **changes)
    found = [about | {"mode": "dispatch_combine", "placement": "linear", "context_hidden_s": 0.0}
             | measure(base) | {"padded_s": padded_exchange_s(base, per_gpu)}]
    profile = setting.trace(experts).profile(base.trace.profile_fraction, setting.SEED)
    with TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder) / f"{name}.json"
            solved(profile, gpus, name).save(path)
            runs = [measure(setting.scenario(
                experts, gpus, per_gpu, **changes, parallelism__mode="context_coherent", parallelism__context=sent,
                placement=f"{{path: {path}}}")) for sent in ("kv", "hidden")]
            found.append(about | {"mode": "context_coherent", "placement": name} | runs[0]
                         | {"context_hidden_s": runs[1]["context_s"], "padded_s": 0.0})
    return found


def solved(profile: Any, gpus: int, name: Any) -> Placement:
    """Return the placement of solver *name* on *gpus*."""
    return placing.solve(profile, gpus, name, setting.SEED, devices_per_node=setting.nodes_of(gpus))


def padded_exchange_s(scenario: moesim.Scenario, per_gpu: int) -> float:
    """Return the seconds of all all-to-alls of an iteration if every GPU sends every expert its whole capacity."""
    model, gpus = scenario.model, scenario.hardware.n_devices
    capacity = max(MIN_CAPACITY, int(np.ceil(CAPACITY_FACTOR * per_gpu / model.n_experts)))
    traffic = np.full((gpus, gpus), capacity * (model.n_experts // gpus), np.int32)
    network = Network.of(scenario.hardware, scenario.balancing, scenario.seed)
    one = [network.all_to_all(traffic, model.activation_bytes_per_token, reverse).time_s for reverse in (False, True)]
    return float(model.n_moe_layers * sum(one))


def accounted(row: Mapping[str, Any], base: Mapping[str, Any], outputs: int) -> dict[str, float]:
    """Return the seconds per generated token and request of *row*, counting one thing more each time.

    exflow   the compute of the baseline, *base*, and the exchanges of *row*, the last one of a vector per token: what
             ExFlow's formulas see
    waiting  the compute of *row*, and the waiting for busier GPUs
    kv       the same, the last exchange with keys and values of all layers, which attention needs
    full     the same and the step of the prompts, for *outputs* tokens per request
    """
    exchanges = row["dispatch_s"] + row["combine_s"] + row["context_hidden_s"]
    return {"exflow_s": sum(base[part] for part in COMPUTE) + exchanges,
            "waiting_s": row["step_s"] - row["context_s"] + row["context_hidden_s"], "kv_s": row["step_s"],
            "full_s": (row["prefill_s"] + (outputs - 1) * row["step_s"]) / outputs}


def speedups(table: pd.DataFrame, outputs: int) -> pd.DataFrame:
    """Return *table* with the times of ``accounted`` and, for each, the speed-up over the baseline of its point.

    ``padded``: ExFlow's counting, over a baseline that sends padded buffers. ``share``: of the baseline's iteration
    that is all-to-all. ``ceiling``: ExFlow's counting, if there were none.
    """
    key = ["experts", "gpus", "per_gpu", "layers"]
    base = table[table["mode"] == "dispatch_combine"].set_index(key)
    mine = base.loc[pd.MultiIndex.from_frame(table[key])].set_index(table.index)
    pairs = zip(table.to_dict("records"), mine.to_dict("records"), strict=True)
    times = pd.DataFrame([accounted(row, other, outputs) for row, other in pairs], index=table.index)
    first = pd.DataFrame([accounted(row, row, outputs) for row in mine.to_dict("records")], index=table.index)
    exchange = mine["dispatch_s"] + mine["combine_s"]
    compute = first["exflow_s"] - exchange
    found = {name: first[f"{name}_s"] / times[f"{name}_s"] for name in COUNTINGS}
    found |= {"padded": (compute + mine["padded_s"]) / times["exflow_s"], "share": exchange / mine["step_s"],
              "ceiling": first["exflow_s"] / compute}
    return pd.concat([table, times, pd.DataFrame(found)], axis=1)


def slower_network(base: Mapping[str, Any], row: Mapping[str, Any], speedup: float) -> float:
    """Return how many times longer all exchanges would have to take for *row* to reach *speedup* over *base*.

    In ExFlow's counting; infinite if no factor does it.
    """
    out, back = base["dispatch_s"] + base["combine_s"], row["dispatch_s"] + row["context_hidden_s"]
    still, moving = base["exflow_s"] - out, row["exflow_s"] - back
    gain = out - speedup * back
    return (speedup * moving - still) / gain if gain > 0 else float("inf")


def tasks() -> Iterator[dict[str, Any]]:
    """Yield the arguments of ``rows`` for the grid, the batches, and a model with experts in every layer."""
    for experts, gpus in sorted(setting.GRID, key=lambda point: -point[1]):  # the longest first
        yield {"experts": experts, "gpus": gpus}
    for per_gpu in setting.BATCHES:
        if per_gpu != setting.PER_GPU:
            yield {"experts": 16, "gpus": 8, "per_gpu": per_gpu, "names": ("linear", "affinity_sweep")}
    yield {"experts": 16, "gpus": 8, "layers": "all", "names": ("linear", "affinity_sweep")}
