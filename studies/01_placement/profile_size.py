"""Stage profile: how much must be profiled before a placement is as good on other requests as it gets?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from setting import AFFINITY, QUICK, SOURCES, half, only, span, titled

from moesim import plots
from moesim.page import markdown
from moesim.placement import Profile, evaluate, solve
from moesim.plots import _style as style
from moesim.trace import RoutingTrace

DEVICES = 8
TOKENS = (30, 100, 300, 1000, 3000, 10_000)
DRAWS = 3
ENOUGH = 0.9  # share of the gain over linear with the whole profile
SOLVERS: dict[str, Any] = {"affinity": AFFINITY | {"perturbations": 300}, "joint": QUICK, "lpt": "lpt"}
SHOWN = (("affinity", "cross_top1", "first choices that change device (%)"),
         ("lpt", "load_max_over_mean", "load imbalance, busiest device / mean"))
WAYS = {"requests": (style.BLUE, "whole requests, one after the other"),
        "tokens": (style.VERMILION, "tokens of all requests")}


def drawn(trace: RoutingTrace, way: str, tokens: int, seed: int) -> RoutingTrace:
    """Return *tokens* tokens of *trace*: of whole requests in an order drawn by *seed* (the last is cut short), or
    drawn from the tokens of all."""
    rng = np.random.default_rng(seed)
    if way == "tokens":
        return trace.select(np.sort(rng.permutation(trace.n_tokens)[:tokens]))
    rank = np.argsort(rng.permutation(len(trace.requests)))
    request = np.unique(trace.tokens["request"].to_numpy(), return_inverse=True)[1]
    return trace.select(np.argsort(rank[request], kind="stable")[:tokens])


def rows(traces: dict[str, RoutingTrace]) -> pd.DataFrame:
    """Return one row per trace, way of drawing, number of tokens, draw and solver, judged on the evaluation half."""
    found: list[dict[str, Any]] = []
    for name, trace in traces.items():
        halves = half(trace)
        whole = halves.profile
        samples = [(way, seed, drawn(whole, way, tokens, seed)) for way in WAYS
                   for tokens in TOKENS if tokens < whole.n_tokens for seed in range(DRAWS)]
        for way, seed, part in [*samples, ("all", 0, whole)]:
            sums = Profile.of(part)
            for solver, given in (SOLVERS | ({"linear": "linear"} if way == "all" else {})).items():
                values = evaluate(solve(sums, DEVICES, given), halves.evaluation)
                found.append({"trace": name, "devices": DEVICES, "solver": solver, "way": way, "draw": seed,
                              "tokens": part.n_tokens, "requests": len(part.requests)} | values.to_dict())
    return pd.DataFrame(found)


def share(table: pd.DataFrame, trace: str, way: str, solver: str, column: str) -> pd.Series:
    """Return, by tokens, the mean share of the gain over linear with the whole profile that fewer tokens have."""
    whole, linear = (only(table, trace=trace, way="all", solver=s)[column].iloc[0] for s in (solver, "linear"))
    some = only(table, trace=trace, way=way, solver=solver).groupby("tokens")[column].mean()
    return (linear - some) / (linear - whole)


def enough(table: pd.DataFrame, trace: str, way: str, solver: str, column: str) -> int:
    """Return the fewest tokens with *ENOUGH* of the gain; those of the whole profile if no sample has it."""
    found = share(table, trace, way, solver, column)
    good = [int(tokens) for tokens, value in found.items() if value >= ENOUGH]
    return min(good) if good else int(only(table, trace=trace, way="all")["tokens"].iloc[0])


def figures(table: pd.DataFrame) -> dict[str, Any]:
    """Return the figure: what crosses and load against the tokens profiled, a column per trace."""
    present = [name for name in SOURCES if name in set(table["trace"])]
    figure, axes = plots.figure(columns=len(present), rows=len(SHOWN), size=(4.1 * len(present), 7.4))
    for row, (solver, column, axis) in zip(axes, SHOWN, strict=True):
        for ax, name in zip(row, present, strict=True):
            _lines(ax, table[table["trace"] == name], solver, column)
            style.finish(ax, f"{name}: {solver}", "tokens profiled" if row is axes[-1] else "",
                         axis if ax is row[0] else "")
    for i, (colour, words) in enumerate(WAYS.values()):
        axes[0, 0].text(0.03, 0.16 - 0.08 * i, words, color=colour, fontsize=style.NORMAL, fontweight="bold",
                        transform=axes[0, 0].transAxes)
    note = (f"{DEVICES} devices, judged on the other half of the requests; line: mean of {DRAWS} draws, band: least to "
            "most")
    return {"profile_size": titled(figure, _title(table), note)}


def _lines(ax: Any, some: pd.DataFrame, solver: str, column: str) -> None:
    style.axes(ax)
    percent = 100 if column.startswith("cross") else 1
    for way, (colour, _) in WAYS.items():
        by = (percent * some[(some["solver"] == solver) & (some["way"] == way)].set_index("tokens")[column]).groupby(
            level=0)
        ax.fill_between(by.mean().index, by.min(), by.max(), color=colour, alpha=0.2, lw=0)
        ax.plot(by.mean(), "-o", color=colour, ms=3.5, lw=1.6)
    for words, row, at in (("whole profile", solver, 0), ("linear", "linear", -1)):
        value = percent * float(only(some, way="all", solver=row)[column].iloc[0])
        ax.axhline(value, color=style.GREY, lw=0.9, ls="--")
        ax.annotate(words, (TOKENS[at], value), (0, 2), textcoords="offset points", ha="left" if at == 0 else "right",
                    va="bottom", fontsize=style.SMALL, color=style.GREY)
    ax.set_xscale("log")
    ax.set_xlim(0.8 * TOKENS[0], 1.3 * TOKENS[-1])
    ax.set_ylim(0 if percent == 100 else 1, None)


def _title(table: pd.DataFrame) -> str:
    names = table["trace"].unique()
    need = {(solver, way): [enough(table, n, way, solver, column) for n in names]
            for solver, column, _ in SHOWN for way in WAYS}
    return (f"{ENOUGH:.0%} of the gain needs {tokens(need['affinity', 'requests'])} tokens of whole requests for "
            f"affinity, {tokens(need['lpt', 'requests'])} for balance; of tokens of all requests "
            f"{tokens(need['affinity', 'tokens'])} and {tokens(need['lpt', 'tokens'])}")


def tokens(numbers: list[int]) -> str:
    """Return "least to most" with thousands."""
    return span(numbers, ",d")


def answer(table: pd.DataFrame) -> str:
    """Return the answer of this stage in one sentence."""
    need = {(solver, way): tokens([enough(table, n, way, solver, column) for n in table["trace"].unique()])
            for solver, column, _ in SHOWN for way in WAYS}
    return (f"**How much to profile**: for {ENOUGH:.0%} of the gain affinity needs {need['affinity', 'requests']} "
            f"tokens of whole requests, load balance {need['lpt', 'requests']}; drawn from all requests, "
            f"{need['affinity', 'tokens']} and {need['lpt', 'tokens']} do. What counts is how many requests are seen.")


def text(table: pd.DataFrame) -> str:
    """Return figure and table for the README."""
    lines = []
    for name in table["trace"].unique():
        whole = only(table, trace=name, way="all").iloc[0]
        for solver, column, _ in (*SHOWN, ("joint", "cross_top1", ""), ("joint", "load_max_over_mean", "")):
            for way, (_, words) in WAYS.items():
                found = share(table, name, way, solver, column)
                lines.append([name, f"{solver}, {'crossing' if column == 'cross_top1' else 'load'}", words,
                              *(f"{found[n]:.0%}" if n in found.index else "" for n in TOKENS),
                              f"{whole['tokens']:,d} of {whole['requests']}"])
    header = ["trace", "what", "profiled", *(f"{n:,d} tokens" for n in TOKENS), "whole profile (tokens of requests)"]
    return "\n\n".join(["![Profile size](figures/profile_size.png)",
                        "Share of the gain over `linear` that fewer tokens have (mean of the draws; below 0: worse "
                        "than `linear`):\n\n" + markdown(header, lines, 3)])
