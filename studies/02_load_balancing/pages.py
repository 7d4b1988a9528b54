"""The numbers of the README, from the tables of this study."""

from __future__ import annotations

import failures
import pandas as pd
from setting import BALANCINGS, COLLECTIVES, SOLVED_MB

from moesim.page import markdown

HALVING, DIRECT, TREE = "all-reduce, halving-doubling", "all-reduce, direct", "all-reduce, double binary tree"
ONE, EPLB, EVEN, EQUAL = ("captured, one expert per device", "captured, 32 replicas (EPLB)", "drawn evenly",
                          "equal flows")
PLAYED = ("split", "adaptive", "mprdma 4", "ecmp")
# Packet level (htsim) over this fluid model's prediction with headers, 992 pairs of 1 MiB, 4 leaves x 8 spines x 8
# hosts (1:1): docs/background/network.md. NDP was not listed by fabric: its range is of 2:1 and 1:1 together.
RESIDUAL = {"Ultra Ethernet, sender": {"ecmp": (1.021, 1.037), "split": (1.017, 1.017), "spray": (1.018, 1.019)},
            "NDP, receiver-driven": {"ecmp": (1.019, 1.074), "split": (1.023, 1.067), "spray": (1.029, 1.101)},
            "RoCE with PFC alone": {"ecmp": (1.277, 1.277), "split": (1.021, 1.021)}}


def numbers(tables: dict[str, pd.DataFrame]) -> str:
    """Return everything between the markers of the README."""
    whole = tables["collectives"]
    parts = [answer(tables), "![Completion relative to spraying](figures/collectives.png)",
             "### Time relative to spraying, mean over seeds (least to most)", ratios(whole),
             f"One row per size is in `collectives.csv`; times at three sizes:\n\n{times(whole)}",
             "### What the paper claims", claims(tables),
             "### What packets add", packets(whole),
             "### When a link fails", broken(tables["failures"]),
             "### A captured dispatch instead of equal flows", replayed(tables["replay"]), uplinks(tables["replay"])]
    return "\n\n".join(parts)


