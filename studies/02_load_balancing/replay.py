"""A captured dispatch on the fabric: eight expert-parallel groups of 32 devices; real, random or equal messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from setting import BALANCINGS, PLAN, SEEDLESS, network

from moesim import placement
from moesim.network import LeafSpine, Messages
from moesim.network.play import exchange, play
from moesim.sim.routing import SlotMap, dispatch
from moesim.trace import RoutingTrace, read_trace

TRACE = Path(__file__).resolve().parents[2] / "workloads" / "traces" / "reference-moe.parquet"
GROUPS, WIDTH = 8, 32  # EP groups that run side by side on the 256 devices; 32 experts, one per device
TOKEN_BYTES = 7392  # a DeepSeek-V3 token on its way to an expert: 7168 in FP8 and 224 of scales (DeepEP README)
TOKENS = {"decode": 128, "prefill": 1024}  # per device: decode as DeepEP's low-latency benchmark; prefill assumed
SPINES = {"spread": 16, "racks": 16, "spread, 2:1": 8}  # layouts of the groups, and the spines of the fabric
TOLERANCE = 0.01  # joins ends within 1 % of a flow's duration; layer 5: times up to 1.6 % late, ratios as far off
SEEDS = 2
FEW = ("spray", "split", "adaptive", "ecmp", "mprdma 4")
ALL = tuple(name for name in BALANCINGS if name != "flowlet 8")  # bursts one after the other take too long
ROUTINGS = ("captured, one expert per device", "captured, 32 replicas (EPLB)", "drawn evenly", "equal flows")


def devices(layout: str) -> np.ndarray:
    """Return the hosts [groups, width]: two of a group under each of the 16 leaves (spread), or two whole leaves."""
    member, group = np.arange(WIDTH), np.arange(GROUPS)[:, None]
    return group * WIDTH + member if layout == "racks" else member // 2 * 16 + 2 * group + member % 2


def slots(trace: RoutingTrace, routing: str) -> SlotMap:
    """Return where experts are: solvers see the profile half of the requests."""
    solver: Any = {"name": "eplb", "redundant": 32} if "EPLB" in routing else "linear"
    return SlotMap.of(placement.solve(trace.profile(), WIDTH, solver))


def batch(trace: RoutingTrace, phase: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and homes of the tokens of a group: whole prompts until a device is full, or single decodes.

    Decodes are drawn without replacement, prompts with (the trace has 150 to replay).
    """
    per, table = TOKENS[phase], trace.tokens
    rows = np.flatnonzero((table["phase"] == (0 if phase == "prefill" else 1)).to_numpy())
    if phase == "decode":
        return rng.permutation(rows)[:per * WIDTH], np.repeat(np.arange(WIDTH), per)
    prompts = [part for _, part in pd.Series(rows).groupby(table["request"].to_numpy()[rows])]
    picked = []
    for _ in range(WIDTH):
        some: list[np.ndarray] = []
        while sum(map(len, some)) < per:
            some.append(prompts[rng.integers(len(prompts))].to_numpy())
        picked.append(np.concatenate(some)[:per])
    return np.concatenate(picked), np.repeat(np.arange(WIDTH), per)


def matrices(trace: RoutingTrace, routing: str, phase: str, seed: int) -> np.ndarray:
    """Return the token copies int64 [groups, layers, width, width] from device to device of a dispatch of *routing*.

    "drawn evenly": every choice is any expert; "equal flows": what that is on average, in every pair alike.
    """
    rng, evaluation = np.random.default_rng(seed), trace.evaluation()
    per, k = TOKENS[phase], trace.top_k
    if routing == "equal flows":
        return np.full((GROUPS, 1, WIDTH, WIDTH), per * k / WIDTH)
    where, found = slots(trace, routing), []
    for _ in range(GROUPS):
        rows, home = batch(evaluation, phase, rng)
        chosen = evaluation.chosen[rows]
        if routing == "drawn evenly":
            chosen = np.argsort(rng.random((*chosen.shape[:2], trace.n_experts)), axis=2)[..., :k].astype(np.uint16)
        n_layers = trace.n_layers
        tokens = np.zeros((n_layers, WIDTH, where.n_slots), np.int32)
        copies = np.zeros((n_layers, WIDTH, WIDTH), np.int32)
        dispatch(np.ascontiguousarray(chosen), home.astype(np.int32), where.device, where.slot, 1, True, tokens, copies,
                 None)
        found.append(copies)
    return np.stack(found)


