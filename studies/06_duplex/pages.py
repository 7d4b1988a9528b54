"""The numbers of the README, from the tables of this study."""

from __future__ import annotations

import beyond
import hetero
import pandas as pd
import reproduce
import sizes

from moesim.page import markdown

PRESET_S = 0.8e-6  # latency of a hop: H100 preset of the released simulator


def numbers(tables: dict[str, pd.DataFrame]) -> str:
    """Return everything between the markers of the README."""
    stages = tables["stages"]
    latency = reproduce.fitted(stages)
    parts = [answer(tables), "![Throughput](figures/gains.png)",
             "### Published and found here, nothing fitted", figures_table(stages, reproduce.LATENCY_S),
             "Claims without a number:", claims(tables), "What follows from sizes alone:", identities(),
             "### The same with one fitted number: calibration, not validation", fitted(stages, latency),
             "![Errors](figures/errors.png)", "### Energy x delay x area", edap(),
             "### Skewed routing, measured kernels and collectives", "![Elsewhere](figures/elsewhere.png)",
             elsewhere(tables["elsewhere"]), "### Other processors in memory", "![Designs](figures/designs.png)",
             designs(tables["designs"])]
    return "\n\n".join(parts)


def answer(tables: dict[str, pd.DataFrame]) -> str:
    """Return the answer, before everything else."""
    found = reproduce.compared(tables["stages"])
    ratios = found[found["relative"]]
    claimed = _claims(tables)
    return (
        f"**Reproduced, without fitting.** {int(found['held'].sum())} of {len(found)} published numbers are met within "
        f"their tolerance, and {sum(held for _, held in claimed.values())} of {len(claimed)} claims of order. The "
        f"ratios are {ratios['error'].mean():+.1%} off on average, {ratios['error'].min():+.1%} to "
        f"{ratios['error'].max():+.1%}: the gains come out a little too large, as they would if the paper's "
        f"collectives wait longer, or its devices spend time on what is not modelled. {_beyond(tables)}")


def _beyond(tables: dict[str, pd.DataFrame]) -> str:
    over = _over(tables["elsewhere"])
    pe = (over["Duplex+PE+ET"] / over["Duplex"]).unstack("batch")
    uniform, skewed = pe.loc["Mixtral, uniform"], pe.loc["Mixtral, as skewed as gpt-oss-20b"]
    full = over["Duplex+PE+ET"].unstack("batch")
    ideal, real = full.loc["Mixtral, uniform"], full.loc["Mixtral, measured kernels and collectives"]
    return (
        f"\n\n**Elsewhere the gain is of the same size.** Under skewed routing sharing is worth more: Duplex+PE+ET is "
        f"{skewed.min():.2f} to {skewed.max():.2f} times as fast as Duplex for Mixtral (uniform: {uniform.min():.2f} "
        f"to {uniform.max():.2f}). With kernels and collectives as measured on H100 it is {real.min():.2f} to "
        f"{real.max():.2f} times as fast as the GPU instead of {ideal.min():.2f} to {ideal.max():.2f}: "
        f"{real[32] / ideal[32] - 1:+.0%} with batch 32, {real[128] / ideal[128] - 1:+.0%} with batch 128.")


def figures_table(stages: pd.DataFrame, latency_s: float) -> str:
    """Return every published number beside ours."""
    rows = []
    for figure, row in zip(reproduce.FIGURES, reproduce.compared(stages, latency_s).itertuples(), strict=True):
        error, bound = (f"{row.error:+.1%}", f"{row.tolerance:.0%}") if row.relative else (
            f"{row.error:+.2f}", f"{row.tolerance:g}")
        rows.append([figure.where, figure.what, figure.form.format(row.published), figure.form.format(row.ours), error,
                     bound, "yes" if row.held else "**no**"])
    return markdown(["where", "what", "published", "here", "error", "tolerance", "held"], rows)


def _claims(tables: dict[str, pd.DataFrame]) -> dict[str, tuple[str, bool]]:
    return (reproduce.orders(tables["stages"]) | _served(tables["served"]) | _split(tables["split"]) | _crossing()
            | hetero.orders(tables["hetero"], tables["stages"]))


def _served(served: pd.DataFrame) -> dict[str, tuple[str, bool]]:
    """Return the claims about figure 13, from whole runs."""
    table = served.set_index(["rate", "system"])
    low, high = served["rate"].min(), served["rate"].max()

    def both(column: str, rate: int) -> tuple[str, float, float]:
        ours, other = table.loc[(rate, reproduce.FULL), column], table.loc[(rate, "2xGPU"), column]
        return f"{rate} /s: {1e3 * ours:.1f} and {1e3 * other:.1f} ms", ours, other

    median, tails = [both("tbt_p50_s", r) for r in (low, high)], [both("tbt_p90_s", r) for r in (low, high)]
    first = table.xs(high, level="rate")["t2ft_p90_s"]
    return {
        "fig. 13: median TBT of Duplex+PE+ET is below 2xGPU's at every rate": (
            "; ".join(text for text, *_ in median), all(a < b for _, a, b in median)),
        "fig. 13: its p90 TBT is below at low rates, above at high ones": (
            "; ".join(text for text, *_ in tails), tails[0][1] < tails[0][2] and tails[1][1] > tails[1][2]),
        "fig. 13: T2FT of GPU skyrockets at rates that Duplex serves": (
            f"p90 at {high} /s: {first['GPU']:.1f} and {first[reproduce.FULL]:.2f} s",
            bool(first["GPU"] > 10 * first[reproduce.FULL]))}


