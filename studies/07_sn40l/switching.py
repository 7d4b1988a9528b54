"""Switch times, Table V, popularity of experts, and how many fit: the tables of this study about whole experts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import setting

from moesim.memory.composition import Node, serve

EXPERTS = 148     # what the host memory of a DGX holds
BATCHES = 400     # of a run with drawn experts; the first half fills the memory
COUNTS = (10, 20, 30, 40, 45, 46, 47, 50, 60, 80, 100, 120, 140, 148, 149, 200, 400, 979)
SKEWS = {"uniform": 0.0, "Zipf 1": 1.0}


def switches() -> pd.DataFrame:
    """Return the time of one switch by machine and accounting, and its ratio to SN40L's."""
    size = setting.model().total_bytes
    rows = [(name, how, node.copy_s(size)) for name in setting.MACHINES
            for how, node in setting.accountings(name).items() if how != "overlapped"]
    table = pd.DataFrame(rows, columns=["machine", "accounting", "switch_s"])
    own = table[table["machine"] == "SN40L"].set_index("accounting")["switch_s"]
    return table.assign(ratio=table["switch_s"] / table["accounting"].map(own))


def table_v() -> pd.DataFrame:
    """Return Table V from the stated inputs, and with one of them from a cell (marked), the other from other inputs.

    ``fair``: the same if a GPU's node copies over all its links, at the measured rate.
    """
    rows = []
    for source, stated in (("stated", setting.STATED), ("one cell", solved())):
        for (prompts, tokens, name), published in setting.TABLE_V.items():
            found, fair = (speedup(name, how, prompts, tokens, stated) for how in ("paper", "all links, measured"))
            used = source == "one cell" and (prompts, tokens, name) == SOLVED
            rows.append((source, prompts, tokens, name, published, found, found / published - 1, used, fair))
    return pd.DataFrame(rows, columns=["router", "prompts", "tokens", "machine", "published", "model", "error", "input",
                                       "fair"])


SOLVED = (1, 20, "DGX A100")


def solved() -> setting.Stated:
    """Return the router's seconds with which the cell ``SOLVED`` of Table V is met, and 200 tokens as derived."""
    prompts, tokens, name = SOLVED
    wanted, size = setting.TABLE_V[SOLVED], setting.model().total_bytes
    own, other = (setting.accountings(m)["paper"].copy_s(size) + setting.expert_s(m, tokens) for m in ("SN40L", name))
    slower = setting.router_s(name) / setting.STATED.router_s
    return setting.Stated(float((other - wanted * own) / (wanted - slower)), setting.DERIVED_200_S)


def speedup(name: str, accounting: str, prompts: int, tokens: int, stated: setting.Stated) -> float:
    """Return how much longer machine *name* takes than SN40L when no prompt finds its expert."""
    batches = misses(prompts)
    both = [mean_s(machine, setting.accountings(machine)[accounting], batches, tokens, stated)
            for machine in ("SN40L", name)]
    return both[1] / both[0]


def misses(prompts: int) -> list[list[int]]:
    """Return batches in which every prompt asks for the expert that was used longest ago."""
    order = np.arange(2 * EXPERTS // prompts * prompts) % EXPERTS
    return [list(map(int, batch)) for batch in order.reshape(-1, prompts)]


def mean_s(machine: str, node: Node, batches: Sequence[Sequence[int]], tokens: int,
           stated: setting.Stated = setting.STATED, experts: int = EXPERTS) -> float:
    """Return the mean seconds of a batch, the first half left out."""
    table = serve(batches, np.full(experts, setting.model().total_bytes), node,
                  setting.expert_s(machine, tokens, stated), setting.router_s(machine, stated))
    ends = table.groupby("batch")["run_finish_s"].max().to_numpy()
    half = len(ends) // 2
    return float((ends[-1] - ends[half - 1]) / (len(ends) - half))


def drawn(skew: float, prompts: int, experts: int = EXPERTS, batches: int = BATCHES) -> list[list[int]]:
    """Return batches whose experts are drawn with popularity rank ** -skew."""
    weight = np.arange(1, experts + 1.0) ** -skew
    picks = np.random.default_rng(0).choice(experts, size=(batches, prompts), p=weight / weight.sum())
    return [list(map(int, batch)) for batch in picks]


def popularity() -> pd.DataFrame:
    """Return, for batches of 8 prompts with 20 tokens out, hits and speed-ups by accounting and popularity."""
    rows = []
    for skew, power in SKEWS.items():
        batches = drawn(power, 8)
        for accounting in setting.accountings("SN40L"):
            times = {m: mean_s(m, setting.accountings(m)[accounting], batches, 20) for m in setting.MACHINES}
            rows += [(skew, accounting, m, hits(setting.accountings(m)[accounting], batches), times[m],
                      times[m] / times["SN40L"]) for m in setting.MACHINES]
    return pd.DataFrame(rows, columns=["popularity", "accounting", "machine", "hit_rate", "batch_s", "ratio"])


def hits(node: Node, batches: Sequence[Sequence[int]]) -> float:
    """Return the share of prompts of the second half whose expert is near."""
    table = serve(batches, np.full(EXPERTS, setting.model().total_bytes), node, 0.0)
    return float(table[table["batch"] >= len(batches) // 2]["hit"].mean())


def capacity() -> pd.DataFrame:
    """Return, by machine and number of equally popular experts, seconds of a batch of one; none if they do not fit."""
    size, rows = setting.model().total_bytes, []
    for name in setting.MACHINES:
        node = setting.accountings(name)["paper"]
        near, most = node.holds(size)
        for count in COUNTS:
            fits = count <= most
            batches = drawn(0.0, 1, count, 5000)
            seconds = mean_s(name, node, batches, 20, experts=count) if fits else math.nan
            rows.append((name, count, near, most, seconds))
    return pd.DataFrame(rows, columns=["machine", "experts", "near", "most", "batch_s"])


def footprint() -> pd.DataFrame:
    """Return how many DGX hold what one SN40L node holds in some share of its DDR: all in HBM, or in host memory."""
    size = setting.model().total_bytes
    own, dgx = setting.accountings("SN40L")["paper"], setting.accountings("DGX A100")["paper"]
    rows = []
    for share in (0.5, 0.8, 0.85, 0.9, 1.0):
        held = int(share * own.chain.room("ddr") // size)
        rows.append((share, held, math.ceil(held / dgx.holds(size)[0]), math.ceil(held / dgx.holds(size)[1])))
    return pd.DataFrame(rows, columns=["share", "experts", "dgx_hbm", "dgx_host"])
