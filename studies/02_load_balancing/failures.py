"""A link, or a spine, fails while a collective runs: what is lost, and when."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from setting import DETECTION_S, FABRIC, MB, SEEDLESS, acts_of, network, solved

from moesim.network import run_flows
from moesim.network.faults import Faults
from moesim.network.play import play

SEEDS = 3
TOLERANCE = 0.01  # joins ends within 1 % of a flow's duration
SIZE_MB = 64
BROKEN = {"cable": ("leaf0->spine0", "spine0->leaf0"), "spine": ("spine0",)}
MOMENTS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.99)  # of the time that spraying takes when nothing fails
ASKED = {"direct": ("spray", "split", "adaptive", "ecmp", "mprdma 4"),
         "halving_doubling": ("spray", "split", "adaptive", "ecmp", "mprdma 2", "mprdma 4", "mprdma 8"),
         "tree": ("spray", "split", "adaptive", "ecmp", "mprdma 2", "mprdma 4", "mprdma 8"),
         "ring": ("spray", "split", "ecmp")}  # 510 rounds, one by one


def tasks() -> Iterator[tuple[str, str, str, int]]:
    """Yield the (collective, broken, balancing, seed) that ``rows`` is to be called with."""
    for collective, asked in ASKED.items():
        for broken in BROKEN if collective != "ring" else ("cable",):
            for balancing in asked:
                one = balancing in SEEDLESS or collective == "ring" or (collective == "direct" and balancing != "ecmp")
                for seed in range(1 if one else SEEDS):
                    yield collective, broken, balancing, seed


def rows(collective: str, broken: str, balancing: str, seed: int) -> list[dict[str, float | str]]:
    """Return a row per moment of failure: time_s, and time_s of the same run without failure (whole_s)."""
    whole_s, spray_s = (solved(collective, b, s).time_s(SIZE_MB) for b, s in ((balancing, seed), ("spray", 0)))
    return [{"collective": collective, "broken": broken, "balancing": balancing, "seed": seed, "moment": moment,
             "time_s": broken_s(collective, broken, balancing, seed, moment * spray_s), "whole_s": whole_s,
             "spray_s": spray_s}
            for moment in (MOMENTS if broken == "cable" and collective != "ring" else MOMENTS[1:2])]


def broken_s(collective: str, broken: str, balancing: str, seed: int, fails_s: float) -> float:
    """Return the seconds of *collective* when what is *broken* fails at *fails_s*; found out ``DETECTION_S`` later."""
    net = network(balancing, seed, collective)
    faults = Faults.of(net.links(), pd.DataFrame({"time_s": fails_s, "where": BROKEN[broken], "factor": 0.0}),
                       DETECTION_S)
    acts = [a._replace(repeat=1) for a in acts_of(net, collective, SIZE_MB) for _ in range(a.repeat)]
    return play(net, acts, "flat", tolerance=TOLERANCE, faults=faults).time_s


def without_new_paths() -> str:
    """Return what is said of ECMP whose flows keep their paths (as in the paper's set-up) when a spine fails."""
    flows = pd.DataFrame({"src": [0, 1], "dst": [16, 17], "bytes": MB, "start_s": 0.0, "spine": [0, 1]})
    try:
        run_flows(FABRIC, flows, faults=pd.DataFrame({"time_s": [1e-6], "where": ["spine0"], "factor": [0.0]}))
    except ValueError as stuck:
        return str(stuck)
    raise AssertionError("a flow whose only path has failed came to an end")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return per collective, broken, balancing and moment the means over seeds: ratio (to spraying when nothing fails).

    ``lost_s``: more than without failure; ``least``, ``most``: of the ratio.
    """
    table = table.assign(ratio=table["time_s"] / table["spray_s"], lost_s=table["time_s"] - table["whole_s"])
    groups = table.groupby(["collective", "broken", "balancing", "moment"], sort=False)
    return groups.agg(time_s=("time_s", "mean"), ratio=("ratio", "mean"), least=("ratio", "min"), most=("ratio", "max"),
                      lost_s=("lost_s", "mean"), seeds=("seed", "nunique")).reset_index()
