"""Tables for the figures of the demo, and the figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from moesim import plots, trace_stats
from moesim.demo.points import MODES
from moesim.placement import Placement
from moesim.placement.objective import device_load
from moesim.plots.affinity import affinity
from moesim.plots.affinity_layers import affinity_layers
from moesim.plots.breakdown import breakdown
from moesim.plots.device_load import device_load as device_load_plot
from moesim.plots.latency_cdf import latency_cdf
from moesim.plots.links import links
from moesim.plots.pareto import pareto
from moesim.result import Result
from moesim.trace import RoutingTrace


def draw(out: Path, placements: Mapping[str, Placement], trace: RoutingTrace, table: pd.DataFrame,
         phases: pd.DataFrame, results: Mapping[tuple[str, str], Result]) -> dict[str, Path]:
    """Write tables and figures of the demo to *out*; return figure -> file."""
    tables = {"points": table, "phases": phases, "device_load": _device_load(placements, trace),
              "links": _links(table), "affinity": _affinity(trace), "affinity_layers": _affinity_layers(trace),
              "latency": _requests(results)}
    for name, content in tables.items():
        content.to_parquet(out / "tables" / f"{name}.parquet", index=False)
    figures = {"affinity": _affinity_figure(tables), "device_load": device_load_plot(tables["device_load"]).figure,
               "pareto": _pareto_figure(table), "links": _per_mode(links, tables["links"], 0.9 + 0.3 * len(placements)),
               "latency": latency_cdf(tables["latency"]).figure}
    for kind in ("decode", "prefill"):
        figures[f"breakdown_{kind}"] = _per_mode(breakdown, phases[phases["step"] == kind].drop(columns="step"),
                                                 1.1 + 0.36 * len(placements), what=f"{kind} step")
    return {name: plots.save(figure, out / "figures" / f"{name}.png") for name, figure in figures.items()}


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
    classes = [c for c in table if str(c).startswith("bytes_")]
    long = table.melt(["placement", "mode"], classes, "class", "bytes")
    return long.assign(**{"class": long["class"].str.removeprefix("bytes_")})


def _requests(results: Mapping[tuple[str, str], Result]) -> pd.DataFrame:
    return pd.concat([result.requests.assign(placement=name, mode=mode) for (name, mode), result in results.items()],
                     ignore_index=True)


def _affinity_figure(tables: Mapping[str, pd.DataFrame]) -> object:
    figure, axes = plots.figure(rows=2, size=(6.6, 9.0), heights=(5.4, 3.0))
    affinity(tables["affinity"], axes[0, 0])
    affinity_layers(tables["affinity_layers"], axes[1, 0])
    return figure


def _pareto_figure(table: pd.DataFrame) -> object:
    figure, axes = plots.figure(rows=2, size=(7.2, 7.6))
    for ax, mode in zip(axes[:, 0], MODES, strict=True):
        part = table[table["mode"] == mode]
        pareto(part, ax, y=between_nodes(table), label="placement")
        _prefix(ax, mode)
    return figure


def _per_mode(plot: object, table: pd.DataFrame, height: float, **options: object) -> object:
    """Return a figure with *plot* of each mode's rows of *table*, one above the other on the same scale."""
    figure, axes = plots.figure(rows=len(MODES), size=(7.2, len(MODES) * height))
    for ax, mode in zip(axes[:, 0], MODES, strict=True):
        plot(table[table["mode"] == mode], ax, **options)  # type: ignore[operator]
        _prefix(ax, mode)
    right = max(ax.get_xlim()[1] for ax in axes[:, 0])
    for ax in axes[:, 0]:
        ax.set_xlim(0, right)
    return figure
