"""Stage time: how long solvers take as experts, layers and devices grow, and how far from their bounds they end.

The routing is SYNTHETIC (moesim.synthetic, the gate fitted to DeepSeek-V2-Lite, other sizes): nobody has published
tokens of a model of this size. The last size is DeepSeek-V3's, on eight nodes of eight devices.
"""

from __future__ import annotations

import platform
import time
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from setting import only, titled

from moesim import plots
from moesim.page import markdown
from moesim.placement import Placement, Profile, solve
from moesim.placement.bounds import lower_bound
from moesim.placement.objective import Problem
from moesim.placement.objectives.load import Load
from moesim.plots import _style as style
from moesim.synthetic import PRESETS, SyntheticTrace
from moesim.trace import RoutingTrace

NODE = 8
TOP_K = 8
TOKENS = 250  # of each request


class Size(NamedTuple):
    """A problem: layers, experts of each, devices; and the requests that are profiled."""

    layers: int
    experts: int
    devices: int
    requests: int = 20


BASE, V3 = Size(24, 64, 8), Size(58, 256, 64, 800)
SIZES = {"experts": [BASE._replace(experts=n) for n in (16, 64, 256)],
         "layers": [BASE._replace(layers=n) for n in (6, 24, 58)],
         "devices": [BASE._replace(devices=n) for n in (2, 8, 64)]}
COLOURS = {"linear": style.GREY, "lpt": style.SKY, "eplb": style.BLACK, "affinity_sweep": style.BLUE,
           "joint": style.VERMILION, "coactivation": style.GREEN, "topology_flow": style.ORANGE}
SOLVERS = tuple(COLOURS)


