"""The numbers of the README, from the tables of this study."""

from __future__ import annotations

import beyond
import figures
import pandas as pd
from lookup import THREE, mean_at, mean_of, one, span, those, three
from models import RANGES_S
from setting import MODELS, NOISE, OPERATORS, noise

from moesim.page import markdown

Tables = dict[str, pd.DataFrame]
FEWEST = 30  # rows of which an error is told


def numbers(tables: Tables) -> str:
    """Return everything between the markers of the README."""
    parts = [answer(tables),
             "![Error of every model](figures/models.png)", "### Shapes that were not fitted",
             everything(tables["models"]), by_time(tables["models"]),
             "### What separates two collections of one table", floors(),
             "### Beyond what was fitted", "![Tile against residual](figures/beyond.png)", far(tables),
             "### A MoE model left out", left_out(tables["beyond"]),
             "### Skewed routing, fitted on balanced routing only", skewed(tables["beyond"]),
             "### Larger shapes", larger(tables["beyond"]), "![Anchors](figures/anchors.png)",
             anchored(tables["learning"]),
             "### Another version of the engine", version(tables["beyond"]),
             "### How many points", "![Learning curve](figures/learning.png)", learned(tables["learning"]),
             "### Speed", speed(tables["speed"])]
    return "\n\n".join(part for part in parts if part)


def answer(tables: Tables) -> str:
    """Return the answer, before everything else."""
    by = tables["models"][tables["models"]["part"] == "all"].set_index(["model", "op"])["median"]
    table, curve = tables["beyond"], tables["learning"]
    left = mean_of(table, case="model left out", part="all six", model="residual", start="stranger")
    true, blind = (one(table, case=f"skewed routing, {c}", part="any", model="residual") for c in
                   ("true loads", "assumed balanced"))
    large = curve[(curve["what"] == "anchors") & (curve["op"] == "moe") & (curve["model"] == "residual")]
    large = large.groupby("points")["median"].mean()
    few = {model: mean_at(curve, model, 125) for model in ("tile", "residual")}
    most = {model: mean_at(curve, model, 0) for model in ("tile", "residual")}
    return (
        f"**Which model.** On shapes like those that were fitted, the roofline is {span(by['roofline'], 0)} % wrong "
        f"(median, by operator), the tile model with its seven or eight constants {span(by['tile'])} %, "
        f"interpolating the measured table {span(by['table'])} %, the tile model with a learned residual "
        f"{span(by['residual'])} %. The last is as close as two collections of the same shapes are to each other, or "
        f"closer: less error than that would say nothing of another machine. Use `residual` where you measured, "
        f"`tile` where you did not, and `roofline` only as a bound.\n\n"
        f"**How far.** The residual is worth most near measured shapes. MoE models left out entirely are predicted "
        f"{left['median']:.1f} % off. Skewed routing needs no measurement of its own if the tokens of each expert are "
        f"known: fitted on balanced routing it is {true['median']:.1f} % off, {blind['median']:.1f} % if it must "
        f"assume that the load is balanced.\n\n"
        f"**Which measurements.** Extremes. From 300 points of small expert layers, large ones are "
        f"{large[0]:.0f} % off; {beyond.ANCHORS} large ones beside them make it {large[beyond.ANCHORS]:.1f} %.\n\n"
        f"**How many.** 125 points per operator bring the tile model to {span(few['tile'])} %, and all there are only "
        f"to {span(most['tile'])} %. The residual is at {span(few['residual'])} % with 125 and at "
        f"{span(most['residual'])} % with all: it goes on learning.")


def everything(table: pd.DataFrame) -> str:
    """Return the error of every model on every operator."""
    rows = []
    for op, known in OPERATORS.items():
        for part in ("all", *(("one device", "several devices") if op == "moe" else ())):
            some = table[(table["op"] == op) & (table["part"] == part)]
            cells = [three(one(some, model=model)) for model in MODELS]
            last = one(some, model="residual")
            rows.append([known.words + ("" if part == "all" else f", {part}"), *cells, f"{last['bias']:+.1f}",
                         f"{last['fitted']:,} / {last['rows']:,}", f"{noise(op)[0]:g} to {noise(op)[1]:g}"])
    text = markdown([THREE, *(f"`{m}`" for m in MODELS), "bias of `residual`",
                     "rows fitted / tested", "noise floor, median"], rows)
    return (f"{text}\n\nFitted on 65 % of the shapes by a hash, tested on the rest. *Bias*: median of predicted / "
            f"measured - 1. *Devices* that share the experts. {inside(table)}")


