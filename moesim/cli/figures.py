"""From files to the tables that figures take: result folders, sweep folders, traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from moesim import config, metrics, plots
from moesim.cli.values import yaml_value
from moesim.registry import suggest
from moesim.scenario import Scenario


def draw(source: Path, kinds: Iterable[str] | None, given: dict[str, Any], folder: Path, suffix: str) -> Iterator[Path]:
    """Draw the figures *kinds* (None: all that fit) of *source* into *folder*; yield the files.

    Raises ``ValueError`` if *source* is nothing to draw, or a figure does not fit it.
    """
    tables = _tables(source)
    for name in kinds or tables:
        if name not in tables:
            raise ValueError(f"{source}: no figure {name!r} of this{suggest(name, tables)}")
        axes = plots.draw(name, tables[name](), **({"label": "point"} if name == "pareto" else {}) | given)
        folder.mkdir(parents=True, exist_ok=True)
        yield plots.save(axes.figure, folder / f"{name}.{suffix}")


def options(texts: Iterable[str]) -> dict[str, Any]:
    """Return ``name=value`` texts as options, values read as YAML. Raises ``ValueError``."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--set {text}: is not of the form name=value")
        pairs[name] = yaml_value("--set", value)
    return pairs


def _tables(source: Path) -> dict[str, Callable[[], pd.DataFrame]]:
    """Return figure -> function that makes its table, for what *source* is."""
    if (source / "meta.json").is_file():
        return {"breakdown": lambda: _labelled(source, _phases(source)),
                "latency_cdf": lambda: _labelled(source, pd.read_parquet(source / "requests.parquet")),
                "links": lambda: _labelled(source, _links(source))}
    if (source / "table.parquet").is_file():
        return {"pareto": lambda: _points(pd.read_parquet(source / "table.parquet"))}
    if source.is_file():
        return {"affinity": lambda: _transitions(source), "affinity_layers": lambda: _information(source)}
    raise ValueError(f"{source}: neither a result folder (of `moesim run --out`), a sweep folder nor a trace file")


def _labelled(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return *table* with the placement and the mode of the result in *folder*."""
    scenario = config.read(folder / "scenario.yaml").data
    placement = scenario["placement"]
    name = placement["solver"]["name"] if "solver" in placement else Path(placement["path"]).stem
    return table.assign(placement=name, mode=scenario["parallelism"]["mode"])


def _phases(folder: Path) -> pd.DataFrame:
    steps = pd.read_parquet(folder / "steps.parquet")
    return steps[[c for c in map(str, steps) if c.endswith("_s") and c not in ("start_s", "end_s")]].mean().to_frame().T


def _links(folder: Path) -> pd.DataFrame:
    return metrics.link_class_bytes(pd.read_parquet(folder / "links.parquet")).reset_index()


def _points(table: pd.DataFrame) -> pd.DataFrame:
    """Return the points that did not fail, named by the values of their axes."""
    axes = [c for c in table if str(c).partition(".")[0] in Scenario.model_fields and table[c].nunique() > 1]
    names = table[axes].astype(str).agg(", ".join, axis=1) if axes else "the scenario"
    return table.assign(point=names)[table["error"].isna()]


def _transitions(path: Path) -> pd.DataFrame:
    from moesim.trace import read_trace

    trace = read_trace(path)
    counts = trace.transitions()
    layer, expert, following = counts.nonzero()
    return pd.DataFrame({"layer": layer, "expert": expert, "next_expert": following,
                         "tokens": counts[layer, expert, following]})


def _information(path: Path) -> pd.DataFrame:
    from moesim import trace_stats
    from moesim.trace import read_trace

    trace = read_trace(path)
    return pd.DataFrame({"layer": range(trace.n_layers - 1), "mutual_information_nat":
                         trace_stats.mutual_information(trace), "null_nat": trace_stats.mutual_information_null(trace),
                         "entropy_nat": trace_stats.top1_entropy(trace)[1:]})
