"""The points of the demo: placements that solvers find, and what the simulation says of each in both modes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import moesim
from moesim.placement import Placement, evaluate, solve
from moesim.result import Result
from moesim.scenario import Scenario
from moesim.sim.cost import PHASES
from moesim.trace import RoutingTrace

MODES = ("dispatch_combine", "context_coherent")
BASELINE = "linear"  # what engines do when nobody tells them: experts in order of their number
AFFINITY = "affinity"
BETWEEN = "leaf_up"  # the link class that every byte between nodes crosses once

Solver = str | dict[str, Any]  # as a scenario gives it

# Name -> solver. The number after joint is its parameter balance: how much an even load is worth against transitions.
SOLVERS: dict[str, Solver] = {
    BASELINE: "linear", "random": "random", "lpt": "lpt", AFFINITY: {"name": "affinity_sweep"},
    "joint 0.01": {"name": "joint", "balance": 0.01}, "joint 0.1": {"name": "joint", "balance": 0.1},
    "joint 1": {"name": "joint", "balance": 1.0}}

TIMELINE = ("detail=events", "span_steps=-1", "requests.output_tokens=4")  # one request per user: a few steps


class Split(NamedTuple):
    """What solvers may see of a trace, and what they are judged on."""

    profile: RoutingTrace
    evaluation: RoutingTrace


class Points(NamedTuple):
    """What came out: numbers per placement and mode, and seconds per placement, mode, kind of step and phase."""

    table: pd.DataFrame
    phases: pd.DataFrame


def read(scenario: Scenario) -> Split:
    """Return the two parts of the trace of *scenario*, split as the simulation splits it."""
    spec = scenario.traced
    trace = spec.synthetic.generate() if spec.synthetic else moesim.read_trace(spec.path)
    return Split(trace.profile(spec.profile_fraction, scenario.seed),
                 trace.evaluation(spec.profile_fraction, scenario.seed))


def place(scenario: Scenario, trace: Split, solvers: Mapping[str, Solver], out: Path) -> dict[str, Placement]:
    """Return what each of *solvers* makes of the profile part of *trace*, by name; keep them in *out*."""
    machine, placements = scenario.hardware, {}
    for name, solver in solvers.items():
        placements[name] = solve(trace.profile, machine.n_devices, solver=solver, seed=scenario.seed,
                                 devices_per_node=machine.devices_per_node)
        placements[name].save(file(out, name))
    return placements


def file(out: Path, name: str) -> Path:
    """Return where the placement *name* is kept."""
    return out.resolve() / "placements" / f"{slug(name)}.json"


def slug(name: str) -> str:
    """Return *name* as part of a file's name."""
    return name.replace(" ", "-")


def at(scenario: Scenario, out: Path, name: str, mode: str) -> Scenario:
    """Return *scenario* with the placement *name* and *mode*."""
    return moesim.override(scenario, (f'placement={{path: "{file(out, name)}"}}', f"parallelism.mode={mode}"))


def simulate(scenario: Scenario, placements: Mapping[str, Placement], trace: Split, out: Path,
             processes: Executor | int | None = None) -> Points:
    """Simulate all *placements* in both modes."""
    names = pd.DataFrame([(name, mode) for mode in MODES for name in placements], columns=["placement", "mode"])
    axes = [{"placement": {"path": str(file(out, name))}, "parallelism.mode": mode}
            for name, mode in names.itertuples(index=False)]
    numbers, seconds = _metrics(_warm(scenario)), dict(_phase_metrics())
    swept = moesim.sweep(scenario, axes, numbers | seconds, processes)
    failed = swept["error"].dropna()
    if len(failed):
        raise RuntimeError(f"{len(failed)} of {len(swept)} points failed, the first with {failed.iloc[0]}")
    static = pd.DataFrame({name: _static(scenario, p, trace) for name, p in placements.items()}).T
    table = pd.concat([names, swept[list(numbers)]], axis=1).join(static, on="placement")
    return Points(table, _by_phase(names, swept[list(seconds)]))