def inside(table: pd.DataFrame) -> str:
    """Return how many of the tested rows are in the measured domain."""
    least = table[(table["model"] == "residual") & (table["part"] == "all")]["inside"].min()
    return f"At least {100 * least:.1f} % of the tested rows lie in what the residual calls its measured domain."


def by_time(table: pd.DataFrame) -> str:
    """Return the error by measured time."""
    rows = []
    for op, known in OPERATORS.items():
        for model in ("tile", "residual"):
            some = table[(table["op"] == op) & (table["model"] == model)].set_index("part")
            cells = [three(some.loc[p]) if p in some.index and some.loc[p]["rows"] >= FEWEST else "-" for p in RANGES_S]
            rows.append([f"{known.words}, `{model}`", *cells])
    return markdown(["by measured time", *RANGES_S], rows)


def floors() -> str:
    """Return the differences of pairs of collections."""
    rows = [[known.words, pair.words, f"{pair.median:g} / {pair.mean:g} / {pair.p90:g}"]
            for op, known in OPERATORS.items() for pair in NOISE[op]]
    return markdown(["", "collections (bf16, H200, kernels of one family)", "median / mean / 90th percentile, %"], rows)


def far(tables: Tables) -> str:
    """Return the error by distance from what was fitted."""
    cases, rows = figures.cases(tables), []
    for label, *_ in figures.CASES:
        for model in ("tile", "residual"):
            some = cases[(cases["label"] == label) & (cases["model"] == model)].set_index("op")
            rows.append([f"{label}, `{model}`", *(three(some.loc[op]) if op in some.index else "-"
                                                  for op in OPERATORS)])
    small = "; ".join(f"{known.words}: {known.small}" for known in OPERATORS.values())
    text = markdown([THREE, *(known.words for known in OPERATORS.values())], rows)
    return (f"{text}\n\n*Left out*: six MoE models one by one; of GEMM, "
            f"a fifth of all weights (n, k), of attention, a fifth of all kinds of heads, five times. "
            f"*Small* is: {small}. *Larger* is tested on everything else.")


def left_out(table: pd.DataFrame) -> str:
    """Return the error of each MoE model that was left out."""
    some, rows = table[table["case"] == "model left out"], []
    for part in (*beyond.LEFT_OUT.values(), "all six"):
        by = {model: mean_of(some, part=part, model=model, start="stranger") for model in MODELS}
        shipped = mean_of(some, part=part, model="residual", start="shipped")
        last = by["residual"]
        rows.append([part, f"{last['rows']:,.0f}", *(three(row) for row in by.values()), f"{last['bias']:+.1f}",
                     f"{last['inside']:.0%}", three(shipped)])
    seeds = those(some, part="all six", model="residual", start="stranger")["median"]
    text = markdown([f"never seen ({THREE})", "rows", *(f"`{m}`" for m in MODELS), "bias of `residual`",
                     "in its domain", "`residual`, began with the constants that ship"], rows)
    return (f"{text}\n\nMean of {len(seeds)} seeds, whose medians of all six are {span(seeds, 2)} %. The last column "
            f"knows too much: the constants that ship were fitted to rows of these models too.")


def skewed(table: pd.DataFrame) -> str:
    """Return the error on power-law routing with true loads and with assumed ones."""
    rows = []
    for part in ("one device", "any"):
        for model in ("tile", "residual"):
            true, blind = (one(table, case=f"skewed routing, {c}", part=part, model=model)
                           for c in ("true loads", "assumed balanced"))
            words = "any number of devices" if part == "any" else part
            ratio = " / ".join(f"{true[c] / blind[c]:.2f}" for c in ("median", "mean"))
            rows.append([f"{words}, `{model}`", f"{true['rows']:,}", three(true), three(blind), ratio])
    return markdown([THREE, "rows", "tokens of each expert known", "assumed balanced", "known / assumed"], rows)


