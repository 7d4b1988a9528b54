"""Metrics by name: what a column of a sweep may hold and ``moesim run`` prints; each is a function of a Result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from moesim import metrics
from moesim.registry import suggest
from moesim.result import Result

Metric = Callable[[Result], float]
Wanted = dict[str, str | Metric]  # column -> a name of this module, or a function

# The keys of Result.summary().
SUMMARY = (*(f"{time}_{point}_s" for time in ("ttft", "tpot", "e2e") for point in ("mean", "p50", "p90", "p99")),
           "throughput_tok_per_s", "makespan_s", "energy_j")


def load_max_over_mean(result: Result) -> float:
    """Return the load imbalance of experts between devices, mean over steps."""
    return float(result.steps["load_max_over_mean"].mean())


def steps(result: Result) -> float:
    """Return the number of forward passes."""
    return float(len(result.steps))


def batch_mean(result: Result) -> float:
    """Return the tokens of a forward pass, mean over steps."""
    return float((result.steps["prefill_tokens"] + result.steps["decode_tokens"]).mean())


def energy_per_token_j(result: Result) -> float:
    """Return the joules per output token."""
    return result.summary()["energy_j"] / float(result.requests["output_tokens"].sum())


def link_utilisation_max(result: Result) -> float:
    """Return the share of its capacity that the busiest link used over the whole run."""
    return float(result.links["utilisation"].max())


def expert_bytes_max(result: Result) -> float:
    """Return the bytes of experts on the fullest device."""
    return float(result.memory["expert_bytes"].max())


def kv_peak_bytes_max(result: Result) -> float:
    """Return the largest number of bytes of keys and values that a device held."""
    return float(result.memory["kv_peak_bytes"].max())


METRICS: dict[str, Metric] = {
    f.__name__: f for f in (load_max_over_mean, steps, batch_mean, energy_per_token_j, link_utilisation_max,
                            expert_bytes_max, kv_peak_bytes_max)}

# Metrics that exist once per link class, phase, ...: prefix -> function that returns a Series of them.
FAMILIES: dict[str, Callable[[Result], pd.Series]] = {
    "bytes_": lambda result: metrics.link_class_bytes(result.links),
    "share_": lambda result: metrics.breakdown(result.steps),
}


def metric_names() -> dict[str, str]:
    """Return what each name means; ``bytes_<link class>`` and ``share_<phase>`` stand for one metric of each."""
    described = {name: (metric.__doc__ or "").splitlines()[0] for name, metric in METRICS.items()}
    return (dict.fromkeys(SUMMARY, "See Result.summary.") | described
            | {"bytes_<link class>": "Return the bytes carried by all links of a class.",
               "share_<phase>": "Return the share of a phase in the time of all steps."})


def wanted(names: Iterable[str | Metric] | Mapping[str, str | Metric]) -> Wanted:
    """Return column -> metric for *names*: names, functions of a Result, or a mapping of columns to either.

    Raises ``ValueError`` for a name that means nothing, or a column that is given twice.
    """
    pairs = list(names.items() if isinstance(names, Mapping) else ((_column(metric), metric) for metric in names))
    for column, metric in pairs:
        if not callable(metric):
            _check(metric)
        if [name for name, _ in pairs].count(column) > 1:
            raise ValueError(f"metric {column!r} is given twice; name them apart with a mapping of column -> metric")
    return dict(pairs)


def measure(result: Result, columns: Wanted | None = None) -> dict[str, float]:
    """Return the numbers of *columns*; left out, of every named metric of *result*."""
    numbers = result.summary()
    families = {prefix + str(name): float(value) for prefix, family in FAMILIES.items()
                for name, value in family(result).items()}
    if columns is None:
        return numbers | {name: metric(result) for name, metric in METRICS.items()} | families
    return {column: _number(result, metric, numbers | families) for column, metric in columns.items()}


def _number(result: Result, metric: str | Metric, numbers: dict[str, float]) -> float:
    if callable(metric):
        return float(metric(result))
    if metric in METRICS:
        return METRICS[metric](result)
    if metric not in numbers:
        prefix = next(p for p in FAMILIES if metric.startswith(p))
        known = [name for name in numbers if name.startswith(prefix)]
        raise ValueError(f"the result has no {metric}{suggest(metric, known)}")
    return numbers[metric]


def _column(metric: str | Metric) -> str:
    if isinstance(metric, str):
        return metric
    name = getattr(metric, "__name__", "<lambda>")
    if name == "<lambda>":
        raise ValueError(f"{metric!r} has no name for its column; give a mapping of column -> metric")
    return name


def _check(name: str) -> None:
    known = [*SUMMARY, *METRICS]
    if name not in known and not name.startswith(tuple(FAMILIES)):
        raise ValueError(f"unknown metric {name!r}{suggest(name, [*known, 'bytes_<link class>', 'share_<phase>'])}")
