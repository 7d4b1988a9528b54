"""Published numbers beside what is found here, with the error that is allowed and whether it is kept."""

from __future__ import annotations

from collections.abc import Iterator

import held
import links
import pandas as pd
import setting

from moesim.published import Row, between, claim, share


def compared(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return all rows: question, what, published, here, error, tolerance, held."""
    parts = {"engine": held.compared(tables["runs"]), "residency": residency(tables["residency"]),
             "links": offloading(), "host": host()}
    return pd.DataFrame([{"question": name} | row for name, rows in parts.items() for row in rows])


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