def larger(table: pd.DataFrame) -> str:
    """Return the error on larger shapes, also for a search that began with the constants that ship."""
    some, rows = table[table["case"] == "larger shapes"], []
    for op, known in OPERATORS.items():
        for part in ("all small", "300 small"):
            for model in ("tile", "residual", "table"):
                none, shipped, anchors = (one(some, op=op, part=part, model=model, start=start, anchors=count)
                                          for start, count in (("stranger", 0), ("shipped", 0),
                                                               ("stranger", beyond.ANCHORS)))
                rows.append([f"{known.words}, {part}, `{model}`", three(none), f"{none['inside']:.0%}", three(shipped),
                             three(anchors), f"{anchors['inside']:.0%}"])
    text = markdown([THREE, "no anchor", "in domain", "no anchor, began with the constants that ship",
                     f"{beyond.ANCHORS} anchors", "in domain"], rows)
    return (f"{text}\n\nThe constants that ship were fitted to these tables, large shapes included: a search that "
            f"begins with them looks better than it is. All other fits beyond the random split begin with constants "
            f"that are off by random factors (typically e). *In domain*: the share of tested rows that the "
            f"residual calls measured; results warn of the others.")


def anchored(curve: pd.DataFrame) -> str:
    """Return the error of larger shapes by number of anchors."""
    some = curve[curve["what"] == "anchors"].groupby(["op", "model", "points"])["median"].mean()
    counts = sorted(curve[curve["what"] == "anchors"]["points"].unique())
    rows = [[f"{known.words}, `{model}`", *(f"{some[op, model, n]:.1f}" for n in counts)]
            for op, known in OPERATORS.items() for model in ("tile", "residual")]
    return markdown(["median error of larger shapes, %; anchors:", *map(str, counts)], rows)


def version(table: pd.DataFrame) -> str:
    """Return the error on an older collection; empty if that was not there."""
    some = table[table["case"] == "another version"]
    if some.empty:
        return ""
    rows = [[OPERATORS[op].words, f"{one(some, op=op, model='tile')['rows']:,}",
             *(f"{three(one(some, op=op, model=m))} ({one(some, op=op, model=m)['bias']:+.1f})"
               for m in ("tile", "residual", "measured_again"))] for op in OPERATORS if (some["op"] == op).any()]
    text = markdown(["vLLM 0.18, heads 64 wide, above 50 us", "rows", "`tile` (bias)", "`residual` (bias)",
                     "vLLM 0.24 as measured (bias)"], rows)
    return (f"{text}\n\nThe residual, which learned vLLM 0.24, is as far from vLLM 0.18 as the measurements of 0.24 "
            f"themselves: it has learned that engine's habits with everything else, and no fit can be nearer. 0.18 was "
            f"timed without the kernel that writes the cache, which is part of the bias.")


def learned(curve: pd.DataFrame) -> str:
    """Return the error by number of points, at random and with corners."""
    rows, counts = [], [n for n in sorted(curve[curve["what"] == "extremes"]["points"].unique())]
    for op, known in OPERATORS.items():
        for model in ("tile", "residual"):
            cells = []
            for n in counts:
                some = curve[(curve["op"] == op) & (curve["model"] == model) & (curve["points"] == n)]
                random, corner = (some[(some["what"] == what) & (some["tested"] == "all")]["median"].mean()
                                  for what in ("random", "extremes"))
                cells.append(f"{random:.1f} / {corner:.1f}")
            rows.append([f"{known.words}, `{model}`", *cells, f"{mean_at(curve, model, 0)[op]:.1f}"])
    text = markdown(["median error, %, at random / a fifth corners; points:", *map(str, counts), "all"], rows)
    gain, cost = 100 * (1 - figures.doubling(curve)), curve[curve["points"] == 250]["kernel_s"]
    return (f"{text}\n\nFrom 125 points on, twice as many take {span(gain, 0)} % off the residual's median error. "
            f"Kernels are not what measuring costs: one call of each of 250 points takes {span(cost, 2)} s.")


def speed(table: pd.DataFrame) -> str:
    """Return seconds of fitting and predicting."""
    rows = [[known.words, *(f"{one(table, op=op, model=m)['fit_s']:.1f} / {one(table, op=op, model=m)['predict_s']:.3f}"
                            for m in MODELS)] for op, known in OPERATORS.items()]
    return markdown(["seconds to fit and judge / to predict 100,000 rows", *(f"`{m}`" for m in MODELS)], rows)
