"""Tables for the figures of the demo, and the figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim import plots, trace_stats
from moesim.demo.points import BETWEEN, MODES, Points
from moesim.placement import Placement
from moesim.placement.objective import device_load
from moesim.result import Result
from moesim.trace import RoutingTrace

ROW = 0.34  # inches that a placement takes in a figure


def tables(placements: Mapping[str, Placement], trace: RoutingTrace, points: Points,
           results: Mapping[tuple[str, str], Result]) -> dict[str, pd.DataFrame]:
    """Return the tables that figures are made of; *trace* is the part that solvers did not see."""
    return {"points": points.table, "phases": points.phases, "device_load": _device_load(placements, trace),
            "links": _links(points.table), "affinity": _affinity(trace), "affinity_layers": _affinity_layers(trace),
            "latency": _latency(results)}


def draw(content: Mapping[str, pd.DataFrame], folder: Path) -> dict[str, Path]:
    """Draw the figures of the demo from its tables into *folder*; return name -> file."""
    phases, rows = content["phases"], content["points"]["placement"].nunique() * ROW
    figures = {"affinity": _affinity_figure(content),
               "device_load": plots.draw("device_load", content["device_load"]).figure,
               "pareto": _pareto_figure(content["points"]),
               "links": _per_mode("links", content["links"], 1.3 + rows, same_scale=False),
               "latency": plots.draw("latency_cdf", content["latency"]).figure}
    for kind in ("decode", "prefill"):
        part = phases[phases["step"] == kind].drop(columns="step")
        figures[f"breakdown_{kind}"] = _per_mode("breakdown", part, 1.3 + rows, what=f"{kind} step")
    return {name: plots.save(figure, folder / f"{name}.png") for name, figure in figures.items()}


def _per_mode(plot: str, table: pd.DataFrame, height: float, same_scale: bool = True, **options: Any) -> Any:
    """Return a figure with *plot* of each mode's rows of *table*, one above the other."""
    figure, axes = plots.figure(rows=len(MODES), size=(7.2, len(MODES) * height))
    for ax, mode in zip(axes[:, 0], MODES, strict=True):
        plots.draw(plot, table[table["mode"] == mode], ax=ax, title=f"{mode}: {{answer}}", **options)
    if same_scale:
        right = max(ax.get_xlim()[1] for ax in axes[:, 0])
        for ax in axes[:, 0]:
            ax.set_xlim(0, right)
    return figure


def _pareto_figure(table: pd.DataFrame) -> Any:
    """Return a figure of what balance costs: in transitions, and in the bytes that each mode sends between nodes."""
    figure, axes = plots.figure(rows=1 + len(MODES), size=(7.2, 8.4), heights=(1.5, 1, 1))
    plots.draw("pareto", table[table["mode"] == MODES[0]], ax=axes[0, 0], label="placement")
    for ax, mode in zip(axes[1:, 0], MODES, strict=True):
        plots.draw("pareto", table[table["mode"] == mode], ax=ax, y=f"bytes_{BETWEEN}", label="placement", zero=True,
                   title=f"{mode}: {{answer}}")
    return figure


def _affinity_figure(content: Mapping[str, pd.DataFrame]) -> Any:
    figure, axes = plots.figure(rows=2, size=(6.6, 9.2), heights=(2.2, 1.0))
    plots.draw("affinity", content["affinity"], ax=axes[0, 0])
    plots.draw("affinity_layers", content["affinity_layers"], ax=axes[1, 0])
    return figure


def _affinity(trace: RoutingTrace) -> pd.DataFrame:
    counts = trace.transitions()
    layer, expert, following = counts.nonzero()
    return pd.DataFrame({"layer": layer, "expert": expert, "next_expert": following,
                         "tokens": counts[layer, expert, following]})


def _affinity_layers(trace: RoutingTrace) -> pd.DataFrame:
    return pd.DataFrame({"layer": np.arange(trace.n_layers - 1),
                         "mutual_information_nat": trace_stats.mutual_information(trace),
                         "null_nat": trace_stats.mutual_information_null(trace),
                         "entropy_nat": trace_stats.top1_entropy(trace)[1:]})


def _device_load(placements: Mapping[str, Placement], trace: RoutingTrace) -> pd.DataFrame:
    parts = []
    for name, placement in placements.items():
        load = device_load(trace.counts(), placement.replicas)
        layer, device = (axis.ravel() for axis in np.indices(load.shape))
        parts.append(pd.DataFrame({"placement": name, "layer": layer, "device": device, "tokens": load.ravel()}))
    return pd.concat(parts, ignore_index=True)


def _links(table: pd.DataFrame) -> pd.DataFrame:
    classes = {c: str(c).removeprefix("bytes_") for c in table if str(c).startswith("bytes_")}
    return table.rename(columns=classes).melt(["placement", "mode"], list(classes.values()), "class", "bytes")


def _latency(results: Mapping[tuple[str, str], Result]) -> pd.DataFrame:
    return pd.concat([result.requests.assign(placement=name, mode=mode) for (name, mode), result in results.items()],
                     ignore_index=True)


