"""Published ratios of systems that answer misses, in the engine: runs of one request, each on the system's own machine.

Nothing is fitted, but where a run's name says "calibrated". What papers do not say of their machines is assumed in
``machines/``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import engine
import links
import pandas as pd

import moesim
from moesim import config
from moesim.hardware import HardwareSpec
from moesim.published import Row, between, claim, share
from moesim.scenario import Scenario, override
from moesim.synthetic import GateParameters, SyntheticTrace

HERE = Path(__file__).resolve().parent
MIXTRAL, LITE, SWITCH, V3 = "mixtral-8x7b", "deepseek-v2-lite", "switch-base-decoder", "deepseek-v3"
OTHERS = {SWITCH: (6, 128, 1), V3: (58, 256, 8)}  # layers with experts, experts, top-k; any experts are as likely
ALONE = ("requests={kind: closed_loop, concurrency: 1, count: 2, prompt_tokens: 32, output_tokens: 24}",
         "scheduler={name: prefill_first, max_batch: 1, max_tokens: 4096}")
FEW = ("requests={kind: closed_loop, concurrency: 1, count: 1, prompt_tokens: 4, output_tokens: 5}",)
INT4 = "model.dtype={weights: fp16, experts: int4, kv: fp16, activations: fp16}"  # 2 to 3 bits there
BF16 = "model.dtype={weights: bf16, experts: bf16, kv: bf16, activations: bf16}"
ONE_NEAR = "capacity: 1, scope: global, policy: static"  # of all experts: a cache has room for something
GUESS = f"prefetcher: {{name: next_layer_gate, recall: {links.SEEN_AHEAD}"
GUESSED, SURE = f"{GUESS}}}", f"{GUESS}, precision: 1.0}}"
THRESHOLDS = (0.3, 0.4, 0.5)  # of a top-2 gate's weight: HOBBIT's are not published


def runs() -> pd.DataFrame:
    """Return what the steps of every run say (``engine.measured``), and how busy CPU and GPU are."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model, some in (MIXTRAL, _of_mixtral()), (LITE, _of_lite()), (SWITCH, _of_switch()), (V3, _of_v3()):
            made = _base(model, Path(folder))
            for name, overrides in some.items():
                rows.append({"run": name} | engine.measured(moesim.simulate(override(made, overrides))))
            if model == MIXTRAL:
                rest_s = {r["run"]: r["step_s"] * (1 - r["fetch_share"]) for r in rows}["T4, LRU"]
                for name, overrides in _as_slow(rest_s).items():
                    rows.append({"run": name} | engine.measured(moesim.simulate(override(made, overrides))))
    return pd.DataFrame(rows)


def _base(model: str, folder: Path) -> Scenario:
    if model in engine.CASES:
        return override(engine.base(model, folder), ALONE)
    layers, experts, top_k = OTHERS[model]
    path, named = folder / f"{model}.parquet", model if model == V3 else HERE / "models" / f"{model}.yaml"
    none = GateParameters(sigma_b=0, a=0, s=0, sigma_d=0, domains=1)
    drawn = SyntheticTrace(parameters=none, requests=4, prompt_tokens=32, output_tokens=24, layers=layers,
                           experts=experts, top_k=top_k).generate()
    drawn.write(path)
    return override(engine.base(MIXTRAL, folder), (f"model={named}", f"trace={{path: {path}, scaled: true}}",
                                                   f"cache={{{ONE_NEAR}}}", *(FEW if model == V3 else ALONE)))


