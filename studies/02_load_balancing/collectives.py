"""Every collective under every balancing: how much longer than with spraying."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from setting import BALANCINGS, COLLECTIVES, SEEDLESS, SIZES_MB, SOLVED_MB, Pattern, busiest, network, solved

from moesim.network.fluid_memo import Memo

SEEDS = {"ecmp": 10, "split": 2, "adaptive": 2, "flowlet 8": 3}  # 5 for MP-RDMA, whose pieces are many; 1 for spray
LEFT_OUT = {("flat", "flowlet 8"), ("direct", "flowlet 8")}  # half a million bursts with a seed: minutes each


def tasks() -> Iterator[tuple[str, int]]:
    """Yield the (balancing, seed) that ``rows`` is to be called with."""
    for balancing in BALANCINGS:
        for seed in range(1 if balancing in SEEDLESS else SEEDS.get(balancing, 5)):
            yield balancing, seed


def rows(balancing: str, seed: int) -> list[dict[str, float | str]]:
    """Return a row per collective and size: time_s, and what the busiest port and inner link need (nic_s, spine_s).

    ``uneven``: the most that the load of a link differs from that of spraying, as a share of it.
    """
    found, memo = [], Memo()  # an all-to-all is the pattern of one half of the direct all-reduce
    for name, part in COLLECTIVES.items():
        if (part, balancing) in LEFT_OUT:
            continue
        pattern = solved(part, balancing, seed, memo)
        load = busiest(network(balancing, seed), pattern.load_bytes)
        for size in SIZES_MB:
            scale = size / SOLVED_MB
            found.append({"collective": name, "balancing": balancing, "seed": seed, "size_mb": size,
                          "time_s": pattern.time_s(size), "nic_s": load["nic_s"] * scale,
                          "spine_s": load["spine_s"] * scale, "uneven": uneven(part, pattern)})
    return found


def uneven(part: str, pattern: Pattern) -> float:
    """Return the largest difference of a link's load from that under spraying, over the busiest link's."""
    even = solved(part, "spray", 0).load_bytes if part not in ("direct", "flat") else _even(pattern)
    return float(np.abs(pattern.load_bytes - even).max() / even.max())


def _even(pattern: Pattern) -> np.ndarray:
    """Return what spraying an exchange among all would put on the links: links of a class are loaded alike."""
    kind = network("spray", 0).links()["class"]
    return pd.Series(pattern.load_bytes).groupby(kind.to_numpy()).transform("mean").to_numpy()


def relative(table: pd.DataFrame) -> pd.DataFrame:
    """Return *table* with ``ratio``: time over that of spraying the same collective and size."""
    spray = table[table["balancing"] == "spray"].set_index(["collective", "size_mb"])["time_s"]
    key = pd.MultiIndex.from_frame(table[["collective", "size_mb"]])
    return table.assign(ratio=table["time_s"].to_numpy() / spray.reindex(key).to_numpy())


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per collective, balancing and size: mean, min and max over seeds of the ratio, mean time_s."""
    groups = relative(table).groupby(["collective", "balancing", "size_mb"], sort=False)
    result = groups.agg(time_s=("time_s", "mean"), ratio=("ratio", "mean"), least=("ratio", "min"),
                        most=("ratio", "max"), seeds=("seed", "nunique"), nic_s=("nic_s", "mean"),
                        spine_s=("spine_s", "mean"), uneven=("uneven", "max"))
    return result.reset_index()
