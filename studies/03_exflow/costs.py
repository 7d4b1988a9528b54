"""What the tables say: pieces of an iteration, bytes, memory, and the sentences that come from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import account
import numpy as np
import pandas as pd
import setting

OUTPUTS = 65  # of a request: scenario.yaml
SHOWN = ((16, 8), (64, 4), (64, 64))  # experts, GPUs whose iterations are taken apart
CONTEXT = 2048  # tokens of a request in the memory figure: the model's longest


def grid(iterations: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the grid with their speed-ups."""
    table = account.speedups(iterations, OUTPUTS)
    return table[(table["per_gpu"] == setting.PER_GPU) & (table["layers"] == "every second")]


def batches(iterations: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of 16 experts on 8 GPUs by requests per GPU, with their speed-ups."""
    table = account.speedups(iterations, OUTPUTS)
    return table[(table["experts"] == 16) & (table["gpus"] == 8) & (table["layers"] == "every second")].sort_values(
        "per_gpu", kind="stable")


def pick(table: pd.DataFrame, **where: Any) -> pd.Series:
    """Return the only row of *table* with these values."""
    found = table.loc[(table[list(where)] == pd.Series(where)).all(axis=1)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have {where}; run study.py again to make the tables of this version")
    return found.iloc[0]


def coherent(table: pd.DataFrame, experts: int, gpus: int, placement: str = "affinity_sweep") -> pd.Series:
    """Return the context-coherent row of a point of ``grid``."""
    return pick(table, experts=experts, gpus=gpus, placement=placement, mode="context_coherent")


def pieces(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds per generated token of one request of *row*; they add up to ``full_s``."""
    decode = {"compute": sum(row[part] for part in account.COMPUTE), "waiting": row["wait_s"],
              "dispatch": row["dispatch_s"], "combine": row["combine_s"], "vectors gathered": row["context_hidden_s"],
              "keys and values gathered": row["context_s"] - row["context_hidden_s"]}
    share = (OUTPUTS - 1) / OUTPUTS
    return {name: seconds * share for name, seconds in decode.items()} | {"prompts": row["prefill_s"] / OUTPUTS}


def sent_bytes(placements: pd.DataFrame, experts: int) -> pd.DataFrame:
    """Return by GPUs the bytes that a GPU sends per token that it generates, as ExFlow's Table 1 counts them.

    baseline  2 L p vectors, L the layers with experts, p the fraction that changes GPU with experts in order
    exflow    L p* vectors, p* the fraction with affinity, and one vector to each of the others
    kv        L p* vectors, and the keys and values of all layers to each of the others
    """
    model = setting.scenario(experts, 4).model
    vector, kv, layers = model.activation_bytes_per_token, model.kv_bytes_per_token, model.n_moe_layers
    table = placements[placements["experts"] == experts].set_index(["gpus", "placement"])["cross_top1"].unstack()
    others = table.index.to_numpy() - 1
    moved = layers * table["affinity_sweep"] * vector
    return pd.DataFrame({"baseline": 2 * layers * table["linear"] * vector, "exflow": moved + others * vector,
                         "kv": moved + others * kv}).reset_index()


def memory(iterations: pd.DataFrame, experts: int) -> pd.DataFrame:
    """Return by GPUs the requests of ``CONTEXT`` tokens per GPU whose keys and values fit."""
    table = grid(iterations)
    base = table[(table["experts"] == experts) & (table["mode"] == "dispatch_combine")]
    fit = base["kv_room"].to_numpy() / CONTEXT
    return pd.DataFrame({"gpus": base["gpus"].to_numpy(), "baseline": fit, "coherent": fit / base["gpus"].to_numpy()})


def best(table: pd.DataFrame, counting: str) -> pd.Series:
    """Return the row of the grid with the highest speed-up of affinity in *counting*."""
    mine = table[(table["mode"] == "context_coherent") & (table["placement"] == "affinity_sweep")]
    return mine.loc[mine[counting].idxmax()]


def speedup_title(table: pd.DataFrame) -> str:
    """Say what the figure of speed-ups shows."""
    top, full = best(table, "exflow"), best(table, "full")
    return (f"Counted as ExFlow counts, up to {top['exflow']:.2f} times the baseline's throughput "
            f"({top['experts']} experts, {top['gpus']} GPUs); with all that is left out, {full['full']:.2f} at best")


def fewer(table: pd.DataFrame, experts: int, gpus: int) -> float:
    """Return how many fewer transitions change GPU with affinity than with experts in order, as a fraction."""
    mine, plain = (pick(table, experts=experts, gpus=gpus, placement=p)["cross_top1"]
                   for p in ("affinity_sweep", "linear"))
    return float(1 - mine / plain)


def staying(table: pd.DataFrame, experts: int, gpus: int) -> float:
    """Return how many times more transitions stay in their node with affinity than with experts in order."""
    mine, plain = (1 - pick(table, experts=experts, gpus=gpus, placement=p)["cross_node_top1"]
                   for p in ("affinity_sweep", "linear"))
    return float(mine / plain)


def fewer_title(table: pd.DataFrame) -> str:
    """Say how many transitions affinity saves."""
    return f"64 experts: {fewer(table, 64, 4):.0%} fewer on 4 GPUs, {fewer(table, 64, 32):.0%} on 32"


def breakdown_title(table: pd.DataFrame) -> str:
    """Say what an iteration is made of."""
    base = pick(table, experts=16, gpus=8, mode="dispatch_combine")
    return (f"16 experts on 8 GPUs: all-to-alls are {base['share']:.0%} of the baseline's iteration, so without any it "
            f"would be {base['ceiling']:.2f} times as fast")


def batch_title(table: pd.DataFrame) -> str:
    """Say whether any batch reaches the published speed-up."""
    free = table[table["mode"] == "dispatch_combine"]["ceiling"].max()
    return f"16 experts on 8 GPUs: without any all-to-all {free:.2f} at most, whatever the batch"


def sent_title(sent: pd.DataFrame) -> str:
    """Say what is sent."""
    ratio = sent["kv"] / sent["baseline"]
    return f"Keys and values: {ratio.iloc[0]:.1f} to {ratio.iloc[-1]:.0f} times the bytes of both all-to-alls"


def memory_title(fit: pd.DataFrame) -> str:
    """Say what fits."""
    return f"On {fit['gpus'].iloc[-1]} GPUs 1/{fit['gpus'].iloc[-1]} of the requests fit"


def geometric(values: Any) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.log(np.asarray(values, dtype=float)).mean()))
