"""Stage split: ExFlow's two steps through the simulator, context coherence alone and then with affinity.

The scenario of this study, on one, two and four of its nodes, with its own load and with one of answers only, which
leaves out what context coherence pays for prompts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from setting import HERE, OWN, only, span, titled

import moesim
from moesim import plots
from moesim.page import markdown
from moesim.placement import Profile, solve
from moesim.plots import _style as style
from moesim.result import Result
from moesim.scenario import Scenario
from moesim.sim.cost import PHASES
from moesim.trace import RoutingTrace

NODES = (1, 2, 4)
MODES = ("dispatch_combine", "context_coherent")
SOLVERS: dict[str, Any] = {"linear": "linear", "lpt": "lpt", "affinity": "affinity_sweep", "joint": "joint"}
# A prompt of 16 tokens is the least that is still a prompt; 128 to answer: both assumed.
LOADS = {"the study's load": (), "short prompts, answers of 128 tokens": ("requests.prompt_tokens=16",
                                                                          "requests.output_tokens=128")}
STEPS = {"coherence alone": ("context_coherent", "linear", style.VERMILION),
         "and affinity": ("context_coherent", "affinity", style.BLUE),
         "and balance (joint)": ("context_coherent", "joint", style.GREEN),
         "joint, without coherence": ("dispatch_combine", "joint", style.GREY)}
SHOWN = 16  # devices at which the step is taken apart


def on(scenario: Scenario, nodes: int) -> Scenario:
    """Return *scenario* on so many of its nodes, with as many users per device."""
    spec, share = scenario.hardware, nodes / scenario.hardware.nodes
    changes = {"hardware.nodes": nodes, "hardware.fabric.leaves": max(nodes, spec.fabric.leaves)}
    changes |= {f"requests.{name}": int(getattr(scenario.requests, name) * share) for name in ("concurrency", "count")}
    return moesim.override(scenario, [f"{key}={value}" for key, value in changes.items()])


def rows(traces: dict[str, RoutingTrace]) -> pd.DataFrame:
    """Return one row per load, number of devices, mode and placement: throughput, latencies, phases of a decode step.

    Solvers see the profile half, the simulation runs on the other; of *traces* only ours has a scenario.
    """
    scenario = moesim.load(HERE / "scenario.yaml")
    with tempfile.TemporaryDirectory() as folder:
        return pd.DataFrame(_rows(scenario, traces[OWN], Path(folder)))


def _rows(scenario: Scenario, trace: RoutingTrace, folder: Path) -> Iterator[dict[str, Any]]:
    sums = Profile.of(trace.profile(scenario.trace.profile_fraction, scenario.seed))
    file = folder / "placement.json"
    for nodes in NODES:
        machine = on(scenario, nodes)
        devices, per_node = machine.hardware.n_devices, machine.hardware.devices_per_node
        for name, solver in SOLVERS.items():
            solve(sums, devices, solver, devices_per_node=per_node).save(file)
            for load, changes in LOADS.items():
                for mode in MODES:
                    result = moesim.simulate(moesim.override(machine, (
                        f'placement={{path: "{file}"}}', f"parallelism.mode={mode}", *changes)))
                    yield {"trace": OWN, "load": load, "devices": devices, "mode": mode,
                           "placement": name} | _numbers(result)


def _numbers(result: Result) -> dict[str, float]:
    summary, steps = result.summary(), result.steps
    decode = steps[steps["prefill_tokens"] == 0]
    phases = {c: float(decode[c].mean()) for c in (f"{phase}_s" for phase in (*PHASES, "wait")) if c in decode}
    return {name: summary[name] for name in ("throughput_tok_per_s", "ttft_mean_s", "tpot_mean_s")} | {
        "decode_step_s": float((decode["end_s"] - decode["start_s"]).mean())} | phases


def change(table: pd.DataFrame, load: str, devices: int, step: str, column: str = "throughput_tok_per_s") -> float:
    """Return how *column* of *step* differs from linear with dispatch_combine, as a share of it."""
    mode, placement, _ = STEPS[step]
    base = only(table, load=load, devices=devices, mode=MODES[0], placement="linear")[column].iloc[0]
    return float(only(table, load=load, devices=devices, mode=mode, placement=placement)[column].iloc[0] / base - 1)


def figures(table: pd.DataFrame) -> dict[str, Any]:
    """Return the split of throughput, and a decode step taken apart."""
    return {"split": _split(table), "split_step": _step(table)}


def _split(table: pd.DataFrame) -> Any:
    """Draw the change of throughput per step of the split: a panel per load, a group per number of devices."""
    devices = sorted(table["devices"].unique())
    figure, axes = plots.figure(columns=len(LOADS), size=(10.4, 4.9))
    for ax, load in zip(axes[0], LOADS, strict=True):
        style.axes(ax)
        ticks: list[tuple[float, str]] = []
        for g, n in enumerate(devices):
            for i, (step, (_, _, colour)) in enumerate(STEPS.items()):
                y, value = g * (len(STEPS) + 0.9) + i, 100 * change(table, load, n, step)
                ax.barh(y, value, 0.78, color=colour)
                ax.annotate(f"{value:+.1f} %", (min(value, 0), y), (-4, 0), textcoords="offset points", ha="right",
                            va="center", fontsize=style.SMALL, color=style.INK)
                ticks.append((y, f"{n} devices  {step}" if i == 0 else step))
        ax.axvline(0, color=style.INK, lw=0.8)
        ax.set_yticks(*zip(*ticks, strict=True), fontsize=style.NORMAL)
        ax.set_ylim(ticks[-1][0] + 0.6, -0.6)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0, labelleft=ax is axes[0, 0])
        ax.set_xlim(-66, 6)
        style.finish(ax, load[0].upper() + load[1:], "output tokens/s against linear with dispatch_combine (%)")
    return titled(figure, _title(table))


def _title(table: pd.DataFrame) -> str:
    devices = sorted(table["devices"].unique())
    alone = [change(table, load, n, "coherence alone") for load in LOADS for n in devices]
    more = [change(table, load, n, "and affinity") for load in LOADS for n in devices]
    moved = [100 * (b - a) for a, b in zip(alone, more, strict=True)]
    verb = "costs" if max(alone) < 0 else "changes"
    return (f"Context coherence alone {verb} {span(sorted(-a for a in alone), '.0%')} of the throughput; affinity then "
            f"moves it by {min(moved):+.1f} to {max(moved):+.1f} points")


def _step(table: pd.DataFrame) -> Any:
    """Draw where the time of a decode step goes."""
    some = table[(table["load"] == next(iter(LOADS))) & (table["devices"] == SHOWN)]
    wanted = [(MODES[0], "linear"), *((mode, placement) for mode, placement, _ in list(STEPS.values())[:3])]
    picked = pd.concat([only(some, mode=mode, placement=placement) for mode, placement in wanted])
    phases = [f"{phase}_s" for phase in (*PHASES, "wait") if f"{phase}_s" in picked]
    content = picked[["placement", "mode", *phases]].fillna(0.0)
    base, slower = picked.iloc[0], picked.iloc[1]
    more = (slower[phases].fillna(0.0) - base[phases].fillna(0.0)).astype(float).nlargest(2)
    first, second = (str(phase).removesuffix("_s") for phase in more.index)
    longer = slower["decode_step_s"] / base["decode_step_s"] - 1
    title = (f"{SHOWN} devices: coherence makes a decode step {longer:.0%} longer, by {first} and {second}; combine is "
             f"still {slower['combine_s'] / base['combine_s']:.0%} of what it was, for two experts per token")
    return plots.draw("breakdown", content, what="decode step", title=title).figure


def answer(table: pd.DataFrame) -> str:
    """Return the answer of this stage in one sentence."""
    first, short = LOADS
    devices = sorted(table["devices"].unique())
    alone, affinity = ([change(table, first, n, step) for n in devices] for step in ("coherence alone", "and affinity"))
    return (f"**ExFlow's split** on the study's load, {devices[0]} to {devices[-1]} devices: context coherence alone "
            f"{alone[0]:+.1%} to {alone[-1]:+.1%} of the throughput, with affinity {affinity[0]:+.1%} to "
            f"{affinity[-1]:+.1%}. Even without prompts to speak of it does not pay "
            f"({change(table, short, devices[0], 'coherence alone'):+.1%} to "
            f"{change(table, short, devices[-1], 'coherence alone'):+.1%}).")


def text(table: pd.DataFrame) -> str:
    """Return figures and table for the README."""
    lines = []
    for load in LOADS:
        for n in sorted(table["devices"].unique()):
            base = only(table, load=load, devices=n, mode=MODES[0], placement="linear").iloc[0]
            ttft = 1 + change(table, load, n, "coherence alone", "ttft_mean_s")
            lines.append([load, str(n), f"{base['throughput_tok_per_s']:.0f}",
                          *(f"{100 * change(table, load, n, step):+.1f}" for step in STEPS), f"{ttft:.1f}",
                          *(f"{100 * change(table, load, n, step, 'decode_step_s'):+.1f}" for step in list(STEPS)[:3])])
    header = ["load", "devices", "linear, dispatch_combine (tokens/s)", *(f"{step} (%)" for step in STEPS),
              "time to first token, coherence alone (times)", *(f"decode step, {step} (%)" for step in list(STEPS)[:3])]
    return "\n\n".join(["![The split](figures/split.png)", markdown(header, lines),
                        "![A decode step](figures/split_step.png)"])
