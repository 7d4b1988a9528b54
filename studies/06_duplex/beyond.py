"""What the paper does not show: skewed routing, measured kernels and collectives, and other processors in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import setting
from setting import BATCHES, OUT, SYSTEMS, System

from moesim.synthetic import PRESETS, SyntheticTrace

LENGTH = 1024
COMPARED = ("GPU", "Duplex", "Duplex+PE", "Duplex+PE+ET")
CAPTURED = setting.HERE.parent.parent / "workloads" / "traces" / "reference-moe.parquet"
# GLaM with the layers and experts of the captured trace: 24 layers, 32 experts in every second one.
CAPTURED_MODEL = {"model__layers": 24, "model__moe__layers": "[1,3,5,7,9,11,13,15,17,19,21,23]",
                  "model__moe__experts": 32}
# Kernel times fitted to measurements of an H100, and collectives of NCCL on eight (hw_configs/machines/h100-1x8.yaml).
KERNELS = {"hardware__device__kernels": "h100-residual", "kernels": "null"}
COLLECTIVES = {"hardware__scale_up": "{bandwidth: 450 GB/s, efficiency: 0.7365, startup: 4.47 us, ramp: 30.3 us, "
                                     "message: 0.774 us}", "hardware__reduction": "nvls"}


def skewed_path(name: str) -> str:
    """Return the trace section of the skewed, or the uniform, routing *name*, as text."""
    return setting.traced(OUT / f"{name}.parquet")


def write_traces() -> None:
    """Write the routing that only this part needs: with the statistics of gpt-oss-20b, and uniform of 32 experts."""
    preset = PRESETS["gpt_oss_20b"].parameters
    SyntheticTrace(parameters=preset, requests=32, prompt_tokens=512, output_tokens=64, layers=32, experts=8,
                   top_k=2).generate().write(OUT / "skewed-8.parquet")
    setting.uniform(12, 32, 2).write(OUT / "uniform-32.parquet")


# What: model, changes.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral, uniform": ("Mixtral", {}),
    "Mixtral, as skewed as gpt-oss-20b": ("Mixtral", {"trace": skewed_path("skewed-8")}),
    "GLaM of 32 experts, uniform": ("GLaM", CAPTURED_MODEL | {"trace": skewed_path("uniform-32")}),
    "GLaM of 32 experts, captured": ("GLaM", CAPTURED_MODEL | {
        "trace": f"{{path: {CAPTURED}, scaled: true, profile_fraction: 0.05}}"}),
    "Mixtral, measured kernels": ("Mixtral", KERNELS),
    "Mixtral, measured kernels and collectives": ("Mixtral", KERNELS | COLLECTIVES)}


def tasks() -> list[tuple[str, str, int]]:
    """Return case, system and batch of every run."""
    return [(case, system, batch) for case in CASES for system in COMPARED for batch in BATCHES]


def row(case: str, system: str, batch: int) -> dict[str, Any]:
    """Return the stages of one case."""
    model, changes = CASES[case]
    found = setting.stages(model, SYSTEMS[system], batch, LENGTH, LENGTH, **changes)
    return {"case": case, "system": system, "batch": batch, **found._asdict(), "tok_per_s": batch / found.mean_s,
            "j_per_tok": found.mean_j / batch}


# --- other processors in memory -------------------------------------------------------------------------------------

BANDWIDTHS = (2, 4, 8, 16)     # times HBM's
OP_PER_BYTE = (1, 2, 4, 8, 16)
CAPS = (None, 100)             # W of a device's accesses and arithmetic in memory; Logic-PIM: about 180 at full rate
DESIGNED = {"Mixtral": 64, "Qwen3-30B-A3B": 64, "DeepSeek-V3": 128}  # batch
CONTEXT = 256
SELECTION = "{experts: coprocess_experts, attention: min_time}"  # latent attention has too many operations per byte
HBM_TB_PER_S = 3.352


def designs() -> list[tuple[str, int, int, int | None]]:
    """Return model, bandwidth, FLOP per byte and cap of every design; bandwidth 0 is the GPU alone."""
    grid = [(b, o, cap) for b in BANDWIDTHS for o in OP_PER_BYTE for cap in CAPS]
    return [(model, *point) for model in DESIGNED for point in [(0, 0, None), *grid]]


def processor(bandwidth: int, op_per_byte: int, cap_w: int | None) -> str:
    """Return a processor on the logic die of that size, as text; energies are those of Logic-PIM."""
    peak = HBM_TB_PER_S * bandwidth * op_per_byte
    cap = f", power_cap: {cap_w} W" if cap_w is not None else ""
    return (f"[{{kind: logic_pim, peak: {{bf16: {peak} TFLOP/s, fp16: {peak} TFLOP/s, fp8: {2 * peak} TFLOP/s}}, "
            f"bandwidth: {HBM_TB_PER_S * bandwidth} TB/s, efficiency: 0.75, multiprocessors: 160, "
            f"energy: {{access: 1.81 pJ/bit, activation: 0.111 pJ/bit, flop: 0.23 pJ}}{cap}}}]")


def design(model: str, bandwidth: int, op_per_byte: int, cap_w: int | None) -> dict[str, Any]:
    """Return length and joules of a stage of decodes; joules are accesses, arithmetic and the idle power of devices."""
    batch, system = DESIGNED[model], System(selection=SELECTION if bandwidth else "gpu_only")
    changes = {"hardware__device__processors": processor(bandwidth, op_per_byte, cap_w)} if bandwidth else {}
    spec = setting.MODELS[model]
    table = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": np.full(batch, CONTEXT), "output_tokens": 4})
    found = setting.steps(model, system, table, **({"scheduler__max_batch": batch // spec.nodes} | changes))
    decode = found[found["prefill_tokens"] == 0]
    length_s = float(decode["length_s"].mean())
    idle_w = setting.scenario(model, system).hardware.device.idle_power * spec.devices * spec.nodes
    return {"model": model, "bandwidth": bandwidth, "op_per_byte": op_per_byte, "cap_w": cap_w or 0,
            "length_s": length_s, "joules": float(decode["joules"].mean()) + idle_w * length_s,
            "tok_per_s": batch / length_s, "tok_per_j": batch / (float(decode["joules"].mean()) + idle_w * length_s)}

