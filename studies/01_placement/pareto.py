"""Stage pareto: what crosses, how far tokens spread and how even the load is, for 4 to 64 devices and all solvers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pareto_figures
from pareto_figures import BESIDE, DEFAULT, KINDS, kept, worth
from setting import AFFINITY, FANOUT, QUICK, SOURCES, Half, half, measured, span

from moesim.page import markdown
from moesim.placement import PlacementError, solve
from moesim.trace import RoutingTrace

DEVICES = (4, 8, 16, 32, 64)
BALANCES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)        # of joint: what load max/mean is worth against crossing
FANOUT_BALANCES = (0.0, 0.3, 0.8, 3.0)            # of coactivation: the same against devices per token
MOETUNER_TIME = "8 s"                             # its second program reaches any limit with more than 4 devices


def points(n_devices: int) -> dict[str, Any]:
    """Return the solvers that are no curve, by the name that they have in the table."""
    return {"linear": "linear", "lpt": "lpt", "eplb": "eplb", "eplb +D": {"name": "eplb", "redundant": n_devices},
            "affinity": AFFINITY, "affinity all": AFFINITY | {"pairs": "all"},
            "moetuner": {"name": "moetuner", "time_limit": MOETUNER_TIME}}


def curves(n_devices: int, n_experts: int) -> Iterator[tuple[str, str, float, Any]]:
    """Yield (line, name, balance, solver). With one expert per device load is what it is, and so is fan-out."""
    free = n_devices < n_experts
    for line in ("top1", "all"):
        for balance in BALANCES if free else BALANCES[:1]:
            yield line, "joint", balance, QUICK | {"pairs": line, "balance": balance}
    for balance in FANOUT_BALANCES if free else ():
        yield "fanout", "coactivation", balance, FANOUT | {"balance": balance}


def rows(traces: dict[str, RoutingTrace]) -> pd.DataFrame:
    """Return one row per trace, number of devices and placement: ``setting.measured``, and solver, line, balance.

    More devices than experts are left out, and moetuner where its program is too large.
    """
    found: list[dict[str, Any]] = []
    for name, trace in traces.items():
        halves = half(trace)
        for n_devices in (d for d in DEVICES if d <= trace.n_experts):
            key = {"trace": name, "devices": n_devices, "experts": trace.n_experts}
            for solver, given in points(n_devices).items():
                found += [key | {"line": "", "solver": solver, "balance": 0.0} | row
                          for row in _row(halves, n_devices, given)]
            for line, solver, balance, given in curves(n_devices, trace.n_experts):
                found += [key | {"line": line, "solver": solver, "balance": balance} | row
                          for row in _row(halves, n_devices, given)]
    return pd.DataFrame(found)


def _row(halves: Half, n_devices: int, solver: Any) -> list[dict[str, Any]]:
    """Return the row of a solver, none where moetuner says that its program is too large."""
    try:
        placement = solve(halves.sums, n_devices, solver)
    except PlacementError:
        if not isinstance(solver, dict) or solver["name"] != "moetuner":
            raise
        return []
    return [measured(placement, halves)]


def figures(table: pd.DataFrame) -> dict[str, Any]:
    """Return the figures by name."""
    return pareto_figures.figures(table)


def answer(table: pd.DataFrame) -> str:
    """Return the answers of this stage: what balance costs, and what a placement is worth under both meanings."""
    top1, of_pairs, fanout = (kept(table, column) for column in KINDS)
    best = worth(table)
    return (f"**Balance is cheap.** Blind to load, {span(top1['saved'], '.0%')} fewer first choices change device than "
            f"with `linear` (4 devices to fewer than experts), at up to {top1['blind_load'].max():.1f} times the mean "
            f"load; `joint` keeps {span(top1['kept'], '.0%')} of that at a load at most "
            f"{(top1['load'] / top1['lpt_load'] - 1).max():.0%} above that of `lpt`. Of all pairs there is less to "
            f"save ({span(of_pairs['saved'], '.0%')}), of devices per token {span(fanout['saved'], '.0%')}.\n"
            f"* **Both meanings, {BESIDE} devices.** Copies sent per token, with load in mind, fewer than with "
            f"`linear`: placed by transitions of all pairs {span(best['all_home'], '.0%')} under `dispatch_combine` "
            f"and {span(best['all_stay'], '.0%')} under `context_coherent`; by fan-out "
            f"{span(best['fanout_home'], '.0%')} and {span(best['fanout_stay'], '.0%')}; by first choices, ExFlow's "
            f"objective, {span(best['top1_home'], '.0%')} and {span(best['top1_stay'], '.0%')}. With more than one "
            "expert per token the other experts' copies remain, so first choices promise more than they save. "
            f"Staying alone saves {span(best['stay'], '.0%')} of the copies.")


def text(table: pd.DataFrame) -> str:
    """Return figures and tables for the README."""
    table = table.assign(line=table["line"].fillna(""))
    figure = "![{}](figures/{}.png)".format
    return "\n\n".join([
        figure("First choices against load", "crossing"), figure("All pairs against load", "crossing_all"),
        figure("Fan-out against load", "fanout"),
        f"With {BESIDE} devices, on the other half of the requests (all of it: `pareto.csv`):", _table(table),
        "### Both meanings of expert parallelism side by side", figure("Both meanings", "modes"),
        "Share of the copies of `linear` that a placement saves, at the solvers' default balance:", _worth(table)])


def _table(table: pd.DataFrame) -> str:
    some = table[(table["devices"] == BESIDE)]
    wanted = [("", name, 0.0, name) for name in points(BESIDE)]
    wanted += [(line, "joint" if line != "fanout" else "coactivation", balance,
                {"top1": "joint, first choices", "all": "joint, all pairs", "fanout": "coactivation"}[line])
               for line, balance in DEFAULT.items()]
    rows = []
    for name in (n for n in SOURCES if n in set(some["trace"])):
        for line, solver, balance, words in wanted:
            found = some[(some["trace"] == name) & (some["line"] == line) & (some["solver"] == solver)
                         & (some["balance"] == balance)]
            rows += [[name, words.replace("+D", f"+{BESIDE}"), f"{100 * row.cross_top1:.1f}",
                      f"{100 * row.cross_all:.1f}", f"{row.fanout:.2f}", f"{row.load_max_over_mean:.2f}",
                      f"{row.copies_home:.2f}", f"{row.copies_stay:.2f}"] for row in found.itertuples()]
    header = ["trace", "placement", "cross top-1 (%)", "cross all (%)", "fan-out", "load max/mean",
              "copies, dispatch_combine", "copies, context_coherent"]
    return markdown(header, rows, 2)


def _worth(table: pd.DataFrame) -> str:
    rows = [[row.trace, f"{row.stay:.0%}", *(f"{getattr(row, f'{line}_{mode}'):.0%}" for line in DEFAULT
                                             for mode in ("home", "stay"))] for row in worth(table).itertuples()]
    names = {"top1": "first choices", "all": "all pairs", "fanout": "fan-out"}
    return markdown(["trace", "staying, with linear", *(f"{names[line]}: {mode}" for line in DEFAULT
                                                        for mode in ("dispatch_combine", "context_coherent"))], rows)
