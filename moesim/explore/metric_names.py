"""Metrics by name: what a column of a sweep may hold and ``moesim run`` prints.

Each is a function of a Result; those of PLACEMENT are functions of the placement and the routing that were simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from moesim import metrics
from moesim.placement import evaluate
from moesim.registry import suggest
from moesim.result import Result
from moesim.sim.inputs import Inputs

Metric = Callable[[Result], float]
Wanted = dict[str, str | Metric]  # column -> a name of this module, or a function

def load_max_over_mean(result: Result) -> float:
    """Return the load imbalance of experts between devices, mean over steps."""
    return float(result.steps["load_max_over_mean"].mean())


def steps(result: Result) -> float:
    """Return the number of forward passes."""
    return float(len(result.steps))


def batch_mean(result: Result) -> float:
    """Return the tokens of a forward pass, mean over steps."""
    return float((result.steps["prefill_tokens"] + result.steps["decode_tokens"]).mean())


def link_utilisation_max(result: Result) -> float:
    """Return the share of its capacity that the busiest link used over the whole run."""
    return float(result.links["utilisation"].max())


def expert_bytes_max(result: Result) -> float:
    """Return the bytes of experts on the fullest device."""
    return float(result.memory["expert_bytes"].max())


def kv_peak_bytes_max(result: Result) -> float:
    """Return the largest number of bytes of keys and values that a device held."""
    return float(result.memory["kv_peak_bytes"].max())


def replacements(result: Result) -> float:
    """Return how often experts were placed elsewhere during the run (placement.online)."""
    return float(sum(entry["moved"] > 0 for entry in result.meta["replacements"]))


def migrated_bytes(result: Result) -> float:
    """Return the bytes of experts that re-placements decided to move during the run."""
    return float(sum(entry["bytes"] for entry in result.meta["replacements"]))


def goodput_req_per_s(result: Result) -> float:
    """Return the requests per second that were served within the scenario's slo, over the makespan."""
    return float(metrics.good(result.requests, result.meta["slo"]).sum() / result.requests["finish_s"].max())


def good_share(result: Result) -> float:
    """Return the share of all requests that were served within the scenario's slo."""
    return float(metrics.good(result.requests, result.meta["slo"]).mean())


def kv_occupancy_max(result: Result) -> float:
    """Return the largest share of its KV memory that a device had in use."""
    return float((result.memory["kv_peak_bytes"] / result.memory["kv_capacity_bytes"]).max())


def preemptions(result: Result) -> float:
    """Return how often a running request lost its memory."""
    return float(result.requests["preemptions"].sum())


def cached_share(result: Result) -> float:
    """Return the share of prompt tokens that were in memory when their request began."""
    return float(result.requests["cached_tokens"].sum() / result.requests["prompt_tokens"].sum())


def stage_idle_share(result: Result) -> float:
    """Return the share of the makespan in which a pipeline stage has no batch, mean of stages."""
    return float(metrics.stages(result.steps, float(result.requests["finish_s"].max()))["idle_share"].mean())


METRICS: dict[str, Metric] = {
    f.__name__: f for f in (load_max_over_mean, steps, batch_mean, link_utilisation_max, expert_bytes_max,
                            kv_peak_bytes_max, kv_occupancy_max, replacements, migrated_bytes,
                            goodput_req_per_s, good_share, preemptions, cached_share, stage_idle_share)}

# Metrics that exist once per link class, phase, ...: prefix -> function that returns a Series of them.
FAMILIES: dict[str, Callable[[Result], pd.Series]] = {
    "bytes_": lambda result: metrics.link_class_bytes(result.links),
    "cache_": lambda result: metrics.expert_cache(result.steps),
    "share_": lambda result: metrics.breakdown(result.steps),
    "mfu_": lambda result: metrics.utilisation(result.steps, result.meta)["mfu"].drop("all"),
    "mbu_": lambda result: metrics.utilisation(result.steps, result.meta)["mbu"].drop("all"),
}


