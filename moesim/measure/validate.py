"""Predict steps of layer stacks that no fit has seen, measure them, and put the two side by side.

The whole chain: benchmark -> measurements -> ``moesim.kernels.fit`` -> the simulator's price of a step, with the
routing that the stack really had. No product or expert of these stacks is among the shapes of the blocks. Steps and
operators are measured in turns, so that both see the same machine: what else runs on a host comes and goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moesim.hardware import Device
from moesim.measure import engines, timing
from moesim.measure.blocks.layer_stack import small
from moesim.measure.target import Target
from moesim.model import ModelSpec

if TYPE_CHECKING:
    from moesim.measure.stack import Step

# What a step is made of, and the ceilings.
BLOCKS = ("activated_experts", "attention_decode", "attention_prefill", "dense_gemm", "elementwise", "experts",
          "memory", "router")
# Tiles are a GPU's, and trees learn the noise of a few hundred points. One table of two cores: median held-out errors
# of products, experts, prefill and decode are 5, 6, 9 and 8 % of additive; 10, 8, 7 and 10 % of residual, with a bound
# of 3; 10, 9, 19 and 18 % of table. Of steps of three other stacks than those below: 7, 9 and 9 %.
MODEL = {"cpu": "additive", "cuda": "residual"}
HELD_OUT = (65, 85)  # shares of a page that says how good kernels are: a fifth to judge, and a reserve
INPUTS = 4        # sets of hidden states, each with a routing of its own
EFFORT = {"cpu": timing.Effort(1, INPUTS), "cuda": timing.Effort(3, 2 * INPUTS)}
# hidden, layers, experts, top_k, ffn; heads of queries, of keys, width. No width is one of the blocks'.
UNSEEN = {
    "cpu": {"a": ({"hidden": 384, "layers": 6, "experts": 24, "top_k": 4, "ffn": 320}, (6, 2, 64)),
            "b": ({"hidden": 640, "layers": 5, "experts": 12, "top_k": 2, "ffn": 896}, (10, 5, 64)),
            "c": ({"hidden": 896, "layers": 4, "experts": 10, "top_k": 2, "ffn": 1344}, (7, 7, 128))},
    "cuda": {"a": ({"hidden": 3072, "layers": 12, "experts": 48, "top_k": 4, "ffn": 1280}, (24, 6, 128)),
             "b": ({"hidden": 5120, "layers": 8, "experts": 24, "top_k": 2, "ffn": 3584}, (40, 8, 128))},
}
DECODE = {"cpu": ((1, 96), (1, 700), (3, 300), (6, 160), (12, 90), (24, 200), (24, 48)),   # sequences, context
          "cuda": ((1, 1500), (6, 3000), (24, 6000), (48, 1500), (96, 3000), (200, 1500))}
PROMPTS = {"cpu": (24, 72, 150, 300), "cuda": (384, 1536, 6144)}
MIXED = {"cpu": ((100, 5, 150),), "cuda": ((1000, 24, 3000),)}  # prompt, sequences, context


@dataclass(frozen=True)
class Case:
    """A stack and a step of it."""

    model: ModelSpec
    step: Step


def cases(target: Target) -> list[Case]:
    """Return the steps to predict: every unseen stack, decoding, prompts, and both at once."""
    from moesim.measure.stack import Step

    found = []
    for name, (sizes, heads) in UNSEEN[target.kind].items():
        model = small(f"unseen-{name}", target.dtype, heads=heads, **sizes)
        steps = [Step(contexts=(c,) * b) for b, c in DECODE[target.kind]]
        steps += [Step(prompts=(p,)) for p in PROMPTS[target.kind]]
        steps += [Step(prompts=(p,), contexts=(c,) * b) for p, b, c in MIXED[target.kind]]
        found += [Case(model, step) for step in steps]
    return found


def percentile(key: str) -> int:
    """Return where the shape with this key stands among 0 to 99, by chance and always the same."""
    return int(key[:4], 16) % 100


def to_fit(table: pd.DataFrame, kind: str, shares: tuple[int, int] = (85, 100)) -> pd.DataFrame:
    """Return the rows of *table* to fit a step's operators to, with their ``split``.

    Below the first of *shares*, in per cent of the shapes, they are for fitting, below the second to judge, and above
    a reserve for a last look; by default there is none: the last look is at the stacks.
    """
    rows = engines.of_engine(table, kind)
    part = rows["x_key"].map(percentile)
    return rows.assign(split=np.select([part < shares[0], part < shares[1]], ["fit", "test"], "reserve"))


def predicted_s(case: Case, device: Device, kernels: Any, ids: np.ndarray) -> float:
    """Return the seconds that the simulator gives the step whose tokens choose *ids* [T, layers, K] of the experts.

    *kernels*: a kernel model part, or its name.
    """
    return sum(predicted_phases_s(case, device, kernels, ids).values())


def predicted_phases_s(case: Case, device: Device, kernels: Any, ids: np.ndarray) -> dict[str, float]:
    """Return the seconds of ``predicted_s`` by phase (``moesim.sim.cost.PHASES``), all layers together."""
    from moesim.network import Network
    from moesim.sim.cost import PHASES, Batch
    from moesim.sim.expert_parallel import DispatchCombine

    step, count = case.step, len(case.step.contexts)
    inputs = _inputs(case, device, kernels, ids)
    prompts, fresh, rows = np.array(step.prompts, np.int64), np.array(step.new, np.int64), np.arange(len(ids))
    new, zeros = int(fresh.sum()), np.zeros(count, np.int64)
    none = np.zeros(0, np.int64)
    batch = Batch(np.arange(len(prompts)), fresh, prompts - fresh, np.ones(len(prompts), bool),
                  np.zeros(len(prompts), np.int64), rows[:new],
                  np.arange(count) + len(prompts), np.array(step.contexts, np.int64), zeros, rows[new:], none, none)
    network = Network.of(inputs.scenario.hardware, inputs.scenario.balancing, 0)
    seconds = DispatchCombine(inputs, network).step(batch).seconds.sum(axis=(0, 2))
    return dict(zip(PHASES, map(float, seconds), strict=True))


def _inputs(case: Case, device: Device, kernels: Any, ids: np.ndarray) -> Any:
    """Return what the simulator prices steps from: one device that holds all experts."""
    from moesim.placement.placement import Placement
    from moesim.scenario import Scenario
    from moesim.sim.inputs import Inputs, Routing
    from moesim.sim.joining import TokenRows
    from moesim.trace import RoutingTrace

    experts, sequences = case.model.n_experts, len(case.step.prompts) + len(case.step.contexts)
    synthetic = {"preset": "gpt_oss_20b"}  # a scenario needs a source; the trace below is used in its place
    machine = {"name": "one device", "source": "measured", "device": device.dump(), "devices_per_node": 1, "nodes": 1,
               "scale_up": {"bandwidth": "1 GB/s", "efficiency": 1.0, "startup": "0 s", "ramp": "0 s"}}
    scenario = Scenario.model_validate({
        "name": "one step", "model": case.model.dump(), "hardware": machine, "trace": {"synthetic": synthetic},
        "requests": {"kind": "closed_loop", "concurrency": 1, "count": 1, "prompt_tokens": 1, "output_tokens": 1},
        "placement": {"solver": "linear"}, "scheduler": "vllm",
        "kernels": kernels})
    trace = RoutingTrace.from_arrays(ids.astype(np.uint16), experts, case.model.top_k)
    placement = Placement(np.ones((case.model.layers, experts, 1), bool))
    requests = pd.DataFrame({"request": np.arange(sequences)})
    return Inputs(scenario, Routing(trace, placement), requests, TokenRows.none(sequences))


class Steps:
    """The steps of *chosen* cases (default: ``cases``), measured in as many rounds as ``measure`` is called."""

    def __init__(self, target: Target, chosen: Sequence[Case] | None = None):
        self._target = target
        self._cases = list(cases(target) if chosen is None else chosen)
        self._seconds: list[list[float]] = [[] for _ in self._cases]       # of every case, of every round
        self._routed: list[list[np.ndarray]] = [[] for _ in self._cases]   # of every case, of every input

    def measure(self) -> None:
        """Measure every step once more; stacks are built anew, with the same weights and inputs."""
        from moesim.measure.stack import Stack

        stack = None
        for i, case in enumerate(self._cases):
            if stack is None or stack.model.name != case.model.name:
                stack = Stack(case.model, self._target)
            self._seconds[i].append(self._median(i, stack))

    def _median(self, i: int, stack: Any) -> float:
        """Return the median seconds of case *i* on *stack*; in the first round note which experts were chosen."""
        import torch

        from moesim.measure.point import Work

        step = self._cases[i].step
        with torch.inference_mode():
            cache = stack.cache(step)
            inputs = [stack.hidden(step) for _ in range(INPUTS)]
            if not self._routed[i]:
                self._routed[i] = [stack.routed(step, cache, x) for x in inputs]
            run = stack.runner(step, cache)
            work = Work([partial(run, x) for x in inputs], capture=stack.capture)
            found = timing.measure(self._target.kind, work, EFFORT[self._target.kind])
        return float(np.median(found.samples_s))

    def compare(self, device: Device, kernels: Any) -> pd.DataFrame:
        """Return one row per case: sizes, seconds measured and predicted by *kernels* (a part or its name), error.

        Measured is the fastest round, as of operators; ``rounds_percent`` is how much longer the slowest took. The
        error is predicted over measured.
        """
        rows = []
        for case, seconds, routed in zip(self._cases, self._seconds, self._routed, strict=True):
            guess = float(np.median([predicted_s(case, device, kernels, ids) for ids in routed]))
            step = case.step
            rows.append({"stack": case.model.name, "layers": case.model.layers, "prompt": sum(step.prompts),
                         "batch": len(step.contexts), "context": max(step.contexts, default=0),
                         "measured_ms": 1e3 * min(seconds), "rounds_percent": 100 * (max(seconds) / min(seconds) - 1),
                         "predicted_ms": 1e3 * guess, "error_percent": 100 * (guess / min(seconds) - 1)})
        return pd.DataFrame(rows)


def errors(table: pd.DataFrame) -> dict[str, float]:
    """Return median, mean, p90 and largest of the absolute errors of ``Steps.compare``, and the median signed one."""
    size = table["error_percent"].abs()
    return {"median": float(size.median()), "mean": float(size.mean()), "p90": float(size.quantile(0.9)),
            "worst": float(size.max()), "bias": float(table["error_percent"].median()), "steps": len(table)}
