"""What the page says of misses in the engine, from the tables of curves and of runs."""

from __future__ import annotations

import engine
import numpy as np
import pandas as pd

from moesim.page import markdown

NAMES = {"mixtral-8x7b": "Mixtral-8x7B", "deepseek-v2-lite": "DeepSeek-V2-Lite",
         "reference-moe-scaled": "32 experts, top-2, captured"}
AT = 0.25


def answer(curves: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Return the answer, the table at one share of experts that fit, and what does not agree with what is published."""
    return "\n\n".join([_found(curves), _table(curves), _why(runs.set_index("run"))])


def _found(curves: pd.DataFrame) -> str:
    wide = curves.pivot(index=["model", "batch", "share"], columns="way", values="tokens_per_s")
    host = wide["host"]
    copied = wide.drop(columns=["host", "cheapest", "defer"]).max(axis=1)
    over, best = host / wide["fetch"], (host / copied).min()
    ahead, late = wide["fetch, prefetched"] / wide["fetch"], wide["defer"] / host
    alone, many = (late.xs(batch, level="batch") for batch in (engine.BATCHES[0], engine.BATCHES[-1]))
    same = wide["cheapest"].dropna() / host[wide["cheapest"].notna()]
    if not (np.isclose(same, 1).all() and best > 1):
        raise RuntimeError("what the page says of the host is not so any more; write it again")
    return (
        f"**Work for the host, if it has a processor with memory of some hundred GB/s.** It decodes {over.min():.1f} "
        f"to {over.max():.0f} times as fast as fetching (LRU), at least {best:.1f} times as fast as any way that "
        f"copies, and no answer changes. *Cheapest* (Fiddler's rule), run with sixteen requests, finds the same: no "
        f"copy is worth it (with fewer the host needs even less). "
        f"*Prefetching* one layer ahead makes {ahead.min():.2f} to {ahead.max():.2f} times the speed of "
        f"fetching: the link has no time left to use, and wrong guesses take some. *Deferring* gives "
        f"{alone.min():.2f} to {alone.max():.2f} times the host's speed to one request, {many.min():.2f} to "
        f"{many.max():.2f} times to sixteen: an expert that some tokens want now and others later is read twice. "
        f"Without such a host, fewer copies come only with other answers. Speeds mean nothing without the share in "
        f"brackets: choices that are swapped, skipped, late or in few bits; what that costs in quality is not known "
        f"here.")


def _table(curves: pd.DataFrame) -> str:
    some = curves[np.isclose(curves["share"], AT) & (curves["way"] != "cheapest")]
    ways = list(dict.fromkeys(some["way"]))
    rows = []
    for (model, batch), group in some.groupby(["model", "batch"], sort=False):
        at = group.set_index("way")
        rows.append([NAMES[model], batch, *(f"{at.loc[w, 'tokens_per_s']:.3g}" + (
            "" if w in engine.EXACT else f" ({100 * at.loc[w, 'changed']:.0f})") for w in ways)])
    return (f"Decoded tokens/s with room for {AT:.0%} of the experts; in brackets choices answered otherwise, %:\n\n"
            + markdown(["model", "requests", *ways], rows, 1))


def _why(at: pd.DataFrame) -> str:
    t4, v3 = at.loc["T4, LRU"], at.loc["V3, host"]
    switch, lite = at.loc["Switch, pre-gated"], at.loc["A5000, Lite"]
    return (
        f"Held against single systems (below), the engine is right where link or memory decide, and wrong where the "
        f"software does: its kernels are at their roofline and nothing starts late. On the T4 copies take "
        f"{t4['fetch_share']:.0%} of the engine's time; Mixtral-offloading's own speeds imply under half. So LRU gains "
        f"more here than there, and prefetching, which hides copies behind the rest, nothing; with kernels and copies "
        f"as slow as two of its speeds say, its gain is right. HOBBIT's kernels are fast, and it finds no gain either. "
        f"Pre-gated MoE hides a copy behind a block that takes as long: at the roofline {switch['fetch_share']:.0%} of "
        f"the time is waiting all the same. MoE-Infinity's DeepSeek-V2-Lite waits "
        f"{lite['fetch_share'] * lite['step_s'] * 1e3:.0f} ms for copies, of 155 ms per token that are published; "
        f"KTransformers' processors do not reach all of their memories' bandwidth ({v3['tokens_per_s']:.1f} tokens/s "
        f"here). Not in the engine: MoE-Infinity's policy (it needs whole requests; *static* instead), whole layers "
        f"that naive offloading copies (1.77 times: [arithmetic](#mixtral-offloading-moe-infinity-is-it-the-link)), "
        f"HOBBIT's thresholds (not published: three are tried), the machine of Fiddler's 8.2 times.")
