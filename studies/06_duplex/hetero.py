"""Figure 5b: Mixtral on two GPUs and two devices whose Logic-PIM runs all experts, against four GPUs."""

from __future__ import annotations

from typing import Any

import pandas as pd
import setting
from setting import MODELS, SYSTEMS

BATCH = 32
APART = {"parallelism": "{tp: 2, expert_devices: 2}", "selection": "{experts: pim_only, attention: gpu_only}"}


def tasks() -> list[tuple[int]]:
    """Return the length of prompts and answers of every point: those of figure 11 (figure 5's are not known)."""
    return [(length,) for length in MODELS["Mixtral"].lengths]


def row(length: int) -> dict[str, Any]:
    """Return the stages of one point."""
    found = setting.stages("Mixtral", SYSTEMS["GPU"], BATCH, length, length, **APART)
    return {"batch": BATCH, "prompt": length, "output": length, **found._asdict()}


def orders(hetero: pd.DataFrame, stages: pd.DataFrame) -> dict[str, tuple[str, bool]]:
    """Return the claims about figure 5b, from stages: a token waits for the stage that it comes in.

    One stage of output / batch has a prompt: p90 shows it where that is more than one of ten, with the shortest answers
    alone. There the claims are judged.
    """
    some = stages[(stages["model"] == "Mixtral") & (stages["system"] == "GPU") & (stages["batch"] == BATCH)]
    table = hetero.merge(some, on=["batch", "prompt", "output"], suffixes=("", "_gpu")).sort_values("prompt")
    decode, mixed = (table[f"{kind}_s"] / table[f"{kind}_s_gpu"] for kind in ("decode", "mixed"))
    mean_s = [(1 - table["mixed_share"]) * table[f"decode_s{of}"] + table["mixed_share"] * table[f"mixed_s{of}"]
              for of in ("", "_gpu")]
    e2e = mean_s[0] / mean_s[1]
    lengths = ", ".join(str(length) for length in table["prompt"])

    def found(ratio: pd.Series) -> str:
        return f"{', '.join(f'{value:.2f}' for value in ratio)} of GPU's at {lengths} tokens"

    shown = bool(table["mixed_share"].iloc[0] > 0.1)
    return {
        "fig. 5b: two GPUs and two Logic-PIM devices for experts, batch 32: median TBT is below GPU's": (
            found(decode), bool(decode.iloc[0] < 1)),
        "fig. 5b: and so is E2E": (found(e2e), bool(e2e.iloc[0] < 1)),
        "fig. 5b: p90 and p99 TBT and T2FT, those of stages with a prompt, are above": (
            found(mixed), shown and bool(mixed.iloc[0] > 1))}
