"""Stage domains: placements fitted on the text of one domain, judged on that of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, to_hex
from setting import AFFINITY, FANOUT, QUICK, SOURCES, span, titled

from moesim import plots
from moesim.page import markdown
from moesim.placement import Profile, evaluate, solve
from moesim.plots import _style as style
from moesim.trace import RoutingTrace

DEVICES = 8
REQUESTS = 10  # fewer requests are no domain: their halves say little of it
ALL = "all"
SOLVERS: dict[str, Any] = {"linear": "linear", "lpt": "lpt", "eplb +D": {"name": "eplb", "redundant": DEVICES},
                           "affinity": AFFINITY, "joint": QUICK, "coactivation": FANOUT}
SHOWN = (("affinity", "cross_top1"), ("lpt", "load_max_over_mean"))
WHAT = {"cross_top1": "first choices that change device (%)", "load_max_over_mean": "load max/mean",
        "fanout": "devices per token and layer"}
COLOURS = LinearSegmentedColormap.from_list("kept", [style.ORANGE, "white", style.BLUE])


def rows(traces: dict[str, RoutingTrace]) -> pd.DataFrame:
    """Return one row per trace, solver and pair of domains: fitted on one half of the first, judged on the other half
    of the second. Domain ``all``: the halves of all together."""
    found: list[dict[str, Any]] = []
    for name, trace in traces.items():
        parts = {d: trace.of_domain(d) for d in trace.domains()}
        parts = {d: part for d, part in parts.items() if len(part.requests) >= REQUESTS}
        seen = {d: part.profile() for d, part in parts.items()}
        unseen = {d: part.evaluation() for d, part in parts.items()}
        both = [np.concatenate([part.requests for part in half.values()]) for half in (seen, unseen)]
        seen[ALL], unseen[ALL] = (trace.of_requests(ids) for ids in both)
        for fitted, profile in seen.items():
            sums = Profile.of(profile)
            for solver, given in SOLVERS.items():
                placement = solve(sums, DEVICES, given)
                for judged, part in unseen.items():
                    values = evaluate(placement, part)
                    found.append({"trace": name, "devices": DEVICES, "solver": solver, "fitted": fitted,
                                  "judged": judged, "fitted_tokens": profile.n_tokens} | values.to_dict())
    return pd.DataFrame(found)


def matrix(table: pd.DataFrame, trace: str, solver: str, column: str) -> pd.DataFrame:
    """Return *column* by the domain that *solver* was fitted on (rows) and judged on (columns), ``all`` last."""
    some = table[(table["trace"] == trace) & (table["solver"] == solver)]
    wide = some.pivot(index="fitted", columns="judged", values=column)
    names = [*(n for n in wide.index if n != ALL), ALL]
    return wide.loc[names, names]


def kept(table: pd.DataFrame, trace: str, solver: str, column: str) -> pd.DataFrame:
    """Return which share of the gain over linear that a fit on the same domain has a fit on another has; 1 on the
    diagonal, below 0 where it is worse than linear."""
    found, linear = matrix(table, trace, solver, column), matrix(table, trace, "linear", column)
    own = np.diag(found.to_numpy())
    return (linear - found) / (np.diag(linear.to_numpy()) - own)


def others(share: pd.DataFrame) -> np.ndarray:
    """Return the values off the diagonal, without the row and column ``all``."""
    inner = share.drop(index=ALL, columns=ALL).to_numpy()
    return inner[~np.eye(len(inner), dtype=bool)]


def figures(table: pd.DataFrame) -> dict[str, Any]:
    """Return the figure: matrices of what crosses and of load, a column per trace."""
    present = [name for name in SOURCES if name in set(table["trace"])]
    figure, axes = plots.figure(columns=len(present), rows=2, size=(4.2 * len(present), 7.6))
    for row, (solver, column) in zip(axes, SHOWN, strict=True):
        for ax, name in zip(row, present, strict=True):
            _cells(ax, matrix(table, name, solver, column), kept(table, name, solver, column), column)
            style.finish(ax, f"{name}: {solver}", WHAT[column] + ", judged on", "fitted on" if ax is row[0] else "")
    note = (f"{DEVICES} devices; other requests than those that solvers saw. Colour: blue keeps what a fit on the same "
            "domain gains over linear, white keeps none, orange is worse than linear.")
    return {"domains": titled(figure, _title(table), note)}


def _cells(ax: Any, found: pd.DataFrame, share: pd.DataFrame, column: str) -> None:
    style.axes(ax)
    ax.imshow(share, cmap=COLOURS, vmin=-1, vmax=1, aspect="auto")
    form = "{:.0f}" if column == "cross_top1" else "{:.2f}"
    for (i, j), value in np.ndenumerate(found.to_numpy() * (100 if column == "cross_top1" else 1)):
        colour = style.on(to_hex(COLOURS(float(np.clip(share.to_numpy()[i, j], -1, 1) + 1) / 2)))
        ax.text(j, i, form.format(value), ha="center", va="center", fontsize=style.NORMAL, color=colour)
    names = [short(n) for n in found.index]
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=style.SMALL)
    ax.set_yticks(range(len(names)), names, fontsize=style.SMALL)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def short(name: str) -> str:
    """Return *name* of a domain without the endings that say which part of a data set it is."""
    for ending in ("_test", "_main", "_base"):
        name = name.removesuffix(ending)
    return name.replace("_", " ")


def transfer(table: pd.DataFrame) -> pd.DataFrame:
    """Return, per trace and shown solver, what of the own gain is kept on other domains (mean, least, most), and what
    a fit on all domains together keeps on each (mean)."""
    found = []
    for name in table["trace"].unique():
        for solver, column in (*SHOWN, ("joint", "cross_top1"), ("joint", "load_max_over_mean"),
                               ("eplb +D", "load_max_over_mean"), ("coactivation", "fanout")):
            share = kept(table, name, solver, column)
            other = others(share)
            found.append({"trace": name, "solver": solver, "column": column, "mean": other.mean(), "least": other.min(),
                          "most": other.max(), "all": share.loc[ALL].drop(ALL).mean()})
    return pd.DataFrame(found)


def _title(table: pd.DataFrame) -> str:
    found = transfer(table).set_index("solver")
    crossing, load = (found[found["column"] == column].loc[solver] for solver, column in SHOWN)
    return (f"On text of another domain affinity keeps {span(crossing['mean'], '.0%')} of its gain, load balance "
            f"{span(load['mean'], '.0%')} (means per model)")


def answer(table: pd.DataFrame) -> str:
    """Return the answer of this stage in one sentence."""
    found = transfer(table).set_index(["solver", "column"])
    crossing, load = (found.loc[pair] for pair in SHOWN)
    return (f"**Other text**: judged on a domain that it was not fitted on, affinity keeps "
            f"{span(crossing['mean'], '.0%')} of its gain (mean per model; least {crossing['least'].min():.0%}), load "
            f"balance {span(load['mean'], '.0%')} and may end worse than `linear` ({load['least'].min():.0%}). Fitted "
            f"on all domains together: {span(crossing['all'], '.0%')} and {span(load['all'], '.0%')}.")


def text(table: pd.DataFrame) -> str:
    """Return figure and table for the README."""
    names = {"cross_top1": "first choices that cross", "load_max_over_mean": "load", "fanout": "fan-out"}
    lines = [[row.trace, row.solver, names[row.column], f"{row.mean:.0%}", f"{row.least:.0%}", f"{row.most:.0%}",
              f"{row.all:.0%}"] for row in transfer(table).itertuples()]
    header = ["trace", "solver", "gain over linear in", "kept on another domain, mean", "least", "most",
              "kept of each by a fit on all"]
    return "\n\n".join(["![Domains](figures/domains.png)", markdown(header, lines, 3)])
