"""Titles, tables and sentences of this study. Every number, and which way a sentence goes, comes from the tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moesim.page import markdown

MIB = 2**20
MEASURED = ((64, MIB, True), (2048, MIB, True), (64, 32 * MIB, False), (2048, 32 * MIB, True), (64, 256 * MIB, False),
            (2048, 256 * MIB, True))
"""Tutel, appendix A.5, NCCL: GPUs, bytes per GPU, whether 2DH was faster. The text gives no times."""


def wide(times: pd.DataFrame) -> pd.DataFrame:
    """Return *times* with one column per algorithm, by GPUs and size."""
    return times.pivot(index=["gpus", "size_bytes"], columns="algorithm", values="time_s")


def gain(times: pd.DataFrame) -> pd.DataFrame:
    """Return how much faster PXN is than the better of flat and 2DH, by size (rows) and GPUs."""
    both = wide(times)
    return (both[["flat", "2DH"]].min(axis=1) / both["PXN"]).unstack("gpus")


def crossover_title(crossovers: pd.DataFrame) -> str:
    points = [f"{int(n):,} at {s // MIB} MiB" if n == n and n is not None else f"none at {s // MIB} MiB"
              for s, n in zip(crossovers["size_bytes"], crossovers["gpus"], strict=True)]
    return f"2DH beats flat from {', '.join(points[:-1])} and {points[-1]} per GPU on"


def gain_title(gains: pd.DataFrame) -> str:
    many = gains.drop(columns=8)
    best = many.stack().idxmax()
    never = "is never slower" if float(many.to_numpy().min()) >= 0.9995 else "is not always faster"
    return (f"PXN (NCCL since 2.12) {never} in this model: up to {float(many.max().max()):.1f} times faster than "
            f"the better of both, at {best[1]} GPUs")


def times_title(times: pd.DataFrame, gpus: int) -> str:
    small = wide(times).loc[gpus].iloc[0]
    large = wide(times).loc[gpus].iloc[-1]
    return (f"Messages set the time of small all-to-alls, bytes that of large ones: at {gpus:,} GPUs flat is "
            f"{small['flat'] / small['2DH']:.1f} times 2DH, then {large['flat'] / large['2DH']:.2f} times")


def parts_title(parts: pd.DataFrame) -> str:
    last = parts[(parts["gpus"] == parts["gpus"].max()) & (parts["algorithm"] == "flat")]
    last = last[last["size_bytes"] == last["size_bytes"].max()]
    share = last.loc[last["part"] == "messages", "time_s"].sum() / last["time_s"].sum()
    first = parts[(parts["gpus"] == parts["gpus"].min()) & (parts["algorithm"] == "2DH")]
    first = first[first["size_bytes"] == first["size_bytes"].max()]
    price = first.loc[first["part"].isin(["copies", "NVLink"]), "time_s"].sum() / first["time_s"].sum()
    return (f"Flat pays for messages: {share:.0%} of its time at {int(last['gpus'].iloc[0]):,} GPUs even with 256 MiB. "
            f"2DH pays for copies and NVLink: {price:.0%} at {int(first['gpus'].iloc[0])} GPUs")


def schemes_titles(schemes: pd.DataFrame) -> list[str]:
    def faster(tokens: int, nodes: int) -> float:
        rows = schemes[(schemes["tokens"] == tokens) & (schemes["nodes"] == nodes)].set_index("scheme")["time_s"]
        return float(rows["per device"] / rows["per node, at most 4"])

    few, many = sorted(schemes["tokens"].unique())
    top = schemes["nodes"].max()
    rows = schemes[(schemes["nodes"] == top) & (schemes["tokens"] == many)].set_index("scheme")["nic_bytes"]
    return [f"The limit keeps {1 - rows['per node, at most 4'] / rows['per device']:.0%} of flat's copies off the "
            f"ports of {top} nodes", f"Few tokens: {faster(few, top):.1f} times as fast as flat at {top} nodes",
            f"Many tokens: {faster(many, top):.1f} times as fast as flat at {top} nodes"]


def statements(times: pd.DataFrame, crossovers: pd.DataFrame, inside_s: float) -> list[tuple[str, str, str]]:
    """Return what Tutel says, what the model says, and whether that agrees."""
    both = wide(times)
    at = both["flat"] / both["2DH"]
    first = crossovers.set_index("size_bytes")["gpus"]

    def verdict(size: int) -> str:
        rises = at.xs(size * MIB, level="size_bytes").loc[64:].is_monotonic_increasing
        right = all((at[n, s] > 1) == won for n, s, won in MEASURED if s == size * MIB)
        return "holds" if rises and right else "does not hold"

    def numbers(size: int) -> str:
        return (f"flat / 2DH {at[64, size * MIB]:.2f} at 64 GPUs, {at[2048, size * MIB]:.2f} at 2,048; equal at "
                f"{int(first[size * MIB]):,}")

    layer = at[2048, 128 * MIB], at[2048, 256 * MIB]
    return [("1 MiB: 2DH is faster from the smallest scale shown (64 GPUs) on", numbers(1), verdict(1)),
            ("32 MiB: 2DH is slower at small scale, faster at large", numbers(32), verdict(32)),
            ("256 MiB: 2DH is slower at 64 GPUs (NCCL), better and better with more", numbers(256), verdict(256)),
            ("exchange of 128 MiB inside a node: about 600 µs", f"{1e6 * inside_s:.0f} µs",
             "holds" if abs(inside_s / 600e-6 - 1) < 0.15 else "does not hold"),
            ("layer at 2,048 GPUs (128 or 256 MiB, if its 16,384 tokens are those of a GPU): 4.25 times from 2DH",
             f"{layer[0]:.2f} or {layer[1]:.2f} times", "holds" if max(layer) > 3.5 else "**not reproduced**"),
            ("4,096 GPUs: 2DH runs, NCCL's flat does not", "nothing in the model fails with size", "outside the model")]


def text(times: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> str:
    """Return what stands between the markers of the README."""
    both, first = wide(times), tables["crossovers"].set_index("size_bytes")["gpus"]
    others = _others(tables["times"])
    inside = float(both.loc[(8, 128 * MIB), "flat"])
    lines = [f"**2DH beats flat from {int(first[MIB])} GPUs at 1 MiB per GPU, {int(first[32 * MIB])} at 32 MiB, "
             f"{int(first[256 * MIB]):,} at 256 MiB.** {others}", "![Map](figures/crossover.png)",
             markdown(("Tutel says (appendix A.5, A.2, section 5)", "the model", "verdict"),
                      statements(times, tables["crossovers"], inside), words=3),
             "![Times](figures/times.png)", "![Parts](figures/parts.png)",
             "## Node-limited routing against flat", _limited(tables["schemes"]), "![Schemes](figures/schemes.png)",
             _scheme_table(tables["schemes"]), "### Against DeepEP's published numbers", _checks(tables["published"]),
             "### With real routing", _trace(tables["trace"])]
    return "\n\n".join(lines)


def _others(times: pd.DataFrame) -> str:
    """Say from how many GPUs on 2DH wins with 256 MiB for other costs of a message, between columns of the map."""
    found = []
    for message_s in (times["message_s"].min(), times["message_s"].max()):
        both = wide(times[times["message_s"] == message_s])
        ratio = (both["flat"] / both["2DH"]).xs(256 * MIB, level="size_bytes").loc[16:]
        gpus = np.interp(1.0, ratio, ratio.index)  # messages: linear in GPUs
        found.append(f"with {1e6 * message_s:.0f} µs " + (f"from about {gpus:.0f}" if ratio.max() > 1
                                                        else f"not up to {ratio.index.max():,} GPUs"))
    return (f"That hangs on what a message over the port costs (2 µs taken): {' and '.join(found)} at 256 MiB.")


def _limited(schemes: pd.DataFrame) -> str:
    """Say what one copy per node gains over flat, and what the limit adds."""
    rows, nic = (schemes.pivot(index=["nodes", "tokens"], columns="scheme", values=v) for v in ("time_s", "nic_bytes"))
    limited, free = (rows["per device"] / rows[s] for s in ("per node, at most 4", "per node"))
    fewer = nic["per device"] / nic["per node, at most 4"]
    matters = (limited / free > 1.05).groupby("nodes").all()
    least = "at every size" if free.min() > 1 else "at most sizes"
    return (f"**One copy per node beats one per device {least}; the limit of 4 nodes matters from "
            f"{matters.idxmax()} nodes on.** Dispatch of 4,096 tokens per GPU is {free[4, 4096]:.1f} times as fast as "
            f"flat on 4 nodes, where the limit forbids nothing. On 32 nodes it is {free[32, 4096]:.1f} times as fast "
            f"without the limit and {limited[32, 4096]:.1f} times with it; flat sends {fewer[32, 4096]:.1f} times the "
            f"bytes over the ports.")


def _scheme_table(schemes: pd.DataFrame) -> str:
    rows = []
    for (nodes, tokens), part in schemes.groupby(["nodes", "tokens"]):
        found = part.set_index("scheme")
        rows.append([f"{nodes} nodes, {tokens:,} tokens", *(f"{1e6 * t:,.0f}" for t in found["time_s"]),
                     *(f"{found.loc[s, 'nic_bytes'] / 1e6:.1f}" for s in ("per device", "per node, at most 4")),
                     *(f"{found.loc[s, 'nvlink_bytes'] / 1e6:.1f}" for s in ("per device", "per node, at most 4"))])
    names = [f"{s} (µs)" for s in dict.fromkeys(schemes["scheme"])]
    return markdown(["", *names, "port, flat (MB)", "port, at most 4", "NVLink, flat", "NVLink, at most 4"], rows)


def _checks(published: pd.DataFrame) -> str:
    rows = [(f"{r.kernel}, EP {r.ep}" + (" (fitted)" if r.fitted else ""), f"{r.published:g} {r.unit}",
             f"{r.model:.1f}", f"{r.error:+.0%}") for r in published.itertuples()]
    free = published[~published["fitted"]]
    worst = free.loc[free["error"].abs().idxmax()]
    return (f"Mean error of the {len(free)} numbers that nothing was fitted to: {free['error'].abs().mean():.1%}; the "
            f"worst is {worst['error']:+.0%} ({worst['kernel']}, EP {worst['ep']}).\n\n" +
            markdown(("kernel", "published", "model", "error"), rows))


def _trace(trace: pd.DataFrame) -> str:
    rows = [(f"{r.nodes} x {r.devices_per_node}, {r.placement}", f"{r.visited:.3f}", f"{r.sent:.3f}", f"{r.load:.2f}")
            for r in trace.itertuples()]
    two = trace[trace["nodes"] == 2].set_index("placement")
    linear, sent = two.loc["linear", "sent"], two["sent"]
    return (f"A token of `reference-moe` (32 experts, top-2, no node limit) visits {two.loc['linear', 'visited']:.2f} "
            f"of 2 nodes where experts lie in order; uniform routing would visit {two.loc['uniform', 'visited']:.2f}. "
            f"Affinity placement saves {1 - sent['affinity'] / linear:.0%} of the copies between 2 nodes "
            f"(`joint`: {1 - sent['joint'] / linear:.0%}), a placement made for nothing else (`co-activation`) "
            f"{1 - sent['co-activation'] / linear:.0%}.\n\n" +
            markdown(("nodes x devices, placement", "nodes visited", "copies over ports", "busiest node / mean"), rows))
