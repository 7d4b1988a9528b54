"""The paper's systems and models, and how to measure stages of a served batch on them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import moesim
from moesim import Scenario
from moesim.scenario import override
from moesim.synthetic import GateParameters, SyntheticTrace
from moesim.trace import RoutingTrace

HERE = Path(__file__).resolve().parent
OUT = Path("out/06_duplex").resolve()
EFFICIENCY = 0.75      # of memory, both processors: constant of the released simulator's expert split
LATENCY_S = 3e-6       # of a hop of a collective: class default of the released simulator
BETWEEN = "{name: switch, hosts: %d, link: 400 GB/s}"  # nodes: the paper's words, and that class default
BETWEEN_CONSTANTS = "{efficiency: 1.0, startup: 0.5 us, ramp: 0 s}"
NEW, GAP = 3, 3        # requests that join a run's batch one after the other, and the steps between them


class Model(NamedTuple):
    """A model of the paper: file, devices of a node and nodes it runs on, lengths of its requests in figure 11."""

    file: str
    devices: int
    nodes: int
    lengths: tuple[int, ...] = ()

    def on(self, times: int) -> tuple[int, int]:
        """Return devices of a node and nodes of *times* the machine: nodes grow to eight devices first."""
        per_node = min(8, self.devices * times)
        return per_node, self.devices * self.nodes * times // per_node


MODELS = {"Mixtral": Model("mixtral-8x7b", 4, 1, (256, 1024, 4096)),
          "GLaM": Model("glam.yaml", 8, 1, (512, 1024, 2048)),
          "Grok1": Model("grok-1.yaml", 8, 2, (256, 1024, 4096)), "OPT": Model("opt-66b.yaml", 4, 1),
          "Llama3": Model("llama-3-70b.yaml", 4, 1),
          # Not in the paper: as many devices as hold the weights and a batch.
          "Qwen3-30B-A3B": Model("qwen3-30b-a3b", 2, 1), "DeepSeek-V3": Model("deepseek-v3", 8, 2)}
BATCHES = (32, 64, 128)
BOTH = "{experts: coprocess_experts, attention: coprocess_attention}"


class System(NamedTuple):
    """A way to run a model: device, selection, whether a node's devices share every expert, times the machine."""

    device: str = "duplex"
    selection: str = "gpu_only"
    share_experts: bool = False
    times: int = 1


SYSTEMS = {
    "GPU": System(), "2xGPU": System(times=2), "Duplex": System(selection="min_time"),
    "Duplex+PE": System(selection=BOTH), "Duplex+PE+ET": System(selection=BOTH, share_experts=True),
    "Bank-PIM": System("bank-pim", "min_time", True)}


def scenario(model: str, system: System, **changes: Any) -> Scenario:
    """Return scenario.yaml for *model* on *system*; *changes* are overrides, ``__`` for dots."""
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return override(_base(model, system), [f"{key}={value}" for key, value in given.items()])


@cache
def _base(model: str, system: System) -> Scenario:
    spec = MODELS[model]
    per_node, nodes = spec.on(system.times)
    fixed = {"model": spec.file if "." not in spec.file else HERE / spec.file,
             "hardware.device": system.device, "hardware.devices_per_node": per_node, "hardware.nodes": nodes,
             "hardware.scale_up.message": f"{LATENCY_S!r} s", "selection": system.selection,
             "parallelism.tp": per_node, "request_router": "round_robin"}
    if nodes > 1:
        fixed |= {"hardware.fabric": BETWEEN % (per_node * nodes), "hardware.scale_out": BETWEEN_CONSTANTS}
    fixed |= _experts(model, system, per_node * nodes, per_node)
    return moesim.load(HERE / "scenario.yaml", [f"{key}={value}" for key, value in fixed.items()])


# Layers with experts, experts, top-k.
SIZES = {"Mixtral": (32, 8, 2), "GLaM": (16, 64, 2), "Grok1": (64, 8, 2), "Qwen3-30B-A3B": (48, 128, 8),
         "DeepSeek-V3": (58, 256, 8)}


