"""Published numbers beside what is found here, with the error that is allowed and whether it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import links
import pandas as pd
import setting

Row = dict[str, Any]


def near(what: str, published: float, here: float, tolerance: float, form: str = ".1f") -> Row:
    """Return a row whose error, here - published, may be *tolerance*."""
    return {"what": what, "published": format(published, form), "here": format(here, form),
            "error": f"{here - published:+{form}}", "tolerance": format(tolerance, form).rstrip("0").rstrip("."),
            "held": abs(here - published) <= tolerance}


def share(what: str, published: float, here: float, tolerance: float, form: str = ".2f") -> Row:
    """Return a row whose relative error may be *tolerance*."""
    error = here / published - 1
    return {"what": what, "published": format(published, form), "here": format(here, form), "error": f"{error:+.1%}",
            "tolerance": f"{tolerance:.0%}", "held": abs(error) <= tolerance}


def between(what: str, published: float, low: float, high: float, form: str = ".2f") -> Row:
    """Return a row whose published number should lie from *low* to *high*."""
    return {"what": what, "published": format(published, form), "here": f"{low:{form}} to {high:{form}}", "error": "",
            "tolerance": "bracket", "held": low <= published <= high}


def claim(what: str, published: str, here: str, held: bool) -> Row:
    """Return a row without a number to be near to."""
    return {"what": what, "published": published, "here": here, "error": "", "tolerance": "trend", "held": held}


def compared(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return all rows: question, what, published, here, error, tolerance, held."""
    parts = {"readme": readme(tables["readme"], tables["batches"]), "expertflow": expertflow(tables["expertflow"]),
             "scheduler": scheduler(tables["scheduler"]), "bits": bits(tables["bits"]),
             "residency": residency(tables["residency"]), "links": offloading(), "host": host()}
    return pd.DataFrame([{"question": name} | row for name, rows in parts.items() for row in rows])


def readme(table: pd.DataFrame, batches: pd.DataFrame) -> Iterator[Row]:
    """Compare hit ratios of Read-ME's Table 4, and the experts of its batches."""
    hits = table.pivot(index="policy", columns="capacity", values="hit_percent")
    for policy in ("random", "lru"):
        for capacity, published in zip(hits.columns, setting.READ_ME[policy], strict=True):
            yield near(f"{policy}, {capacity} of 6, hit %", published, hits.loc[policy, capacity], 2.5)
    for capacity, published in zip(hits.columns, setting.READ_ME["belady"], strict=True):
        yield between(f"Belady, {capacity} of 6, hit %, if it sees 2 to 4 requests", published,
                      *hits.loc[["belady, window 2", "belady, window 4"], capacity], form=".1f")
    for aware, name in ((False, "first come"), (True, "by expert")):
        found = batches.set_index("by_expert").loc[aware, "distinct"]
        yield near(f"distinct experts of a batch, {name}", setting.DISTINCT[aware], found, 0.4 if aware else 0.3, ".2f")


def expertflow(table: pd.DataFrame) -> Iterator[Row]:
    """Compare hit ratios of ExpertFlow's Fig. 10: each, then what a larger batch costs."""
    found = {}
    for (policy, slots, batch), published in setting.EXPERT_FLOW.items():
        some = table[(table["policy"] == policy) & (table["slots"] == slots) & (table["batch"] == batch)]
        some = some if policy == "lru" else some[some["recall"] == setting.RECALL]
        found[policy, slots, batch] = float(some["hit_percent"].iloc[0])
        chosen = " (favourites chosen for it)" * ((policy, slots, batch) == ("lru", 16, 4))
        yield near(f"{policy}, {slots} slots, batch {batch}, hit %{chosen}", published, found[policy, slots, batch], 5)
    falls = {p: [hits[p, 16, 4] - hits[p, 16, 16] for hits in (setting.EXPERT_FLOW, found)] for p in ("lru", "plec")}
    yield near("LRU falls from batch 4 to 16 by points", *falls["lru"], tolerance=5)
    yield claim("PLEC falls by points, less than 8", f"{falls['plec'][0]:.1f}", f"{falls['plec'][1]:.1f}",
                falls["plec"][1] < 8)
    gains = [found["plec", s, b] - found["lru", s, b] for s, b in ((16, 4), (16, 16), (8, 16))]
    yield claim("PLEC is ahead of LRU by points", "15 to 36", f"{min(gains):.1f} to {max(gains):.1f}",
                15 <= min(gains) and max(gains) <= 36)


def scheduler(table: pd.DataFrame) -> Iterator[Row]:
    """Compare what regrouping tokens gains with more experts."""
    by = table[table["subjects"] == 64].set_index("experts")
    told = ", ".join(f"{gain:.2f}" for gain in setting.SCHEDULER.values())
    for column, name in (("fewer_distinct", "fewer distinct experts"), ("fewer_misses", "fewer misses, LRU, 16 slots")):
        found = [float(by.loc[e, column]) for e in setting.SCHEDULER]
        yield claim(f"gain of regrouping grows with 32, 64, 128 experts: {name}", f"{told} times tokens/s",
                    ", ".join(f"{f:.1%}" for f in found), found == sorted(found) and found[0] < found[-1])


