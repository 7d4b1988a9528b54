"""Scenario: one field per input of a simulation. The same scenario and seed give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from moesim import config, fits, pools
from moesim.config import Named, Spec
from moesim.expert_cache import ExpertCache
from moesim.hardware import HardwareSpec
from moesim.model import ModelSpec
from moesim.registry import Part
from moesim.requests import Requests
from moesim.sections import (
    SLO,
    Background,
    Disaggregation,
    EngineOptions,
    KVMemory,
    Online,
    Parallelism,
    PlacementInput,
    Selection,
    TraceInput,
    kernels_of,
)


class Scenario(Spec):
    """Everything that a simulation needs; see the fields' classes."""

    name: str
    model: Annotated[ModelSpec, Named("workloads/models")]
    hardware: Annotated[HardwareSpec, Named("hw_configs/machines")]
    trace: TraceInput | None = None            # a model with experts needs one, and a placement
    requests: Requests
    parallelism: Parallelism = Parallelism()
    disaggregation: Disaggregation | None = None
    placement: PlacementInput | None = None
    cache: ExpertCache | None = None  # experts below device memory, fetched on a miss; left out: all fit
    scheduler: Annotated[Any, Part("scheduler")]
    request_router: Annotated[Any, Part("request_router")] = Field(default="least_loaded", validate_default=True)
    balancing: Annotated[Any, Part("balancing")] = Field(default="spray", validate_default=True)
    all_to_all: Annotated[Any, Part("all_to_all")] = Field(default="flat", validate_default=True)
    kernels: Annotated[Any, Part("kernel_model"), BeforeValidator(kernels_of)] = Field(None, validate_default=True)
    kv: KVMemory = KVMemory()
    engine: EngineOptions = EngineOptions()
    slo: SLO = SLO()
    too_long: Literal["stop", "refuse"] = "stop"  # requests that fit into no group's memory, or not into the context
    selection: Annotated[Selection, BeforeValidator(Selection.read)] = Selection()  # which processor does what
    profile: Annotated[Any, Part("layer_profile", optional=True)] = None  # in place of kernels
    memory_fraction: float = Field(default=0.9, gt=0, le=1)  # of device memory, for weights and KV (vLLM's default)
    detail: Literal["steps", "events"] = "steps"
    overlap: Literal["none", "two_batch"] = "none"  # halves of a batch side by side: one computes, one communicates
    background: Background | None = None
    span_steps: int = Field(default=16, ge=-1)  # steps whose spans are kept in the result; -1 keeps all
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> Scenario:
        facts = fits.facts(self) if self.disaggregation is None else pools.facts(self)
        if facts:
            raise config.facts_error("Scenario", facts)
        return self

    @property
    def n_groups(self) -> int:
        """Number of tensor-parallel groups, each with requests of its own (in a pipeline: one on each stage)."""
        stages = self.hardware.n_devices // (self.stage_size * self.parallelism.pp)
        return stages * self.groups_per_island

    @property
    def stage_size(self) -> int:
        """Devices that share the experts of a layer; all that step together, unless layers are in pipeline stages."""
        everybody = max(self.hardware.n_devices // self.parallelism.pp, 1)
        return self.parallelism.ep or (everybody if self.model.moe is not None else self.parallelism.tp)

    @property
    def island_size(self) -> int:
        """Devices of one copy of the model: what steps together, all stages of a pipeline."""
        return self.parallelism.pp * self.stage_size

    @property
    def stages(self) -> list[range]:
        """The layers of each pipeline stage."""
        return self.parallelism.parts(self.model.layers)

    @property
    def n_islands(self) -> int:
        """Sets of devices that each hold a whole model and step by themselves."""
        return self.hardware.n_devices // self.island_size

    @property
    def groups_per_island(self) -> int:
        """Groups that step together."""
        return (self.stage_size - self.parallelism.expert_devices) // self.parallelism.tp

    @property
    def n_holders(self) -> int:
        """Devices, or sets of devices that share every expert, among which those of a layer are placed."""
        return (self.parallelism.expert_devices or self.stage_size) // self.parallelism.expert_tp

    @property
    def of_island(self) -> Scenario:
        """Return this scenario for one island alone."""
        return self if self.n_islands == 1 else self.model_copy(update={
            "hardware": self.hardware.part(self.island_size)})

    @property
    def of_stage(self) -> Scenario:
        """Return this scenario for the devices of one pipeline stage (of an island, if there is one stage)."""
        return self.of_island if self.parallelism.pp == 1 else self.model_copy(update={
            "hardware": self.hardware.part(self.stage_size),
            "parallelism": self.parallelism.model_copy(update={"pp": 1})})

    @property
    def pools(self) -> dict[str, Scenario]:
        """This scenario for the devices that only prefill and for those that only decode; under "" if all do both."""
        return pools.of(self)

    @property
    def traced(self) -> TraceInput:
        """Where the routing comes from, in a model with experts."""
        assert self.trace is not None, "asked only of models with experts"
        return self.trace

    @property
    def placed(self) -> PlacementInput:
        """How experts are placed, in a model with experts."""
        assert self.placement is not None, "asked only of models with experts"
        return self.placement

    @property
    def online(self) -> Online | None:
        """How experts are placed again, if they are."""
        return self.placement.online if self.placement is not None else None


def load(path: str | Path, overrides: Iterable[str] = ()) -> Scenario:
    """Return the scenario in the YAML file *path*, with *overrides* (``"scheduler.max_batch=64"``) applied.

    Raises ``ConfigError`` with every mistake found, each with file:line, dotted path and remedy.
    """
    return config.load(Scenario, path, overrides)


def override(scenario: Scenario, overrides: Iterable[str]) -> Scenario:
    """Return a copy of *scenario* with *overrides* applied and everything checked again. Raises ``ConfigError``."""
    document = config.Document(scenario.dump())
    if scenario._document is not None:
        document.folder = scenario._document.folder
    return config.build(Scenario, document, overrides)