def _experts(model: str, system: System, devices: int, per_node: int) -> dict[str, Any]:
    """Return the overrides of a model's experts: how many devices share one, and what the gate chooses from."""
    if model not in SIZES:
        return {"trace": "null", "placement": "null"}
    experts = SIZES[model][1]
    shared_by = per_node if system.share_experts else max(1, devices // experts)
    return {"parallelism.expert_tp": shared_by,
            "trace": traced(trace_path(model))}


def traced(path: Path) -> str:
    """Return the scenario's trace section for the routing in *path*, as text."""
    return f"{{path: {path}, scaled: true, profile_fraction: 0.05}}"


def trace_path(model: str) -> Path:
    """Return where the uniform routing of *model* is: any top-k experts are as likely."""
    return OUT / f"uniform-{model}.parquet"


def write_traces() -> None:
    """Write the uniform routing of every model to files, so that no run has to draw it again."""
    OUT.mkdir(parents=True, exist_ok=True)
    for model, (layers, experts, top_k) in SIZES.items():
        prompt, output = (512, 64) if experts <= 64 else (64, 32)  # the large models run decodes alone (``beyond``)
        uniform(layers, experts, top_k, prompt, output).write(trace_path(model))


def uniform(layers: int, experts: int, top_k: int, prompt: int = 512, output: int = 64) -> RoutingTrace:
    """Return routing in which any *top_k* experts are as likely, of 32 requests."""
    none = GateParameters(sigma_b=0, a=0, s=0, sigma_d=0, domains=1)
    return SyntheticTrace(parameters=none, requests=32, prompt_tokens=prompt, output_tokens=output, layers=layers,
                          experts=experts, top_k=top_k).generate()


def stage_requests(batch: int, prompt: int, output: int) -> pd.DataFrame:
    """Return requests whose first steps are the stages of a full batch in a closed loop.

    The first *batch* have contexts spread evenly over what such a batch has, prompt to prompt + output. All others
    wait until one of the first is done, so that one prompt joins at a time.
    """
    context = prompt + ((np.arange(batch) + 0.5) * output / batch).astype(int)
    last = GAP * (NEW + 1) + 2
    outputs = np.full(batch, last)
    outputs[:NEW] = GAP * (1 + np.arange(NEW)) + 1
    return pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": np.concatenate([context, np.full(NEW, prompt)]),
                         "output_tokens": np.concatenate([outputs, last - outputs[:NEW]])})


def steps(model: str, system: System, table: pd.DataFrame, **changes: Any) -> pd.DataFrame:
    """Return the steps of *model* on *system* serving *table*, with ``length_s`` and ``joules`` of each."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.csv"
        table.to_csv(path, index=False)
        found = moesim.simulate(scenario(model, system, requests=f"{{kind: replay, path: {path}}}", **changes)).steps
    return found.assign(length_s=found["end_s"] - found["start_s"], joules=found.filter(regex="_j$").sum(axis=1))


class Stages(NamedTuple):
    """Means of a stage without prompts and of one with a prompt, s and J, and the share of the latter."""

    decode_s: float
    mixed_s: float
    decode_j: float
    mixed_j: float
    mixed_share: float

    @property
    def mean_s(self) -> float:
        """Mean length of a stage."""
        return (1 - self.mixed_share) * self.decode_s + self.mixed_share * self.mixed_s

    @property
    def mean_j(self) -> float:
        """Mean joules of a stage."""
        return (1 - self.mixed_share) * self.decode_j + self.mixed_share * self.mixed_j


def stages(model: str, system: System, batch: int, prompt: int, output: int, **changes: Any) -> Stages:
    """Return the stages of a batch of *batch* requests in a closed loop."""
    per_node, nodes = MODELS[model].on(system.times)
    table = stage_requests(batch, prompt, output)
    found = steps(model, system, table, **({"scheduler__max_batch": batch // nodes} | changes))
    decode = found[(found["prefill_tokens"] == 0) & (found["decode_tokens"] == batch)]
    mixed = found[(found["prefill_tokens"] == prompt) & (found["decode_tokens"] == batch - 1)]
    if len(decode) < GAP or mixed.empty:
        raise RuntimeError(f"{model}: a batch of {batch} was not served as a closed loop")
    return Stages(*(float(some[column].mean()) for column in ("length_s", "joules") for some in (decode, mixed)),
                  min(1.0, batch / output))


@cache
def layers(model: str) -> int:
    """Return the number of layers of *model*."""
    return _base(model, System()).model.layers
