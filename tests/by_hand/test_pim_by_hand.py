"""Two processors over one memory, worked on paper: who does what, how long it takes, what it draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving_machine import scenario

import moesim
from moesim import registry
from moesim.pim import Jobs, share
from moesim.pim.jobs import example
from moesim.sim.selecting import Selecting

# Memory 1 byte/s for the device's own processor, 4 for the one beside, which does 2 FLOP/s; the own one is never held
# by arithmetic. An expert is 3 matrices of 2 values of 2 bytes, 12 bytes; a token moves 8 bytes and is 12 FLOP.
PIM = ("{kind: logic_pim, peak: {bf16: 2 FLOP/s}, bandwidth: 4 B/s, multiprocessors: 1%s}")
ENERGY = "energy: {access: %s J/B, activation: 2 J/B, flop: 3 J}"
EXPERTS_4 = {"prompt": [[[0]]], "decode": [[[0]]], "devices": [[0, 1, 2, 3]]}
BOTH = "selection={experts: coprocess_experts, attention: coprocess_attention}"


def device(*more: str, extra: str = "") -> tuple[str, ...]:
    """Return the overrides that put the processor beside the one of the machine by hand."""
    return (f"hardware.device.processors=[{PIM % extra}]", "hardware.device.spaces=4", *more)


# --- experts: four of them in four spaces ---------------------------------------------------------------------------

# Tokens 1, 2, 3, 9. Own: 4 s each. Beside: 1 s per token.
#   beside           own   beside  lasts
#   none              16        0     16
#   {1}               12        1     12
#   {1, 2}             8        3      8
#   {1, 2, 3}          4        6      6   <- the shortest
#   all                0       15     15
def test_co_processing_of_four_experts_in_four_spaces() -> None:
    jobs = example(tokens=[9, 1, 3, 2], n_spaces=4)
    order = np.argsort(jobs.tokens)
    table = []
    for count in range(5):
        mask = np.isin(np.arange(4), order[:count])
        table.append([float(seconds) for seconds in share(jobs, mask, True)])
    assert table == [[16, 16, 0], [12, 12, 1], [8, 8, 3], [6, 4, 6], [15, 0, 15]]
    part = registry.make("selection", "coprocess_experts")
    assert part.beside(jobs).tolist() == [False, True, True, True]


@pytest.mark.parametrize(("name", "mask", "lasts"), [
    ("gpu_only", [0, 0, 0, 0], 16), ("pim_only", [1, 1, 1, 1], 15), ("min_time", [0, 1, 1, 1], 4 + 6),
    ({"name": "op_per_byte", "threshold": 2.0}, [0, 1, 0, 1], 8 + 3), ("coprocess_experts", [0, 1, 1, 1], 6)])
def test_who_does_the_four_experts(name: str, mask: list[int], lasts: float) -> None:
    jobs = example(tokens=[9, 1, 3, 2], n_spaces=4)
    part = registry.make("selection", name)
    beside = part.beside(jobs)
    assert beside.tolist() == [bool(m) for m in mask]
    assert share(jobs, beside, part.side_by_side).phase_s == lasts


def test_a_space_goes_to_one_processor_whole() -> None:
    """Two spaces: tokens 9 and 3, 1 and 2. Own 8 s and 8 s, beside 12 s and 3 s: the second goes beside, max(8, 3)."""
    jobs = example(tokens=[9, 1, 3, 2], n_spaces=2)
    beside = registry.make("selection", "coprocess_experts").beside(jobs)
    assert beside.tolist() == [False, True, False, True]
    assert share(jobs, beside, True).phase_s == 8


def test_jobs_of_both_processors_in_one_space_wait_for_each_other() -> None:
    """Own 4 + 4 s; beside 3 + 2 s. In spaces of their own 8 s; 4 s and 3 s in one space, the others in another: 8 s."""
    apart, together = example([9, 9, 3, 2], n_spaces=4), example([9, 9, 3, 2], n_spaces=2)
    mask = np.array([False, False, True, True])
    assert share(apart, mask, True).phase_s == 8
    assert share(together, mask, True).phase_s == 8  # 4 + 3 and 4 + 2 fit into 8
    crowded = example([9, 9, 3, 2], n_spaces=1)
    assert share(crowded, mask, True).phase_s == 8 + 5


def test_one_kernel_of_the_own_processor_is_faster_than_its_experts_one_by_one() -> None:
    """Two experts of 4 s alone take 5 s as one kernel; the one left over takes its 4 s."""
    alone = example([9, 9], n_spaces=2)
    grouped = Jobs(alone.tokens, alone.own_s, alone.beside_s, alone.op_per_byte, alone.space, 2,
                   lambda mask: np.where(mask.sum(axis=-1) == 2, 5.0, 4.0 * mask.sum(axis=-1)))
    assert share(grouped, np.array([False, False]), True).phase_s == 5
    assert registry.make("selection", "coprocess_experts").beside(grouped).tolist() == [False, False]


# --- seconds of a device ---------------------------------------------------------------------------------------------

def operators(folder: Path, *overrides: str) -> Selecting:
    return Selecting(scenario(folder, [(0, 1, 1)], EXPERTS_4, *overrides))


def test_experts_of_a_device(tmp_path: Path) -> None:
    """Own: 12 + 8 n bytes at 1 byte/s. Beside: the larger of (12 + 8 n) / 4 and 12 n / 2 s.

    Tokens 3, 0, 1, 0: own 36 and 20; beside 18 and 6. Beside {1}: max(36, 6); both: 24.
    """
    tokens = np.array([[3, 0, 1, 0]])
    assert operators(tmp_path, *device()).experts(tokens).tolist() == [56]  # nobody selects: gpu_only
    assert operators(tmp_path, *device("selection=min_time")).experts(tokens).tolist() == [24]
    assert operators(tmp_path, *device(BOTH)).experts(tokens).tolist() == [24]
    slow = device()[0].replace("2 FLOP/s", "1 FLOP/s")
    assert operators(tmp_path, slow, "hardware.device.spaces=4", BOTH).experts(tokens).tolist() == [36]  # max(36, 12)
    assert operators(tmp_path, slow, "hardware.device.spaces=1", BOTH).experts(tokens).tolist() == [48]  # all or none


def test_efficiency_and_power_cap(tmp_path: Path) -> None:
    """One token beside: 20 bytes and 12 FLOP. At half the bandwidth 10 s; with 20 x 3 + 12 x 3 J at 4 W, 24 s."""
    one = np.array([[1, 0, 0, 0]])
    half = device("selection=pim_only", extra=", efficiency: 0.5")
    assert operators(tmp_path, *half).experts(one).tolist() == [10]
    own = f"hardware.device.processor={{peak: {{bf16: 1 PFLOP/s}}, bandwidth: 1 B/s, multiprocessors: 1, {ENERGY % 9}}}"
    capped = device("selection=pim_only", own, extra=f", power_cap: 4 W, {ENERGY % 1}")
    assert operators(tmp_path, *capped).experts(one).tolist() == [24]


def test_a_run_without_the_processor_beside_is_the_run_of_the_gpu(tmp_path: Path) -> None:
    requests = [(0, 3, 4), (5, 2, 3), (400, 1, 2)]
    plain = moesim.simulate(scenario(tmp_path, requests, EXPERTS_4))
    off = moesim.simulate(scenario(tmp_path, requests, EXPERTS_4, *device()))
    assert plain.requests.equals(off.requests) and plain.spans.equals(off.spans)
    assert plain.steps.equals(off.steps[plain.steps.columns])
    assert off.steps["logic_pim_share"].tolist() == [0] * len(off.steps)


@pytest.mark.parametrize("detail", ["steps", "events"])
def test_a_decode_beside_the_gpu(tmp_path: Path, detail: str) -> None:
    """The prompt and one decode, on paper.

    Prompt: attention as without (44 s), experts 20 s against max(5, 6) s: beside. Decode: context 2. Attention, own:
    2 x 8 bytes of context + 8 of query and output, 24 s of 44 + 8 s (see test_two_devices); beside 24 bytes at 4 B/s
    and 8 FLOP x 2 tokens of context at 2 FLOP/s, max(6, 8) s.
    """
    run = {name: moesim.simulate(scenario(tmp_path, [(0, 1, 2)], EXPERTS_4, *device(name, f"detail={detail}"))).steps
           for name in ("selection=gpu_only", BOTH)}
    own, both = run["selection=gpu_only"], run[BOTH]
    assert own["experts_s"].tolist() == [20, 20] and both["experts_s"].tolist() == [6, 6]
    saved = own["attention_s"] - both["attention_s"]
    assert saved.tolist() == [0, 24 - 8]
    assert (both["end_s"] - both["start_s"]).tolist() == pytest.approx(
        [*((own["end_s"] - own["start_s"]) - saved - 14)])
    assert both["logic_pim_share"].tolist() == pytest.approx(
        [6 / (both["end_s"][0] - both["start_s"][0]), (6 + 8) / (both["end_s"][1] - both["start_s"][1])])


def test_joules_by_path(tmp_path: Path) -> None:
    """Bytes of a step without PIM are its seconds at 1 byte/s; beside go the 20 bytes of one expert and one token."""
    own = f"hardware.device.processor={{peak: {{bf16: 1 PFLOP/s}}, bandwidth: 1 B/s, multiprocessors: 1, {ENERGY % 9}}}"
    results = [moesim.simulate(scenario(tmp_path, [(0, 1, 1)], EXPERTS_4, own, *device(
        f"selection={{experts: {name}}}", extra=f", {ENERGY % 1}"))) for name in ("gpu_only", "pim_only")]
    runs = [result.steps.iloc[0] for result in results]
    bytes_ = sum(runs[0][f"{phase}_s"] for phase in ("attention", "gate", "experts", "head"))
    assert [r["gpu_memory_j"] for r in runs] == [9 * bytes_, 9 * (bytes_ - 20)]
    assert [r["logic_pim_memory_j"] for r in runs] == [0, 20]
    assert [r["activation_j"] for r in runs] == [2 * bytes_] * 2
    assert runs[0]["arithmetic_j"] == runs[1]["arithmetic_j"] > 0
    summary = results[1].summary()
    assert {name: summary[name] for name in ("gpu_memory_j", "logic_pim_memory_j", "activation_j")} == {
        "gpu_memory_j": 9 * (bytes_ - 20), "logic_pim_memory_j": 20, "activation_j": 2 * bytes_}
    warned = [any("logic_pim: a roofline" in text for text in result.meta["warnings"]) for result in results]
    assert warned == [False, True]


def test_the_processor_beside_has_spans_of_its_own(tmp_path: Path) -> None:
    """Prompt: experts 6 s beside. Decode: attention 8 s, experts 6 s. Each begins with its phase."""
    spans = moesim.simulate(scenario(tmp_path, [(0, 1, 2)], EXPERTS_4, *device(BOTH))).spans
    beside = spans[spans["server"] == "logic_pim"]
    assert [(*row,) for row in beside[["step", "phase"]].itertuples(index=False)] == [
        (0, "experts"), (1, "attention"), (1, "experts")]
    assert (beside["end_s"] - beside["start_s"]).tolist() == [6, 8, 6]
    phases = spans[spans["server"] == "processor"].set_index(["step", "phase"])["start_s"]
    assert beside["start_s"].tolist() == [phases[step, phase] for step, phase in zip(
        beside["step"], beside["phase"], strict=True)]


@pytest.mark.parametrize("name", ["duplex", "bank-pim", "bankgroup-pim", "attacc", "hbm-pim", "aim"])
def test_devices_that_ship_share_work(tmp_path: Path, name: str) -> None:
    """One token has far too few operations per byte for the device's own processor: its expert goes beside."""
    steps = {part: moesim.simulate(scenario(
        tmp_path, [(0, 1, 3)], EXPERTS_4, f"hardware.device={name}", "kernels=roofline", f"selection={part}")).steps
        for part in ("gpu_only", "min_time")}
    kind = moesim.load(tmp_path / "hand.yaml", [f"hardware.device={name}"]).hardware.device.processors[0].kind
    assert (steps["min_time"]["experts_s"] < steps["gpu_only"]["experts_s"]).all()
    assert (steps["min_time"][f"{kind}_share"] > 0).all() and (steps["gpu_only"][f"{kind}_share"] == 0).all()
