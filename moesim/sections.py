"""The sections of a scenario file: routing, parallelism, placement, KV memory, what the engine adds, background."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, model_validator

from moesim.config import DataPath, Spec, facts_error
from moesim.hardware import HardwareSpec
from moesim.kernels import load as load_kernels
from moesim.registry import Part, name_of
from moesim.synthetic import SyntheticTrace
from moesim.units import Seconds


class TraceInput(Spec):
    """Where the routing comes from and how simulated requests are joined with it.

    ``paired``: the simulated requests are the trace's own, prompt and output as recorded. ``resampled``: each simulated
    request draws the token rows of one traced request, in order, wrapping around. The first part of the requests
    (``profile_fraction``) is what placement solvers see; the simulation runs on the rest.
    ``scaled``: the traced model had other widths than the simulated one (the routing is real, the sizes are a what-if).
    ``balanced``: no trace; every step's tokens are dealt to the experts of a layer as evenly as can be (``balanced``).
    """

    path: DataPath | None = None
    synthetic: SyntheticTrace | None = None
    balanced: bool = False
    join: Literal["paired", "resampled"] = "resampled"
    profile_fraction: float = Field(default=0.5, gt=0, lt=1)
    scaled: bool = False
    any_phase: bool = False  # a trace without rows of one phase serves its other rows in their place

    @model_validator(mode="after")
    def _one_source(self) -> TraceInput:
        if (self.path is not None) + (self.synthetic is not None) + self.balanced != 1:
            raise ValueError("give exactly one of path (a captured trace), synthetic (a labelled generator) and "
                             "balanced: true (every step spread evenly)")
        if self.balanced:
            asked = [name for name, set_ in (("join", self.join == "paired"), ("scaled", self.scaled),
                                             ("any_phase", self.any_phase)) if set_]
            if asked:
                raise facts_error("TraceInput", [(asked[0], "is about a trace, and balanced has none; remove it")])
        return self


class Parallelism(Spec):
    """How the model is spread over the devices.

    ``tp``: devices that share each attention and dense operator; the machine holds n_devices / tp such groups, each
    with requests of its own, and every routed expert is whole on a device. ``ep``: devices that share the experts of a
    copy of the model, and so step together (left out: all; without experts: ``tp``); the machine holds n_devices / ep
    such islands. ``pp``: pipeline stages of so many devices each, with a part of the layers each; an island is then
    pp * ep devices, and ``ep`` left out all of a stage.
    ``mode``: what expert parallelism means (docs/background/expert-parallelism.md). ``context``: what a device sends
    all others about the tokens it produced in a step of ``context_coherent`` (arXiv 2401.08383 leaves it open).
    ``dispatch``: how tokens get to experts: to the devices of theirs alone, by the part ``all_to_all``, or all to all
    devices, which sum what they made of them (vLLM's default, allgather_reducescatter). ``replicated``: each device of
    a group has all the group's tokens, as after the all-reduce of attention, and a second all-reduce sums up what its
    experts made of them (vLLM's tensor parallelism; Duplex, MICRO'24); between groups, ``all_to_all``.
    ``expert_tp``: devices that share every expert, by columns; above 1 it needs ``replicated``.
    ``expert_devices``: the last so many devices of every island hold and run routed experts alone, all others all else
    (MegaScale-Infer, arXiv 2504.02263; Duplex, MICRO'24, figure 5). 0: every device does both.
    ``deduplicate``: a token goes once to each device that holds some of its experts, not once per expert.
    """

    tp: int = Field(default=1, ge=1)
    ep: int | None = Field(default=None, ge=1)
    pp: int = Field(default=1, ge=1)
    mode: Literal["dispatch_combine", "context_coherent"] = "dispatch_combine"
    dispatch: Literal["all_to_all", "all_gather", "replicated"] = "all_to_all"
    expert_tp: int = Field(default=1, ge=1)
    expert_devices: int = Field(default=0, ge=0)
    context: Literal["kv", "hidden"] = "kv"
    deduplicate: bool = True

    def parts(self, layers: int) -> list[range]:
        """Return which of *layers* each pipeline stage has: neighbours, as even as can be.

        What is left over goes to the stages before the last, from behind: the first and the last have the embedding and
        the output head besides (vLLM, ``get_pp_indices`` in distributed/utils.py).

        >>> Parallelism(pp=4).parts(10)
        [range(0, 2), range(2, 5), range(5, 8), range(8, 10)]
        """
        size = np.full(self.pp, layers // self.pp)
        size[::-1][1 : layers % self.pp + 1] += 1
        ends = np.cumsum(size).tolist()
        return [range(end - n, end) for end, n in zip(ends, size.tolist(), strict=True)]

    def misfit(self, layers: int, machine: HardwareSpec, size: int) -> str | None:
        """Return what is wrong with stages of *size* devices for *layers* on *machine*; None: nothing."""
        whole, per_node = self.pp * size, machine.devices_per_node
        if self.pp > layers:
            return f"{self.pp} stages need a layer each, the model has {layers}; lower it"
        if size % self.tp and self.ep is None:
            return (f"{machine.n_devices} devices in {self.pp} stages are {size} each, which must be a multiple of "
                    f"parallelism.tp ({self.tp}); lower one of them")
        if machine.n_devices % whole or any(per_node % n and n % per_node for n in (size, whole)):
            return (f"{self.pp} stages of {size} devices (parallelism.ep; tp without experts) must divide the "
                    f"{machine.n_devices} of the machine, a stage and all stages together being an equal part of a "
                    f"node ({per_node} devices) or whole nodes; change pp or ep")
        return None


class Online(Spec):
    """Experts placed again during the run (docs/howto/replace-online.md), from the routing of the steps just run.

    ``every``: steps from one decision to the next. ``window``: the last steps before it, all that the solver sees (left
    out: as many as ``every``). SGLang's defaults are 1000 and 1000, vLLM's 3000 and 1000. ``solver``: left out,
    ``placement.solver``. ``blocking``: the engine stands still while weights move; else they move beside the steps, one
    layer at a time, and a layer changes over at the first step after its experts have arrived. ``solve_time`` passes
    between the end of the window and the first byte, while steps go on. ``imbalance``: the load max/mean of the window
    from which experts are placed again (SGLang's --eplb-min-rebalancing-utilization-threshold asks for its inverse).
    """

    every: int = Field(ge=1)
    window: int | None = Field(default=None, ge=1)
    solver: Annotated[Any, Part("solver", optional=True)] = None
    blocking: bool = True
    solve_time: Seconds = 0.0  # assumed: a processor beside has solved before the next step begins
    imbalance: float = Field(default=1.0, ge=1, allow_inf_nan=False)


class PlacementInput(Spec):
    """Experts to devices: found by ``solver`` from the profile part of the trace, or read from ``path``.

    With ``online`` that is where they begin.
    """

    solver: Annotated[Any, Part("solver", optional=True)] = None
    path: DataPath | None = None
    online: Online | None = None

    @model_validator(mode="after")
    def _one_source(self) -> PlacementInput:
        if (self.solver is None) == (self.path is None):
            raise ValueError("give exactly one of solver and path")
        if self.online is not None and self.solver is None and self.online.solver is None:
            raise ValueError("online needs a solver, a path holds one placement; give online.solver")
        return self


class Disaggregation(Spec):
    """Prompts and answers on different devices: the first ``devices`` only prefill, all others only decode.

    The scenario's own fields are those of the devices that decode; those given here are of the devices that prefill.
    ``overlap``: KV moves when its prompt and first token are computed, or each layer's as soon as it is (Splitwise,
    arXiv 2311.18677, section 4.3).
    """

    devices: int = Field(ge=1)
    overlap: Literal["none", "layers"] = "none"
    parallelism: Parallelism | None = None
    scheduler: Annotated[Any, Part("scheduler", optional=True)] = None
    request_router: Annotated[Any, Part("request_router", optional=True)] = None
    placement: PlacementInput | None = None

    def changes(self) -> dict[str, Any]:
        """Return what the devices that prefill have of their own, by the name of the scenario's field."""
        names = ("parallelism", "scheduler", "request_router", "placement")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class KVMemory(Spec):
    """Keys and values of a group: blocks of ``block`` tokens, as many as there is memory for, or ``blocks``.

    ``prefix_cache``: requests that begin with the same tokens share blocks, and blocks of finished requests are kept
    until their room is needed; needs the tokens of requests (docs/reference/scenario.md).
    """

    block: int = Field(default=16, ge=1)  # vLLM's default
    blocks: int | None = Field(default=None, ge=1)
    prefix_cache: bool = False


class EngineOptions(Spec):
    """What the serving engine does around the devices' work. The defaults cost nothing.

    ``asynchronous``: a step is scheduled as the one before it begins (vLLM's default from 0.14 on), so that a request
    waits up to a step more. ``graphs``: the largest number of tokens for which a CUDA graph is captured; a step of up
    to that many is filled up to a captured size, all groups of an island to the same, and groups without work run it
    too. ``eager``: what a larger step takes more, ``step``: what every step takes more (scheduling, sampling, output).
    ``jitter``: standard deviation of a step's times over their mean; each step's are multiplied by a lognormal number
    of mean 1, drawn from the scenario's seed. It shows how far a run is chaotic; no engine was measured for it.
    """

    asynchronous: bool = False
    graphs: int = Field(default=0, ge=0)
    eager: Seconds = 0.0
    step: Seconds = 0.0
    jitter: float = Field(default=0.0, ge=0, lt=1)

    def padded(self, tokens: np.ndarray) -> np.ndarray:
        """Return the tokens that each group of an island runs to compute *tokens* [groups]: int64 [groups].

        Captured sizes: 1, 2, 4, then in steps of 8, above 256 of 16 (vLLM 0.19, config/vllm.py).
        """
        largest = int(tokens.max(initial=0))
        if self.graphs == 0 or largest > self.graphs:
            return tokens if self.graphs == 0 else np.maximum(tokens, 1)
        step = 8 if largest <= 256 else 16
        size = 1 << (largest - 1).bit_length() if largest <= 4 else -(-largest // step) * step
        return np.full(tokens.shape, min(size, self.graphs), tokens.dtype)

    def added_s(self, tokens: int) -> float:
        """Return the seconds that the host adds to a step in which the fullest group has *tokens*."""
        return self.step + (self.eager if tokens > self.graphs else 0.0)

    def factors(self, *seed: int) -> Iterator[float]:
        """Return what the times of each step are multiplied by, one step after the other; the same for the same *seed*.
        """
        draw, spread = np.random.default_rng(seed), np.sqrt(np.log1p(self.jitter**2))
        while True:
            yield float(np.exp(spread * draw.standard_normal() - spread**2 / 2))


class Selection(Spec):
    """Which processor of a device does which work (docs/background/pim.md): a part for experts, one for attention.

    ``processor``: the kind of the processor that works beside the device's own; left out: the first of its
    ``processors``. A part alone in place of this mapping is for both.
    """

    experts: Annotated[Any, Part("selection")] = Field(default="gpu_only", validate_default=True)
    attention: Annotated[Any, Part("selection")] = Field(default="gpu_only", validate_default=True)
    processor: str | None = None

    @classmethod
    def read(cls, value: Any) -> Any:
        """Return the mapping that *value* stands for: itself, or a part (or its name) for both kinds of work."""
        if isinstance(value, str) or isinstance(value, dict) and "name" in value:
            return {"experts": value, "attention": value}
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Selection:
        for work in ("experts", "attention"):
            part = getattr(self, work)
            only = getattr(part, "only", work)
            if only != work:
                raise ValueError(f"{name_of(part)} is for {only} alone; name it under selection.{only}, and another "
                                 f"under selection.{work}")
        return self

    @property
    def uses_both(self) -> bool:
        """Whether any work can go to the processor beside."""
        return {name_of(self.experts), name_of(self.attention)} != {"gpu_only"}


class SLO(Spec):
    """What a request must keep to count as good: time to first token, time per output token, end to end."""

    ttft: Seconds | None = None
    tpot: Seconds | None = None
    e2e: Seconds | None = None


class Background(Spec):
    """Traffic of others on the same network: ``flows`` (a table as ``run_flows`` reads it), again in every ``period``.

    src and dst are devices, start_s counts from the start of a period; the first one begins at time 0.
    """

    flows: DataPath
    period: Seconds = Field(gt=0)


def kernels_of(value: Any, info: ValidationInfo) -> Any:
    """Return *value*; if there is none, the kernel model fitted to the machine's device, or the tile model."""
    if value is not None or "hardware" not in info.data:
        return value or "tile"
    name = info.data["hardware"].device.kernels
    try:
        return load_kernels(name).model if name else "tile"
    except ValueError as error:
        raise ValueError(f"hardware.device.kernels: {error}") from None
