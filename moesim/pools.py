"""A scenario with ``disaggregation`` as two: of the devices that only prefill, and of those that only decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from moesim import fits
from moesim.document import ConfigError
from moesim.fits import Fact
from moesim.registry import name_of

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.sections import Disaggregation


def of(scenario: Scenario) -> dict[str, Scenario]:
    """Return *scenario* for the devices that prefill and for those that decode; under "" if all do both.

    Prefixes are found where prompts run, and nowhere else (SGLang's decode servers have no prefix cache by default).
    """
    apart, machine = scenario.disaggregation, scenario.hardware
    if apart is None:
        return {"": scenario}
    first = {"hardware": machine.part(apart.devices), "disaggregation": None} | apart.changes()
    rest = {"hardware": machine.part(machine.n_devices - apart.devices), "disaggregation": None,
            "kv": scenario.kv.model_copy(update={"prefix_cache": False})}
    return {"prefill": scenario.model_copy(update=first), "decode": scenario.model_copy(update=rest)}


def facts(scenario: Scenario) -> list[Fact]:
    """Return what does not fit together in *scenario*, which has ``disaggregation``."""
    assert scenario.disaggregation is not None, "asked only of scenarios with two pools"
    found = list(_together(scenario, scenario.disaggregation)) or list(_each(scenario, scenario.disaggregation))
    return list(dict.fromkeys(found))


def _together(scenario: Scenario, apart: Disaggregation) -> Iterable[Fact]:
    """Yield what is wrong with the scenario as a whole."""
    machine, at = scenario.hardware, "disaggregation"
    used = {"parallelism.mode": scenario.parallelism.mode == "context_coherent",
            "parallelism.expert_devices": scenario.parallelism.expert_devices > 0,
            "placement.online": scenario.online is not None, "background": scenario.background is not None}
    if apart.parallelism is not None:
        used[f"{at}.parallelism.mode"] = apart.parallelism.mode == "context_coherent"
        used[f"{at}.parallelism.expert_devices"] = apart.parallelism.expert_devices > 0
    if apart.placement is not None:
        used[f"{at}.placement.online"] = apart.placement.online is not None
    for name in (name for name, given in used.items() if given):
        yield name, f"does not go with {at}, whose pools step by themselves; remove one of the two"
    if apart.devices >= machine.n_devices:
        yield f"{at}.devices", f"{apart.devices} of {machine.n_devices} devices prefill, none is left; use fewer"
    elif machine.nodes > 1 and apart.devices % machine.devices_per_node:
        yield f"{at}.devices", (f"{apart.devices} are not whole nodes of {machine.devices_per_node} devices; use a "
                                f"multiple")
    stages = (apart.parallelism or scenario.parallelism).pp
    if apart.overlap == "layers" and stages > 1:
        yield f"{at}.overlap", f"layers does not go with pipeline stages where prompts run ({stages}); use none"
    if name_of(scenario.scheduler) == "static":
        yield "scheduler", "static runs a batch to its end, but KV arrives meanwhile; use vllm where answers run"


def _each(scenario: Scenario, apart: Disaggregation) -> Iterable[Fact]:
    """Yield what is wrong with the pools; a fact about a field that the prefill devices have of their own is there."""
    both, own = of(scenario), apart.changes()
    widths = [pool.parallelism.tp for pool in both.values()]
    if max(widths) % min(widths):
        path = "disaggregation.parallelism.tp" if "parallelism" in own else "parallelism.tp"
        yield path, (f"prompts run on {widths[0]} devices and answers on {widths[1]}: their shares of the KV do not "
                     f"fit; one number must divide the other")
    for name, pool in both.items():
        for path, fact in fits.facts(pool):
            mine = name == "prefill" and path.split(".")[0] in own
            yield f"disaggregation.{path}" if mine else path, _said(name, fact) if path == "hardware" else fact


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let errors say that they are of the pool *name* ("" is no pool)."""
    try:
        yield
    except ConfigError as error:
        if not name:
            raise
        raise ConfigError([replace(p, fact=_said(name, p.fact)) for p in error.problems]) from None


def _said(name: str, fact: str) -> str:
    return f"the devices that {name}: {fact}"