def bits(table: pd.DataFrame) -> Iterator[Row]:
    """Compare faults over OPT's with the theorems."""
    for (experts, room), some in table.groupby(["experts", "room"], sort=False):
        exact = some[(some["error"] == 0) & (some["wrong"] == "both")].set_index("policy")["ratio"]
        yield near(f"MARK0, exact bits, {room} of {experts}: faults / OPT", 1, exact["mark0"], 0.001, ".3f")
        yield claim(f"MARK&PREDICT, exact bits, {room} of {experts}: faults / OPT", "at most 2",
                    f"{exact['mark_predict']:.2f}", exact["mark_predict"] <= 2)
    told = table[table["policy"].str.startswith("mark")]
    used = ((told["ratio"] - 1) / (told["bound"] - 1).where(told["bound"] > 1)).dropna()
    yield claim(f"{len(told)} points stay below their bound", "all", f"nearest: {used.max():.0%} of what it allows",
                bool((told["ratio"] <= told["bound"] + 1e-9).all()))


def residency(curve: pd.DataFrame) -> Iterator[Row]:
    """Compare the shape of KTransformers' three curves."""
    rank = curve["on_gpu"].corr(curve["published"], method="spearman")
    yield claim("rank correlation of 33 points at least 0.95 (calibrated)", "1", f"{rank:.3f}",
                rank >= 0.95)
    ahead = []
    for column in ("published", "on_gpu"):
        wide = curve.pivot(index="share", columns="policy", values=column)
        where = [f"{s:.0%}" for s in wide.index if wide.loc[s, "dynamic"] > wide.loc[s, "frequency"] + 1e-9]
        ahead.append(f"{where[0]} to {where[-1]}")
    yield claim("dynamic is ahead of frequency", *ahead, held=ahead[0] == ahead[1])


def offloading() -> Iterator[Row]:
    """Compare systems that copy what they miss."""
    hits, size = links.mixtral_hits(), setting.model("mixtral-8x7b").expert_parameters
    t4 = links.mixtral_offloading(hits)
    ahead = t4.with_missing(t4.missing * (1 - links.SEEN_AHEAD)).token_s
    yield share("Mixtral-offloading, T4, tokens/s with prefetching", links.T4["full"], 1 / ahead, 0.15)
    yield between("its naive offloading, tokens/s, if none or half of each layer is near", links.T4["naive"],
                  *(1 / (t4.rest_s + 32 * experts * t4.miss_s) for experts in (8, 4)))
    rates = [size * (b + links.SCALES_BITS) / 8 / t4.miss_s / 1e9 for b in (2, 3)]
    yield claim("its link, GB/s, that 2 to 3 bits imply, is below PCIe 3.0", f"{links.PCIE3 / 1e9:g}",
                f"{rates[0]:.1f} to {rates[1]:.1f}", max(rates) < links.PCIE3 / 1e9)
    infinity = ("MoE-Infinity", "mixtral-8x7b")
    yield share("MoE-Infinity, A5000, Mixtral, s/token", links.A5000[infinity],
                links.moe_infinity("mixtral-8x7b").token_s, 0.15, ".3f")
    lite = ("MoE-Infinity", "deepseek-v2-lite")
    yield share("the same, DeepSeek-V2-Lite, s/token", links.A5000[lite],
                links.moe_infinity("deepseek-v2-lite").token_s, 0.15, ".3f")
    for name in ("DeepSpeed", "Accelerate"):
        least = links.layerwise_s(links.PCIE4)
        yield claim(f"{name} copies whole layers: s/token not below what PCIe 4.0 allows",
                    f"{links.A5000[name, 'mixtral-8x7b']:.2f}", f"at least {least:.2f}",
                    links.A5000[name, "mixtral-8x7b"] >= least)


def host() -> Iterator[Row]:
    """Compare systems that compute on the host what they miss."""
    for gpu in links.FIDDLER:
        found = 1 / links.fiddler(gpu)[1].token_s
        yield claim(f"Fiddler, {gpu}: copies of 50 ms, times its speed-up, give tokens/s",
                    f"over {links.FIDDLER_TOKENS_PER_S:g}", f"{found:.2f}", found > links.FIDDLER_TOKENS_PER_S)
    (cpu, _), (before, after) = links.KT_BUSY["cpu"], links.KT_BUSY["gpu"]
    yield share("KTransformers, deferral: GPU busier by, if the CPU becomes all busy", after / before, 1 / cpu, 0.05)
    model = setting.model("deepseek-v3")
    read = links.uses("deepseek-v3") * 2 * model.expert_parameters / (cpu / links.KT_TOKENS_PER_S)
    yield claim("its experts in 16 bits, GB/s while the CPU is busy, below both sockets' own",
                f"{2 * links.KT_LOCAL / 1e9:g}", f"{read / 1e9:.0f}", read < 2 * links.KT_LOCAL)
    mixed = [(1 - far) + far * links.KT_LOCAL / links.KT_REMOTE for far in (0.5, 1.0)]
    yield between("its gain of experts split over sockets, if half or all reads were remote", links.KT_NUMA, *mixed)