def _split(split: pd.DataFrame) -> dict[str, tuple[str, bool]]:
    """Return the claims about figure 16, from whole runs."""
    together, apart = (split.set_index("system").loc[name] for name in (reproduce.FULL, "Duplex-Split"))
    tails = [f"p{p} {1e3 * apart[f'tbt_p{p}_s']:.1f} and {1e3 * together[f'tbt_p{p}_s']:.1f} ms" for p in (90, 99)]
    return {
        "fig. 16: prompts and answers on different devices: better tail TBT": (
            ", ".join(tails), all(apart[f"tbt_p{p}_s"] < together[f"tbt_p{p}_s"] for p in (90, 99))),
        "fig. 16: and lower throughput": (f"{apart['tok_per_s'] / together['tok_per_s']:.2f} of Duplex+PE+ET's",
                                          bool(apart["tok_per_s"] < together["tok_per_s"]))}


def _crossing() -> dict[str, tuple[str, bool]]:
    table = sizes.edap()
    here = [op for op in sizes.OPS if table.loc["Bank-PIM", op] > table.loc["Logic-PIM", op]]
    return {"fig. 8: between 4 and 8 operations per byte Logic-PIM becomes better than Bank-PIM": (
        f"better from {here[0]} on", here[0] == 8)}


def claims(tables: dict[str, pd.DataFrame]) -> str:
    """Return the claims without a number."""
    return markdown(["claim", "here", "held"], [[what, found, "yes" if held else "**no**"]
                                                for what, (found, held) in _claims(tables).items()])


def identities() -> str:
    """Return what needs no stage."""
    return markdown(["where", "what", "published", "here", "tolerance", "held"], [
        [i.where, i.what, f"{i.published:g}", f"{i.ours:.4g}", f"{i.tolerance:g}",
         "yes" if abs(i.ours - i.published) <= i.tolerance else "**no**"] for i in sizes.identities()])


def fitted(stages: pd.DataFrame, latency_s: float) -> str:
    """Return what fitting the latency changes."""
    found = reproduce.compared(stages, latency_s)
    ratios = found.loc[found["relative"], "error"]
    preset = reproduce.compared(stages, PRESET_S)
    off = preset.loc[preset["relative"], "error"]
    return (f"A hop of {latency_s * 1e6:.2f} us instead of 3 brings the ratios to {ratios.min():+.1%} to "
            f"{ratios.max():+.1%} (mean {ratios.mean():+.1%}). The latency is what matters most: with the 0.8 us that "
            f"the released simulator's H100 preset has, the ratios would be {off.min():+.1%} to {off.max():+.1%} off "
            f"(mean {off.mean():+.1%}), and {int(preset['held'].sum())} of {len(preset)} numbers met.\n\n"
            f"{figures_table(stages, latency_s)}")


def edap() -> str:
    """Return energy x delay x area beside the published numbers."""
    table = sizes.edap()
    rows = [[f"{name}, {what}", *(f"{v:.2f}" for v in values)] for name in sizes.PIMS
            for what, values in (("published", sizes.PUBLISHED[name]), ("here", table.loc[name]))]
    text = markdown(["operations per byte", *(str(op) for op in sizes.OPS)], rows)
    return (f"{text}\n\nEach column over its largest, at peak rates. The order and where it turns are found, the "
            "values are not: the area of processors on DRAM dies is derived here (ten times as large as on the logic "
            "die), and comes out larger than the published ratios imply.")


def _over(table: pd.DataFrame) -> pd.DataFrame:
    found = table.pivot_table(index=["case", "batch"], columns="system", values="tok_per_s", sort=False)
    return found.div(found["GPU"], axis=0)


def elsewhere(table: pd.DataFrame) -> str:
    """Return throughput over the GPU's of all cases, and energy below it."""
    over = _over(table)
    joules = table.pivot_table(index=["case", "batch"], columns="system", values="j_per_tok", sort=False)
    saved = 1 - joules[reproduce.FULL] / joules["GPU"]
    rows = [[case, str(batch), *(f"{over.loc[(case, batch), s]:.2f}" for s in beyond.COMPARED[1:]),
             f"{over.loc[(case, batch), reproduce.FULL] / over.loc[(case, batch), 'Duplex']:.2f}",
             f"{saved.loc[(case, batch)]:.0%}"] for case, batch in over.index]
    return markdown(["case", "batch", *(f"{s} / GPU" for s in beyond.COMPARED[1:]), "+PE+ET / Duplex",
                     "energy below GPU"], rows)


def designs(table: pd.DataFrame) -> str:
    """Return what the map of designs shows."""
    found = []
    for model in beyond.DESIGNED:
        some = table[table["model"] == model].set_index(["bandwidth", "op_per_byte", "cap_w"])["tok_per_j"]
        over = some / some.loc[(0, 0, 0)]
        cap = max(c for c in beyond.CAPS if c)
        flat = over.xs(cap, level="cap_w")
        found.append(f"* {model}: Duplex's 4x and 8 FLOP/B give {over.loc[(4, 8, 0)]:.2f} times the GPU's tokens per "
                     f"joule, the largest design {over.loc[(16, 16, 0)]:.2f}. Within {cap} W no design gives more than "
                     f"{flat.max():.2f}; 4x with 8 FLOP/B gives {flat.loc[(4, 8)]:.2f}.")
    return "\n".join(found)
