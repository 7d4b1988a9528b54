"""The computed part of the README, from the tables of this study."""

from __future__ import annotations

import links
import miss_page
import numpy as np
import pandas as pd

from moesim.published import as_table, summary

LITE = "deepseek-v2-lite"
QUESTIONS = {"engine": ("Experts do not fit: what should a miss become?", "misses"),  # runs of the engine
             "residency": ("KTransformers: which experts should be on the GPUs?", "residency"),
             "links": ("Mixtral-offloading, MoE-Infinity: is it the link?", "links"),
             "host": ("Fiddler, KTransformers: what if the host computes?", "")}


def text(tables: dict[str, pd.DataFrame]) -> str:
    """Return the whole computed part."""
    rows = tables["published"]
    answers = {"engine": miss_page.answer(tables["engine"], tables["runs"]),
               "residency": _residency(tables["residency"]), "links": _links(tables["sensitivity"]),
               "host": _host(tables["lines"])}
    parts = [summary(rows.to_dict("records"))]
    for question, some in rows.groupby("question", sort=False):
        title, figure = QUESTIONS[question]
        parts += [f"## {title}", answers[question], *([f"![{title}](figures/{figure}.png)"] if figure else []),
                  as_table(some.to_dict("records"))]
    return "\n\n".join(parts)


def _residency(curve: pd.DataFrame) -> str:
    wide = (curve["on_gpu"] - curve["published"]).groupby(curve["policy"], sort=False).agg(lambda d: d.abs().max())
    apart = ", ".join(f"{policy} {100 * d:.0f}" for policy, d in wide.items())
    return ("Those of the request while fewer than 60 % fit, those of the average above. Popularity, spread and what "
            "*dynamic* knows were **calibrated on this table**: that the curves are alike is no prediction. That "
            "*dynamic* falls behind where most experts fit follows: of rarely used ones it has seen nothing. Largest "
            f"distances, in points: {apart}. Ours are uses, theirs times, which stay behind near 100 %: even few uses "
            "on the CPU are waited for.")


def _links(table: pd.DataFrame) -> str:
    by, lite = table.set_index("hits")["tokens_per_s"], links.moe_infinity(LITE)
    chosen = table[table["chosen"]]["hits"].iloc[0]
    span = " and ".join(f"{speed:.2f} at {hits:.0%}" for hits, speed in by.drop(chosen).items())
    return (f"Yes, for experts as large as Mixtral's. From LRU's replayed hits ({chosen:.1%}) and two published "
            "speeds of Mixtral-offloading follow the cost of a copy and of the rest, and from these the two other "
            f"speeds (with prefetching {by[chosen]:.2f} tokens/s; if LRU hit other shares, {span}). MoE-Infinity's "
            "Mixtral takes what its misses take over a PCIe 4.0 of which 80 % is reached (assumed). Its "
            "DeepSeek-V2-Lite does **not**: its experts are small, most are near, and three quarters of its time are "
            f"not copies. No count of hits mends that: if all of its {lite.uses} uses missed, copies would take "
            f"{lite.with_missing(1.0).token_s:.3f} s of the published {links.A5000['MoE-Infinity', LITE]:.3f} s.")


def _host(lines: pd.DataFrame) -> str:
    at = lines[np.isclose(lines["missing"], 0.78)].set_index("miss")["tokens_per_s"]
    return (f"Then the host's memory bounds it instead of the link. With 78 % misses: copies of 50 ms "
            f"{at.iloc[1]:.2f} tokens/s, of PCIe 4.0 {at.iloc[2]:.2f}, the host {at.iloc[3]:.2f} to {at.iloc[4]:.2f}.")