def keep(scenario: Scenario, table: pd.DataFrame, out: Path) -> dict[tuple[str, str], Result]:
    """Run the baseline and the fastest placement of each mode again and save them whole; write the timeline."""
    results = {}
    for mode in MODES:
        for name in dict.fromkeys((BASELINE, fastest(table, mode))):
            result = results[name, mode] = moesim.simulate(at(scenario, out, name, mode))
            result.save(out / "results" / f"{slug(name)}-{mode}")
    name, mode = best(table)
    one_each = f"requests.count={getattr(scenario.requests, 'concurrency', 1)}"
    short = moesim.simulate(moesim.override(at(scenario, out, name, mode), (*TIMELINE, one_each)))
    shutil.copyfile(short.save(out / "results" / "timeline") / "timeline.json", out / "timeline.json")
    return results


def fastest(table: pd.DataFrame, mode: str) -> str:
    """Return the placement with the highest throughput in *mode*."""
    return best(table[table["mode"] == mode])[0]


def best(table: pd.DataFrame) -> tuple[str, str]:
    """Return placement and mode of the row with the highest throughput."""
    row = int(table["throughput_tok_per_s"].to_numpy().argmax())
    return str(table["placement"].iloc[row]), str(table["mode"].iloc[row])


def _warm(scenario: Scenario) -> list[str]:
    """Run one request in each mode, so that workers find everything compiled; return the machine's link classes."""
    for mode in MODES:
        result = moesim.simulate(moesim.override(scenario, (
            "requests.count=1", "requests.concurrency=1", "placement={solver: linear}", f"parallelism.mode={mode}")))
    return list(result.links["class"].unique())


def _metrics(classes: list[str]) -> dict:
    """Return column -> metric of the table."""
    same = ("throughput_tok_per_s", "tpot_mean_s", "tpot_p99_s", "ttft_mean_s", "ttft_p99_s", "energy_per_token_j")
    return ({name: name for name in same}
            | {"step_load_max_over_mean": "load_max_over_mean", "kv_peak_bytes": "kv_peak_bytes_max"}
            | {f"bytes_{name}": f"bytes_{name}" for name in classes}
            | {f"between_nodes_{phase}_bytes": partial(_between_nodes, phase)
               for phase in ("dispatch", "combine", "context")})


def _phase_metrics() -> Iterator[tuple[str, partial[float]]]:
    for kind in ("prefill", "decode"):
        for phase in (*PHASES, "wait"):
            yield f"{kind}_{phase}_s", partial(_step_s, kind, phase)


def _between_nodes(phase: str, result: Result) -> float:
    """Return the bytes between nodes in *phase*."""
    links = result.links[result.links["class"] == BETWEEN]
    return float(links[f"{phase}_bytes"].sum()) if f"{phase}_bytes" in links else 0.0


def _step_s(kind: str, phase: str, result: Result) -> float:
    """Return the mean seconds of *phase* in the steps that run prompts (prefill), or in those that do not (decode)."""
    steps = result.steps[(result.steps["prefill_tokens"] > 0) == (kind == "prefill")]
    return float(steps[f"{phase}_s"].mean()) if f"{phase}_s" in steps else 0.0


def _static(scenario: Scenario, placement: Placement, trace: Split) -> pd.Series:
    """Return the numbers of *placement* on what solvers did not see, and with _profile on what they saw."""
    per_node = scenario.hardware.devices_per_node
    seen = evaluate(placement, trace.profile, per_node)
    return pd.concat([evaluate(placement, trace.evaluation, per_node),
                      seen[["cross_top1", "cross_all", "load_max_over_mean"]].add_suffix("_profile")])


def _by_phase(names: pd.DataFrame, seconds: pd.DataFrame) -> pd.DataFrame:
    """Return one row per point and kind of step, one column per phase that any of them has."""
    kinds = []
    for kind in ("prefill", "decode"):
        columns = {f"{kind}_{phase}_s": f"{phase}_s" for phase in (*PHASES, "wait")}
        kinds.append(names.assign(step=kind).join(seconds[list(columns)].rename(columns=columns)))
    table = pd.concat(kinds, ignore_index=True)
    return table[[c for c in table if not str(c).endswith("_s") or table[c].any()]]