def _on(machine: str, *parts: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return overrides: a *machine* with room for what is asked, and a cache of *parts*."""
    ours, theirs = HERE / "machines", HERE.parents[1] / "hw_configs" / "machines"
    file = next(f for f in (ours / f"{machine}.yaml", theirs / f"{machine}.yaml") if f.is_file())
    rate = config.load(HardwareSpec, file).device.memory[0].bandwidth
    return (f"hardware={file}", *more,
            f"hardware.device.memory=[{{name: near, capacity: 200 GB, bandwidth: {rate:g} B/s}}]",
            f"cache={{overflow: stream, {', '.join(parts)}}}")


def _of_mixtral() -> dict[str, tuple[str, ...]]:
    low = {f"RTX 4090, low precision below {t}": _on(
        "rtx-4090", "capacity: 2", f"miss: {{name: low_precision, threshold: {t}}}") for t in THRESHOLDS}
    return {"T4, nothing near": _on("t4", ONE_NEAR, more=(INT4,)), "T4, LRU": _on("t4", "capacity: 4", more=(INT4,)),
            "T4, prefetched": _on("t4", "capacity: 4", GUESSED, more=(INT4,)),
            "L4, LRU": _on("l4-xeon-1x1", "capacity: 1"),  # 16 bits; it has room for less than two of each layer
            "L4, cheapest": _on("l4-xeon-1x1", "capacity: 52, scope: global, policy: static, miss: cheapest"),
            "RTX 4090, LRU": _on("rtx-4090", "capacity: 2"),  # 64 experts; 24 GB have room for 59
            "RTX 4090, prefetched": _on("rtx-4090", "capacity: 2", GUESSED),
            "RTX 4090, prefetched, no wrong guess": _on("rtx-4090", "capacity: 2", SURE), **low,
            "A5000, Mixtral": _on("a5000", "capacity: 18 GB, scope: global, policy: static")}


def _as_slow(rest_s: float) -> dict[str, tuple[str, ...]]:
    """Return the T4's runs if its kernels (*rest_s* here) and copies take what two of its four speeds imply."""
    published = links.mixtral_offloading(links.mixtral_hits())
    times = rest_s / published.rest_s
    rate = override(moesim.load(engine.SCENARIO), (INT4,)).model.expert_bytes / published.miss_s
    slow = (INT4, f"hardware.device.processor={{peak: {{fp16: {65 * times:g} TFLOP/s}}, bandwidth: "
                  f"{320 * times:g} GB/s, multiprocessors: 40}}",
            f"hardware.host=[{{name: host, capacity: 512 GB, bandwidth: 100 GB/s, link: {{bandwidth: {rate:g} B/s}}}}]")
    return {f"T4, calibrated, {name}": _on("t4", *parts, more=slow)
            for name, parts in (("LRU", ("capacity: 4",)), ("prefetched", ("capacity: 4", GUESSED)))}


def _of_lite() -> dict[str, tuple[str, ...]]:
    return {"A5000, Lite": _on("a5000", "capacity: 18 GB, scope: global, policy: static")}


def _of_switch() -> dict[str, tuple[str, ...]]:
    exact = "prefetcher: {name: next_layer_gate, recall: 1.0}"
    return {"Switch, on demand": _on("a100-xeon-1x1", "capacity: 1"),
            "Switch, pre-gated": _on("a100-xeon-1x1", "capacity: 1", exact)}


def _of_v3() -> dict[str, tuple[str, ...]]:
    return {f"V3, {name}": _on("a100-xeon-1x1", ONE_NEAR, f"miss: {miss}", more=(BF16,))
            for name, miss in (("host", "host"), ("deferred", "{name: defer, choices: 3}"))}


def compared(table: pd.DataFrame) -> Iterator[Row]:
    """Compare *table* (``runs``) with what is published."""
    at = table.set_index("run")

    def gain(of: str, over: str) -> float:
        return float(at.loc[of, "tokens_per_s"] / at.loc[over, "tokens_per_s"])

    yield share("Mixtral-offloading, T4: LRU over nothing near", links.T4["cache"] / links.T4["neither"],
                gain("T4, LRU", "T4, nothing near"), 0.15)
    ahead = links.T4["full"] / links.T4["cache"]
    yield share("the same: prefetching", ahead, gain("T4, prefetched", "T4, LRU"), 0.15)
    yield share("the same with kernels and copies as slow as two of its speeds imply (calibrated)", ahead,
                gain("T4, calibrated, prefetched", "T4, calibrated, LRU"), 0.15)
    yield share("Fiddler, L4: over Mixtral-offloading", links.FIDDLER["L4"][1], gain("L4, cheapest", "L4, LRU"), 0.3)
    copied = at.loc["L4, cheapest", "fetched_bytes"]
    yield claim("Fiddler: its rule sends every miss of one request's tokens to the host", "0 copies",
                f"{copied / links.setting.model(MIXTRAL).expert_bytes:.0f} copies", copied == 0)
    low, high = (gain(f"RTX 4090, prefetched{end}", "RTX 4090, LRU") for end in ("", ", no wrong guess"))
    yield between("HOBBIT, RTX 4090: prefetching alone, 84 % foreseen, one guess in six wrong or none", 1.01, low, high)
    found = [gain(f"RTX 4090, low precision below {t}", "RTX 4090, LRU") for t in THRESHOLDS]
    yield claim(f"HOBBIT: low precision, thresholds {THRESHOLDS[0]} to {THRESHOLDS[-1]} (assumed), overlaps",
                "1.19 to 1.57", f"{min(found):.2f} to {max(found):.2f}", min(found) <= 1.57 and max(found) >= 1.19)
    yield from _speeds(at, gain("V3, deferred", "V3, host"))


def _speeds(at: pd.DataFrame, deferred: float) -> Iterator[Row]:
    for name, model in (("Mixtral", MIXTRAL), ("Lite", LITE)):
        yield share(f"MoE-Infinity, A5000, {model}, s/token", links.A5000["MoE-Infinity", model],
                    float(at.loc[f"A5000, {name}", "step_s"]), 0.15, ".3f")
    before, after = links.KT_BUSY["gpu"]
    yield share("KTransformers: deferral of three choices (from busy shares)", after / before, deferred, 0.15)
    yield claim("the same, at most", "1.45", f"{deferred:.2f}", 1 < deferred <= 1.45)
    yield share("KTransformers before deferral, tokens/s", links.KT_TOKENS_PER_S,
                float(at.loc["V3, host", "tokens_per_s"]), 0.25)
    demand, ahead = (at.loc[f"Switch, {way}"] for way in ("on demand", "pre-gated"))
    blocks, copies_s = OTHERS[SWITCH][0], demand["step_s"] * demand["fetch_share"]
    work_s = demand["step_s"] - copies_s
    closed_s = work_s + copies_s / blocks + (blocks - 1) * max((copies_s - work_s) / blocks, 0)
    yield share("Pre-gated MoE, A100: s/token of its closed form, blocks of max(work, copy)", closed_s,
                ahead["step_s"], 0.05, ".5f")
    hidden = 1 - ahead["fetch_share"] * ahead["step_s"] / copies_s
    yield claim(f"Pre-gated MoE: only the first of {blocks} blocks waits: waiting that is hidden",
                f"{1 - 1 / blocks:.0%}", f"{hidden:.0%}", bool(hidden >= 1 - 1 / blocks - 0.05))
