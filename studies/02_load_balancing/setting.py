"""The fabric of arXiv 2407.00550, its collectives, sizes and balancings, and how long a collective takes on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from moesim.network import LeafSpine, Messages, Network
from moesim.network.fluid_memo import Memo
from moesim.network.play import Act, exchange, play, reduction

# Their code: 16 ToR x 16 spines x 16 GPUs, every link 400 Gbit/s and 500 ns (STyGIANet/astra-sim, 44c4215)
PLAN: dict[str, Any] = {"leaves": 16, "spines": 16, "hosts_per_leaf": 16, "link": "400 Gbit/s", "latency": "500 ns"}
FABRIC = LeafSpine(**PLAN)
MB = 1e6  # bytes; the paper's sizes are 1, 2, 4, ..., 256 MB
SIZES_MB = tuple(2**i for i in range(9))
SOLVED_MB = 64  # solved at this size; the others follow from it (``Pattern.time_s``)
COLLECTIVES = {"all-reduce, ring": "ring", "all-reduce, double binary tree": "tree",
               "all-reduce, halving-doubling": "halving_doubling", "all-reduce, direct": "direct",
               "all-to-all": "flat"}
BALANCINGS: dict[str, Any] = {
    "spray": "spray", "split": "split", "adaptive": "adaptive", "ecmp": "ecmp",
    "mprdma 2": {"name": "mprdma", "pieces": 2}, "mprdma 4": {"name": "mprdma", "pieces": 4},
    "mprdma 8": {"name": "mprdma", "pieces": 8}, "flowlet 8": {"name": "flowlet", "flowlets": 8}}
SEEDLESS = ("spray",)  # nothing is drawn
DETECTION_S = 1e-3  # retransmission timeout, their config


class Pattern(NamedTuple):
    """A collective that has been solved: per act seconds that bytes move and latency of each flow, and its repeats."""

    moving_s: list[np.ndarray]
    latency_s: list[np.ndarray]
    repeat: list[int]
    more_s: list[float]
    load_bytes: np.ndarray

    def time_s(self, size_mb: float) -> float:
        """Return the seconds for *size_mb* per device. Rates do not depend on the size: bytes move in proportion."""
        scale = size_mb / SOLVED_MB
        return float(sum(n * (float((m * scale + lag).max()) + more) for m, lag, n, more in
                         zip(self.moving_s, self.latency_s, self.repeat, self.more_s, strict=True)))


def network(balancing: str, seed: int, collective: str = "ring", fabric: Any = FABRIC) -> Network:
    """Return the fabric, its 256 hosts as nodes of one device without startup or loss, under *balancing*."""
    plain = Network.on(fabric, BALANCINGS[balancing], seed)
    return Network(plain.n_devices, 1, plain.scale_up, fabric, plain.scale_out, plain.balancing, seed,
                   reduction="ring" if collective == "flat" else collective)


def acts_of(net: Network, collective: str, size_mb: float) -> list[Act]:
    """Return the acts of *collective* among all devices, each with *size_mb*: its vector, or all that it sends."""
    n = net.n_devices
    if collective == "flat":
        return exchange(net, "flat", Messages(np.full((n, n), size_mb * MB / n)))
    return reduction(net, np.array([size_mb * MB]), n)


def solved(collective: str, balancing: str, seed: int, memo: Memo | None = None) -> Pattern:
    """Return *collective* under *balancing*, solved exactly (max-min fair flows)."""
    net = network(balancing, seed, collective)
    acts = acts_of(net, collective, SOLVED_MB)
    played = play(net, acts, "flat", memo=Memo() if memo is None else memo)
    latency_s = path_latency_s(net, played.flows)
    moving_s = played.flows["finish_s"].to_numpy() - played.flows["start_s"].to_numpy() - latency_s
    act = played.flows["act"].to_numpy()
    rows = [act == i for i in range(len(acts))]
    return Pattern([moving_s[r] for r in rows], [latency_s[r] for r in rows], [a.repeat for a in acts],
                   [(a.latencies - 1) * net.latency_s[-1] for a in acts], played.load_bytes)


def path_latency_s(net: Network, flows: pd.DataFrame) -> np.ndarray:
    """Return the latency of the path of each of *flows*: two links in a leaf, four between leaves."""
    src, dst = flows["src"].to_numpy(), flows["dst"].to_numpy()
    near = net.switch_of(src) == net.switch_of(dst)
    return np.where(near, 2, 4) * net.fabric.latency


def busiest(net: Network, load_bytes: np.ndarray) -> dict[str, float]:
    """Return the seconds that the busiest port (nic) and the busiest link between switches (spine) need."""
    x = load_bytes / net.rate()
    kind = net.links()["class"].to_numpy()
    return {"nic_s": float(x[np.isin(kind, ["nic_out", "nic_in"])].max()),
            "spine_s": float(x[np.isin(kind, ["leaf_up", "leaf_down"])].max())}
