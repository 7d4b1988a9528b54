"""The points of the demo: placements that solvers find, and what the simulation says of each in both modes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import moesim
from moesim.placement import Placement, evaluate, solve
from moesim.result import Result
from moesim.scenario import Scenario
from moesim.sim.cost import PHASES
from moesim.trace import RoutingTrace

MODES = ("dispatch_combine", "context_coherent")
BASELINE = "linear"  # what engines do when nobody tells them: experts in order of their number

# Name -> solver. The number after joint is its parameter balance: how much an even load is worth against transitions.
SOLVERS: dict[str, str | dict] = {
    BASELINE: "linear", "random": "random", "lpt": "lpt", "affinity": {"name": "affinity_sweep"},
    "joint 0.1": {"name": "joint", "balance": 0.1}, "joint 0.3": {"name": "joint", "balance": 0.3},
    "joint 1": {"name": "joint", "balance": 1.0}}

TIMELINE = ("detail=events", "span_steps=-1", "requests.output_tokens=4")  # and one request per user: a few steps


class Split(NamedTuple):
    """What solvers may see of a trace, and what they are judged on."""

    profile: RoutingTrace
    evaluation: RoutingTrace


def read(scenario: Scenario) -> Split:
    """Return the two parts of the trace of *scenario*, split as the simulation splits it."""
    spec = scenario.trace
    trace = spec.synthetic.generate() if spec.synthetic else moesim.read_trace(spec.path)
    return Split(trace.profile(spec.profile_fraction, scenario.seed),
                 trace.evaluation(spec.profile_fraction, scenario.seed))


def place(scenario: Scenario, trace: Split) -> dict[str, Placement]:
    """Return what each solver makes of the profile part of *trace*, by name."""
    machine = scenario.hardware
    return {name: solve(trace.profile, machine.n_devices, solver=solver, seed=scenario.seed,
                        devices_per_node=machine.devices_per_node) for name, solver in SOLVERS.items()}


def file(out: Path, name: str) -> Path:
    """Return where the placement *name* is kept."""
    return out.resolve() / "placements" / f"{name.replace(' ', '-')}.json"


def simulate(scenario: Scenario, placements: Mapping[str, Placement], trace: Split, out: Path,
             processes: int | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate all placements in both modes; return the table of numbers and that of seconds per step and phase."""
    static = pd.concat([_static(scenario, p, trace).to_frame(name).T for name, p in placements.items()])
    axes = [{"placement": {"path": str(file(out, name))}, "parallelism.mode": mode}
            for mode in MODES for name in placements]
    warm = moesim.simulate(moesim.override(scenario, ("requests.count=1", "requests.concurrency=1")))
    classes = {f"bytes_{c}": f"bytes_{c}" for c in warm.links["class"].unique()}  # (compiled now, workers find it done)
    wanted = {"throughput_tok_per_s": "throughput_tok_per_s", "tpot_mean_s": "tpot_mean_s", "tpot_p99_s": "tpot_p99_s",
              "ttft_mean_s": "ttft_mean_s", "step_load_max_over_mean": "load_max_over_mean",
              "kv_peak_bytes": "kv_peak_bytes_max"} | classes
    seconds = {f"{kind}_{p}_s": partial(_step_s, kind, p) for kind in ("prefill", "decode") for p in (*PHASES, "wait")}
    swept = moesim.sweep(scenario, axes, wanted | seconds, processes)
    failed = swept["error"].dropna()
    if len(failed):
        raise RuntimeError(f"{len(failed)} points of the demo failed, the first with {failed.iloc[0]}")
    names = pd.DataFrame({"placement": list(placements) * len(MODES),
                          "mode": [mode for mode in MODES for _ in placements]})
    table = pd.concat([names, swept[list(wanted)]], axis=1).join(static, on="placement")
    return table, _by_phase(names, swept[list(seconds)])


def keep(scenario: Scenario, table: pd.DataFrame, out: Path) -> dict[tuple[str, str], Result]:
    """Run the baseline and the fastest placement of each mode again and save them whole; write the timeline."""
    results = {}
    for mode in MODES:
        for name in dict.fromkeys((BASELINE, fastest(table, mode))):
            point = at(scenario, out, name, mode)
            results[name, mode] = moesim.simulate(point)
            results[name, mode].save(out / "results" / f"{name.replace(' ', '-')}-{mode}")
    name, mode = best(table)
    count = min(scenario.requests.count, scenario.requests.concurrency)
    few = moesim.simulate(moesim.override(at(scenario, out, name, mode), (*TIMELINE, f"requests.count={count}")))
    (few.save(out / "results" / "timeline") / "timeline.json").replace(out / "timeline.json")
    return results


def at(scenario: Scenario, out: Path, name: str, mode: str) -> Scenario:
    """Return *scenario* with the placement *name* and *mode*."""
    return moesim.override(scenario, (f'placement={{path: "{file(out, name)}"}}', f"parallelism.mode={mode}"))


def fastest(table: pd.DataFrame, mode: str) -> str:
    """Return the placement with the highest throughput in *mode*."""
    rows = table[table["mode"] == mode].set_index("placement")
    return str(rows["throughput_tok_per_s"].idxmax())


def best(table: pd.DataFrame) -> tuple[str, str]:
    """Return placement and mode of the row with the highest throughput."""
    row = table["throughput_tok_per_s"].to_numpy().argmax()
    return str(table["placement"].iloc[row]), str(table["mode"].iloc[row])


def _static(scenario: Scenario, placement: Placement, trace: Split) -> pd.Series:
    """Return the numbers of *placement* on what solvers did not see, and with _profile on what they saw."""
    per_node = scenario.hardware.devices_per_node
    seen = evaluate(placement, trace.profile, per_node)
    return pd.concat([evaluate(placement, trace.evaluation, per_node),
                      seen[["cross_top1", "cross_all", "load_max_over_mean"]].add_suffix("_profile")])


def _step_s(kind: str, phase: str, result: Result) -> float:
    """Return the mean seconds of *phase* in the steps that run prompts (prefill), or in those that do not (decode)."""
    steps = result.steps[(result.steps["prefill_tokens"] > 0) == (kind == "prefill")]
    return float(steps[f"{phase}_s"].mean()) if f"{phase}_s" in steps else 0.0


def _by_phase(names: pd.DataFrame, seconds: pd.DataFrame) -> pd.DataFrame:
    """Return one row per point and kind of step, one column per phase that any of them has."""
    kinds = []
    for kind in ("prefill", "decode"):
        part = seconds[[c for c in seconds if str(c).startswith(f"{kind}_")]]
        kinds.append(pd.concat([names.assign(step=kind), part.rename(columns=lambda c: c.removeprefix(f"{kind}_"))],
                               axis=1))
    table = pd.concat(kinds, ignore_index=True)
    return table[[c for c in table if not str(c).endswith("_s") or table[c].any()]]