# What ``moesim.placement.evaluate`` says of the simulated placement, that at the start of the run, on the requests that
# the solver did not see.
PLACEMENT = {"cross_top1": "cross_top1", "cross_all": "cross_all", "fanout": "fanout",
             "placement_load_max_over_mean": "load_max_over_mean", "cross_node_top1": "cross_node_top1",
             "node_fanout": "node_fanout"}


def metric_names() -> dict[str, str]:
    """Return what each name means; ``bytes_<link class>`` stands for one metric of each, and so on."""
    described = {name: (metric.__doc__ or "").splitlines()[0] for name, metric in METRICS.items()}
    return (dict.fromkeys(metrics.SUMMARY_KEYS, "See Result.summary.") | described
            | {name: f"See placement.evaluate: {key}, of the simulated requests." for name, key in PLACEMENT.items()}
            | {"bytes_<link class>": "Return the bytes carried by all links of a class.",
               "cache_<number>": "Return a number of metrics.expert_cache: hit_ratio, fetched_bytes, skipped_share ...",
               "share_<phase>": "Return the share of a phase in the time of all steps.",
               "mfu_<steps>": "Return the mfu of steps that are prefill, decode or mixed.",
               "mbu_<steps>": "Return the mbu of steps that are prefill, decode or mixed."})


def wanted(names: Iterable[str | Metric] | Mapping[str, str | Metric]) -> Wanted:
    """Return column -> metric for *names*: names, functions of a Result, or a mapping of columns to either.

    Raises ``ValueError`` for a name that means nothing, or a column that is given twice.
    """
    if isinstance(names, str):
        raise ValueError(f"metrics are {names!r}; give a list, [{names!r}]")
    pairs = list(names.items() if isinstance(names, Mapping) else ((_column(metric), metric) for metric in names))
    for column, metric in pairs:
        if isinstance(metric, str):
            _check(metric)
        if [name for name, _ in pairs].count(column) > 1:
            raise ValueError(f"metric {column!r} is given twice; name them apart with a mapping of column -> metric")
    return dict(pairs)


def measure(result: Result, columns: Wanted | None = None, inputs: Inputs | None = None) -> dict[str, float]:
    """Return the numbers of *columns*; left out, of every named metric of *result*.

    *inputs* of the simulation are needed for the metrics of PLACEMENT. Raises ``ValueError`` for a number it lacks.
    """
    asked = {c for c in columns.values() if isinstance(c, str)} if columns is not None else {*METRICS, *PLACEMENT}
    numbers = result.summary() | {name: METRICS[name](result) for name in METRICS if name in asked}
    for prefix, family in FAMILIES.items():
        numbers |= {f"{prefix}{member}": float(value) for member, value in family(result).items()}
    if inputs is not None and asked & PLACEMENT.keys():
        numbers |= _placement(inputs)
    if columns is None:
        return numbers
    return {column: _number(metric, result, numbers) for column, metric in columns.items()}


def _placement(inputs: Inputs) -> dict[str, float]:
    machine = [*inputs.scenario.pools.values()][-1].of_stage.hardware  # the devices that decode have the placement
    found = evaluate(inputs.placement, inputs.trace, machine.devices_per_node if machine.nodes > 1 else None)
    return {name: float(found[number]) for name, number in PLACEMENT.items() if number in found}


def _number(metric: str | Metric, result: Result, numbers: dict[str, float]) -> float:
    if not isinstance(metric, str):
        return float(metric(result))
    if metric not in numbers:
        raise ValueError(f"the result has no {metric}{suggest(metric, numbers)}")
    return numbers[metric]


def _column(metric: str | Metric) -> str:
    if isinstance(metric, str):
        return metric
    name = getattr(metric, "__name__", "<lambda>")
    if name == "<lambda>":
        raise ValueError(f"{metric!r} has no name for its column; give a mapping of column -> metric")
    return name


def _check(name: str) -> None:
    known = [*metrics.SUMMARY_KEYS, *METRICS, *PLACEMENT]
    if name not in known and not name.startswith(tuple(FAMILIES)):
        raise ValueError(f"unknown metric {name!r}{suggest(name, metric_names())}")