def synthetic(size: Size) -> RoutingTrace:
    """Return the trace of *size*."""
    return SyntheticTrace(parameters=PRESETS["dsv2_lite"].parameters, requests=size.requests, prompt_tokens=TOKENS,
                          output_tokens=0, layers=size.layers, experts=size.experts,
                          top_k=min(TOP_K, size.experts // 2)).generate()


def machine(size: Size, solver: str) -> dict[str, Any]:
    """Return the options of the machine: nodes of eight; for topology_flow the limits of its paper, both binding."""
    nodes: dict[str, Any] = {"devices_per_node": NODE} if size.devices > NODE else {}
    if solver != "topology_flow":
        return nodes
    even = -(-size.experts // size.devices)
    return nodes | {"capacity": 2 * even, "solver": {
        "name": solver, "hosts": "round_robin", "total": even * size.layers, "time_limit": "600 s"}}


def rows(traces: dict[str, RoutingTrace]) -> pd.DataFrame:
    """Return one row per size and solver: seconds on the clock and of all cores, and the gap to the bound.

    *traces* play no part. Row ``sums``: what it takes to count the profile, transitions and sets of experts.
    """
    for solver in SOLVERS:  # compile
        tiny = Size(2, 16, 2, 1)
        solve(synthetic(tiny), tiny.devices, **({"solver": solver} | machine(tiny, solver)))
    sizes = dict.fromkeys(size for some in (*SIZES.values(), [V3]) for size in some)
    return pd.concat([of_size(size) for size in sizes], ignore_index=True)


def of_size(size: Size) -> pd.DataFrame:
    """Return the rows of *size*."""
    profile = Profile.of(synthetic(size))
    found = [_timed("sums", lambda: (profile.top1, profile.sets))[0]]
    for solver in SOLVERS:
        options = {"solver": solver} | machine(size, solver)
        seconds, placement = _timed(solver, lambda options=options: solve(profile, size.devices, **options))
        found.append(seconds | {"gap": _gap(placement, profile)})
    return pd.DataFrame(found).assign(trace="synthetic", **size._asdict(), tokens=profile.n_tokens,
                                      processor=_processor())


def _timed(solver: str, work: Any) -> tuple[dict[str, Any], Any]:
    clock_s, cpu_s = time.perf_counter(), time.process_time()
    answer = work()
    spent = {"solver": solver, "seconds": time.perf_counter() - clock_s, "cpu_s": time.process_time() - cpu_s}
    return spent, answer


def _gap(placement: Placement, profile: Profile) -> float:
    """Return the gap that the solver states; of one that balances load alone, to the bound of load; else NaN."""
    info = placement.info
    if "gap" in info or info["minimises"] != "load_max_over_mean":
        return float(info.get("gap", np.nan))
    problem = Problem(profile.n_experts, placement.n_devices)
    return 1 - lower_bound(Load().costs(profile, problem), profile, problem) / info["objective"]


def _processor() -> str:
    """Return what the system says of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def figures(table: pd.DataFrame) -> dict[str, Any]:
    """Return the figure: seconds against each dimension, and of DeepSeek-V3's size with the gaps."""
    figure, axes = plots.figure(columns=4, size=(13.2, 4.6))
    low, high = 1e-4, 4 * table["cpu_s"].max()
    for ax, (name, sizes) in zip(axes[0], SIZES.items(), strict=False):
        style.axes(ax)
        ends = {}
        for solver, colour in COLOURS.items():
            line = [(getattr(size, name), _at(table, size, solver)["cpu_s"]) for size in sizes]
            ax.loglog(*zip(*line, strict=True), "-o", color=colour, ms=3.5, lw=1.6)
            ends[solver] = line[-1]
        ax.set_ylim(low, high)
        ticks = [getattr(size, name) for size in sizes]
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.set_xticks([], minor=True)
        others = [f"{getattr(BASE, other)} {other}" for other in SIZES if other != name]
        style.finish(ax, ", ".join(others), name, "processor seconds" if ax is axes[0, 0] else "")
    _large(axes[0, 3], table, (low, high))
    joint = _at(table, V3, "joint")
    title = (f"SYNTHETIC routing: joint places {V3.layers} layers of {V3.experts} experts on {V3.devices} devices in "
             f"{joint['cpu_s']:.0f} s of processor time; its bound leaves {joint['gap']:.0%} open")
    return {"solver_time": titled(figure, title, _note(table))}


def _large(ax: Any, table: pd.DataFrame, limits: tuple[float, float]) -> None:
    """Draw the seconds of the largest size, the names of the solvers, and how far they are from their bounds."""
    style.axes(ax)
    order = sorted(COLOURS, key=lambda solver: -_at(table, V3, solver)["cpu_s"])
    for y, solver in enumerate(order):
        row = _at(table, V3, solver)
        ax.barh(y, row["cpu_s"] - limits[0], 0.7, limits[0], color=COLOURS[solver])
        gap = "minimises nothing" if np.isnan(row["gap"]) else f"gap {row['gap']:.1%}"
        ax.annotate(f"{number(row['cpu_s'])} s, {gap}", (1.02, y), xycoords=("axes fraction", "data"), va="center",
                    fontsize=style.SMALL, color=style.INK, annotation_clip=False)
    ax.set_xscale("log")
    ax.set_xlim(*limits)
    style.rows(ax, [solver.replace("_", " ") for solver in order])
    for label, solver in zip(ax.get_yticklabels(), order, strict=True):
        label.set_color(COLOURS[solver])
    style.finish(ax, f"{V3.layers} layers, {V3.experts} experts, {V3.devices} devices", "processor seconds")


def _at(table: pd.DataFrame, size: Size, solver: str) -> pd.Series:
    """Return the row of *solver* at *size*."""
    return only(table, solver=solver, layers=size.layers, experts=size.experts, devices=size.devices).iloc[0]


def number(seconds: float) -> str:
    """Return *seconds* with two digits or without decimals."""
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _note(table: pd.DataFrame) -> str:
    small, large = (f"{int(n):,d}" for n in (table["tokens"].min(), table["tokens"].max()))
    return (f"defaults of all solvers but topology flow; profiles of {small} tokens, the largest of {large}; counting "
            f"them not included; {table['processor'].iloc[0]}")


def answer(table: pd.DataFrame) -> str:
    """Return the answer of this stage in one sentence."""
    joint, flow, sums = (_at(table, V3, solver) for solver in ("joint", "topology_flow", "sums"))
    return (f"**How long it takes**: {V3.layers} layers of {V3.experts} experts on {V3.devices} devices (synthetic "
            f"routing, {int(joint['tokens']):,d} tokens): `joint` {joint['cpu_s']:.0f} s of processor time, with at "
            f"most {joint['gap']:.0%} of its objective left to gain; `lpt` and `eplb` less than a tenth of a second; "
            f"`topology_flow` {flow['cpu_s']:.0f} s (gap {flow['gap']:.1%}). Counting the profile takes "
            f"{sums['cpu_s']:.0f} s more.")


def text(table: pd.DataFrame) -> str:
    """Return figure and table for the README."""
    sizes = table.drop_duplicates(["layers", "experts", "devices"])
    lines = []
    for size in sizes.itertuples():
        at = Size(size.layers, size.experts, size.devices)
        cells = []
        for solver in ("sums", *SOLVERS):
            row = _at(table, at, solver)
            cells.append(number(row["cpu_s"]) + ("" if np.isnan(row["gap"]) else f" ({row['gap']:.1%})"))
        lines.append([f"{at.layers} x {at.experts}", str(at.devices), f"{size.tokens:,d}", *cells])
    header = ["layers x experts", "devices", "tokens", "counting the profile",
              *(solver.replace("_", " ") for solver in SOLVERS)]
    return "\n\n".join(["![Solver time](figures/solver_time.png)",
                        "Processor seconds (gap to the bound of what each minimises):\n\n" + markdown(header, lines)])
