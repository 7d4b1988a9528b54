"""What fusing layers saves, and what a launch costs: Llama-2-7B over 8 sockets, one prompt of 4,096 tokens."""

from __future__ import annotations

import math

import pandas as pd
import setting

from moesim.memory.execution import Fused, Rates, Unfused, layer_s, operators, pass_s

CONTEXT, TP = 4096, 8
LAUNCHES_S = (0.0, 5e-6, 10e-6, 20e-6, 30e-6, 50e-6, 100e-6, 200e-6, 400e-6)
PHASES = {"decode": 1, "prefill": CONTEXT}
# Fig. 10, over all its models: (phase, ratio) -> least and most.
PUBLISHED = {("decode", "fusion"): (1.0, 13.0), ("prefill", "fusion"): (1.5, 3.0),
             ("decode", "orchestration"): (1.4, 8.0), ("prefill", "orchestration"): (1.0, 1.1)}
KERNEL_RATIO = 11  # Fig. 11: kernel calls of llama2-7B prefill, unfused over fused


def rates(sync_s: float = 0.0) -> Rates:
    """Return what a socket reaches: its peak FLOP/s and the published share of its HBM bandwidth."""
    processor = setting.machine("SN40L").device.processor
    return Rates(processor.peak_flop_per_s("bf16"), setting.REACH * processor.bandwidth, sync_s)


def launches() -> pd.DataFrame:
    """Return the seconds of a layer by phase and launch cost, and the two ratios of Fig. 10.

    fusion: unfused over fused, the hardware launching the fused kernels. orchestration: fused kernels launched by the
    host over the same by hardware.
    """
    rows = []
    for phase, new in PHASES.items():
        layer = operators(setting.model(), TP, 1, new, CONTEXT)
        fused = layer_s(layer, rates(), Fused())
        for launch in LAUNCHES_S:
            hosted = layer_s(layer, rates(), Fused(launch))
            waiting, ahead = (layer_s(layer, rates(), Unfused(launch, ahead)) for ahead in (False, True))
            rows.append((phase, launch, fused, hosted, waiting, ahead, hosted / fused, waiting / fused, ahead / fused))
    return pd.DataFrame(rows, columns=["phase", "launch_s", "fused_s", "fused_hosted_s", "unfused_s", "unfused_ahead_s",
                                       "orchestration", "fusion", "fusion_ahead"])


def within() -> pd.DataFrame:
    """Return between which launch costs each published range holds: the ratios rise with the cost, so by halving."""
    rows = []
    for (phase, ratio), (low, high) in PUBLISHED.items():
        layer = operators(setting.model(), TP, 1, PHASES[phase], CONTEXT)
        for how in (("orchestration",) if ratio == "orchestration" else ("fusion", "fusion_ahead")):
            found = [_cost(layer, how, bound) for bound in (low, high)]
            found[0] = 0.0 if math.isnan(found[0]) else found[0]  # above the least without any launch cost
            rows.append((phase, how, low, high, *found))
    return pd.DataFrame(rows, columns=["phase", "ratio", "low", "high", "least_s", "most_s"])


def _cost(layer: pd.DataFrame, ratio: str, wanted: float) -> float:
    """Return the largest launch cost with which *ratio* is at most *wanted*; not a number if it never is."""
    fused = layer_s(layer, rates(), Fused())

    def at(launch: float) -> float:
        how = Fused(launch) if ratio == "orchestration" else Unfused(launch, ratio == "fusion_ahead")
        return layer_s(layer, rates(), how) / fused

    low, high = 0.0, 1e-2
    if at(low) > wanted:
        return float("nan")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) <= wanted else (low, middle)
    return low


def decoding() -> pd.DataFrame:
    """Return the seconds of one token of one prompt, 148 tokens of context: by the model, and implied by Table V."""
    layer, model = operators(setting.model(), TP, 1, 1, 148), setting.model()
    machine = setting.machine("SN40L")
    implied = (setting.STATED.expert_200_s - setting.expert_s("SN40L", 20)) / 180
    found = [("weights at the peak of HBM", model.total_bytes / (TP * machine.device.memory[0].bandwidth)),
             ("fused, 85 % of HBM, nothing else", pass_s(model, layer, rates(), Fused(), TP)),
             ("and 5.7 µs for each of 64 exchanges",
              pass_s(model, layer, rates(machine.scale_up.startup), Fused(), TP)),
             ("implied by the inputs of Table V", implied)]
    return pd.DataFrame(found, columns=["what", "token_s"])


def kernels() -> pd.DataFrame:
    """Return the kernels of a layer, unfused, and the fused ones that the published ratio of calls leaves."""
    unfused = len(operators(setting.model(), TP, 1, CONTEXT, CONTEXT))
    return pd.DataFrame([(unfused, KERNEL_RATIO, unfused / KERNEL_RATIO)], columns=["operators", "published", "fused"])