def one(table: pd.DataFrame, **where: object) -> pd.Series:
    """Return the only row of *table* with these values."""
    found = table.loc[(table[list(where)] == pd.Series(where)).all(axis=1)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have {where}; run study.py again to make the tables of this version")
    return found.iloc[0]


def at(table: pd.DataFrame, collective: str, balancing: str, size_mb: int = SOLVED_MB) -> pd.Series:
    """Return the row of *collective* under *balancing*."""
    return one(table, collective=collective, balancing=balancing, size_mb=size_mb)


def span(row: pd.Series, digits: int = 3) -> str:
    """Return "mean (least to most)", or one number where they are the same."""
    mean, least, most = (f"{row[c]:.{digits}f}" for c in ("ratio", "least", "most"))
    return mean if least == most else f"{mean} ({least} to {most})"


def ratios(table: pd.DataFrame) -> str:
    """Return the table of ratios at the solved size."""
    rows = []
    for balancing in BALANCINGS:
        known = table[(table["balancing"] == balancing) & (table["size_mb"] == SOLVED_MB)].set_index("collective")
        rows.append([balancing, *(span(known.loc[c]) if c in known.index else "not run" for c in COLLECTIVES)])
    return markdown(["balancing", *COLLECTIVES], rows, words=1)


def times(table: pd.DataFrame) -> str:
    """Return milliseconds at 1, 16 and 256 MB."""
    rows = [[name, *(f"{at(table, name, b, size)['time_s'] * 1e3:.4g}" for b in ("spray", "ecmp")
                     for size in (1, 16, 256))] for name in COLLECTIVES]
    return markdown(["ms", *(f"{b}, {s} MB" for b in ("spraying", "ECMP") for s in (1, 16, 256))], rows)


def claims(tables: dict[str, pd.DataFrame]) -> str:
    """Return the table of published claims, what came out here, and the verdict."""
    table, lost = tables["collectives"], tables["failures"]
    some = table[table["size_mb"] == SOLVED_MB].set_index("collective")["ratio"]
    ring, tree = some["all-reduce, ring"], at(table, TREE, "ecmp")
    mp = ", ".join(f"{at(table, HALVING, f'mprdma {n}')['ratio']:.2f} ({n})" for n in (2, 4, 8))
    uneven = table.loc[table["balancing"] == "split", "uneven"].max()
    worst = table.loc[table["balancing"] == "split", "most"].max()
    cable = [one(lost, collective="direct", broken="cable", balancing=b, moment=0.25)["ratio"]
             for b in ("split", "spray")]
    rows = [["Ring: no difference between balancings", f"all {ring.max():.3f}" if ring.min() == ring.max()
             else f"{ring.min():.3f} to {ring.max():.3f}",
             "reproduced"],
            ["Double binary tree: no difference", f"ECMP {span(tree)}; pieces, splitting, adaptive "
             f"{max(at(table, TREE, b)['most'] for b in ('split', 'adaptive', 'mprdma 2', 'mprdma 8')):.3f}",
             "reproduced but for ECMP with some seeds: edges of the two trees may share a spine"],
            ["Halving-doubling: MP-RDMA does not help enough, too few flows to hash",
             f"ECMP {span(at(table, HALVING, 'ecmp'), 2)}; MP-RDMA {mp} times spraying", "reproduced (no published "
             "numbers to compare)"],
            ["Splitting loads every link as spraying does (theorem 1)",
             f"loads of all links differ by {'less than 1e-9' if uneven < 1e-9 else f'{uneven:.1%}'} of the busiest's; "
             f"time at most {worst:.4f} of spraying's",
             "reproduced"],
            ["MP-RDMA-8 needs more than 4000 queue pairs per GPU in an all-to-all",
             f"255 peers x 8 pieces, to send and to receive: {2 * 255 * 8}; splitting cuts nothing here "
             f"(16 flows to each leaf, 16 spines)", "agrees (arithmetic)"],
            ["Splitting is up to 30 % faster than packet spraying", "equal", "**cannot be shown** by fluid flows"],
            ["Up to 40 % faster than REPS", "not modelled", "**not tried**"],
            ["The same under link failures", f"direct, cable fails at 25 %: splitting {cable[0]:.2f}, spraying "
             f"{cable[1]:.2f} of spraying without failure", "splitting loses less; how much less is a property of the "
             "model (below)"],
            ["ECMP and MP-RDMA do not terminate under failure", "they do: dead paths are hashed anew 1 ms after the "
             "failure. With pinned paths they do not: `" + failures.without_new_paths() + "`", "**differs**, by the "
             "assumption that switches withdraw dead paths"]]
    return markdown(["claim", "here", "verdict"], rows)


def packets(table: pd.DataFrame) -> str:
    """Return predicted ratios with the residuals of packet-level runs as a band."""
    rows = []
    for transport, known in RESIDUAL.items():
        for a, b in (("split", "spray"), ("ecmp", "spray"), ("ecmp", "split")):
            if a in known and b in known and not (b == "split" and "spray" in known):
                low, high = known[a][0] / known[b][1], known[a][1] / known[b][0]
                ours = [at(table, c, a)["ratio"] / at(table, c, b)["ratio"] for c in (DIRECT, HALVING)]
                rows.append([f"{transport}: {a} / {b}", *(f"{x:.2f}" for x in ours),
                             f"{low - 1:+.1%} to {high - 1:+.1%}",
                             *(f"{x * low:.2f} to {x * high:.2f}" for x in ours)])
    return markdown(["ratio", "direct, fluid", "halving-doubling, fluid", "packets change it by", "direct, band",
                     "halving-doubling, band"], rows)


def broken(table: pd.DataFrame) -> str:
    """Return what a failure at a quarter of the time costs."""
    table = table[table["moment"] == 0.25]
    rows, shown = [], [b for b in BALANCINGS if b != "flowlet 8"]
    for (collective, what), some in table.groupby(["collective", "broken"], sort=False):
        time_s, lost_s = (some.set_index("balancing")[c].mul(1e3).round(2) + 0.0 for c in ("time_s", "lost_s"))
        rows.append([f"{str(collective).replace('_', '-')}, {what}", *(
            f"{time_s[b]:.2f} ({lost_s[b]:+.2f})" if b in time_s.index else "not run" for b in shown)])
    return markdown(["ms (of which lost)", *shown], rows, words=1)


def replayed(table: pd.DataFrame) -> str:
    """Return what balancing costs per layout, phase and routing: mean over layers, groups and seeds, and extremes."""
    rows = []
    for (layout, phase, routing), some in table.groupby(["layout", "phase", "routing"], sort=False):
        found = some.groupby("balancing").agg(ratio=("ratio", "mean"), least=("least", "min"), most=("most", "max"))
        spray = some[some["balancing"] == "spray"]
        rows.append([f"{layout}, {phase}: {routing}", f"{spray['imbalance'].mean():.2f}",
                     f"{spray['over_nic'].mean():.2f}", *(span(found.loc[b], 2) for b in PLAYED)])
    return markdown(["a group's dispatch", "port max/mean", "spraying / busiest port", *PLAYED], rows)


def uplinks(table: pd.DataFrame) -> str:
    """Return how far the busiest link between switches is above that of spraying: what the theorem is about."""
    rows = []
    for (layout, routing), some in table[table["phase"] == "prefill"].groupby(["layout", "routing"], sort=False):
        found = some.groupby("balancing").agg(mean=("spine_ratio", "mean"), most=("spine_most", "max"))
        rows.append([f"{layout}: {routing}", *(f"{found.loc[b, 'mean']:.2f} (most {found.loc[b, 'most']:.2f})"
                                               for b in PLAYED)])
    text = markdown(["busiest link between switches / with spraying", *PLAYED], rows)
    return f"Prefill; the guarantee of splitting is 1.00 for equal flows:\n\n{text}"


def answer(tables: dict[str, pd.DataFrame]) -> str:
    """Return the answer in words, with the numbers of the tables."""
    table = tables["collectives"]
    some = tables["replay"]
    narrow = some[(some["layout"] == "spread, 2:1") & (some["balancing"] == "split") & (some["routing"] == ONE)]
    some = some[(some["layout"] == "spread") & (some["phase"] == "prefill")]
    mean = some.groupby(["routing", "balancing"])["ratio"].mean()
    split = some[some["balancing"] == "split"]
    return (f"**Equal flows.** Splitting equals spraying in every collective. Hashing costs "
            f"{at(table, HALVING, 'ecmp')['ratio']:.2f} times in halving-doubling (one large flow per GPU and round), "
            f"{at(table, DIRECT, 'ecmp')['ratio']:.2f} in direct all-reduce and all-to-all (255 flows per GPU), none "
            f"in a ring, {at(table, TREE, 'ecmp')['ratio']:.2f} in the double tree. That is at {SOLVED_MB} MB; at 1 MB "
            f"latency takes part of the time: halving-doubling {at(table, HALVING, 'ecmp', 1)['ratio']:.2f}.\n\n"
            f"**A captured dispatch** (prefill, groups of 32 GPUs over all leaves). Under ECMP equal flows of the same "
            f"total take {mean[EQUAL, 'ecmp']:.2f} times the time of spraying. With the real, uneven matrices and one "
            f"expert per GPU it is {mean[ONE, 'ecmp']:.2f}: the port of the busiest expert is slower than most "
            f"collisions. Balance the experts (EPLB, 32 replicas) and collisions are back: {mean[EPLB, 'ecmp']:.2f}. "
            f"Splitting stays at {split['ratio'].mean():.3f} (most {split['most'].max():.3f}), though its guarantee, "
            f"which needs equal flows, is gone: its busiest link between switches is up to "
            f"{split['spine_most'].max():.2f} times that of spraying, hidden by ports. Where uplinks are the "
            f"bottleneck (2:1, one expert per GPU) it shows: {narrow['ratio'].mean():.2f} (most "
            f"{narrow['most'].max():.2f}). "
            f"**So the better experts are "
            f"placed, the more the balancing of the network is worth.**")