def placed(copies: np.ndarray, layout: str) -> np.ndarray:
    """Return *copies* [groups, width, width] as one matrix of all hosts."""
    hosts = devices(layout)
    whole = np.zeros((hosts.size, hosts.size))
    for mine, part in zip(hosts, copies, strict=True):
        whole[np.ix_(mine, mine)] = part
    np.fill_diagonal(whole, 0.0)
    return whole


def timed(copies: np.ndarray, layout: str, balancing: str, seed: int, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """Return per group of one layer: time_s, nic_s (its busiest port), imbalance (that over its mean port), spine_s."""
    net = network(balancing, seed, fabric=LeafSpine(**PLAN | {"spines": SPINES[layout]}))
    traffic = placed(copies, layout)
    played = play(net, exchange(net, "flat", Messages(traffic), TOKEN_BYTES), "flat", tolerance=tolerance)
    hosts, rate = devices(layout), float(net.rate()[-1])
    group = np.empty(hosts.size, np.int64)
    group[hosts] = np.arange(GROUPS)[:, None]
    time_s = played.flows.groupby(group[played.flows["src"]])["finish_s"].max()
    ports = np.maximum(traffic.sum(axis=0), traffic.sum(axis=1))[hosts] * TOKEN_BYTES / rate
    mean = traffic.sum(axis=1)[hosts].mean(axis=1) * TOKEN_BYTES / rate
    fabric = net.links()["class"].isin(["leaf_up", "leaf_down"]).to_numpy()
    return pd.DataFrame({"group": np.arange(GROUPS), "time_s": time_s.to_numpy(), "nic_s": ports.max(axis=1),
                         "imbalance": ports.max(axis=1) / mean,
                         "spine_s": (played.load_bytes[fabric] / net.rate()[fabric]).max()})


def tasks() -> Iterator[tuple[str, str, str, int]]:
    """Yield the (routing, phase, layout, seed) that ``rows`` is to be called with."""
    for routing in ROUTINGS:
        for seed in range(SEEDS):
            for phase in TOKENS:
                yield routing, phase, "spread", seed
        for layout in ("racks", "spread, 2:1"):
            yield routing, "prefill", layout, 0


def rows(routing: str, phase: str, layout: str, seed: int) -> list[dict[str, Any]]:
    """Return a row per layer, balancing and group: what ``timed`` says, and time_s over that under spraying (ratio).

    A seed draws the batch, and the hashes. Layers of choices drawn evenly are alike, so every fourth is played.
    """
    copies = matrices(read_trace(TRACE), routing, phase, seed)
    found: list[dict[str, Any]] = []
    asked = ALL if (phase, layout, seed) == ("prefill", "spread", 0) else FEW
    step = 4 if layout == "racks" or routing == "drawn evenly" else 1
    for layer in range(0, copies.shape[1], step):
        spray = timed(copies[:, layer], layout, "spray", seed)
        for name in asked:
            table = spray if name in SEEDLESS else timed(copies[:, layer], layout, name, 100 * seed + layer)
            table = table.assign(routing=routing, phase=phase, layout=layout, seed=seed, layer=layer, balancing=name,
                                 ratio=table["time_s"] / spray["time_s"],
                                 spine_ratio=table["spine_s"] / spray["spine_s"],
                                 whole=table["time_s"].max() / spray["time_s"].max())
            found += table.to_dict("records")
    return found


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return per routing, phase, layout, layer and balancing, over groups and seeds: mean, min and max of the ratio.

    ``whole``: of the time until the last group is done; ``over_nic``: time over that of the group's busiest port.
    """
    table = table.assign(over_nic=table["time_s"] / table["nic_s"])
    groups = table.groupby(["routing", "phase", "layout", "layer", "balancing"], sort=False)
    return groups.agg(ratio=("ratio", "mean"), least=("ratio", "min"), most=("ratio", "max"), whole=("whole", "mean"),
                      whole_least=("whole", "min"), whole_most=("whole", "max"), over_nic=("over_nic", "mean"),
                      imbalance=("imbalance", "mean"), spine_ratio=("spine_ratio", "mean"),
                      spine_most=("spine_ratio", "max"), time_s=("time_s", "mean"), seeds=("seed", "nunique"),
                      ).reset_index()
