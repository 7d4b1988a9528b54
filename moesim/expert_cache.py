"""The section ``cache`` of a scenario: experts that do not fit are below the device's memory and fetched on a miss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from moesim.config import Spec
from moesim.registry import Part, name_of
from moesim.units import Bytes

if TYPE_CHECKING:
    from moesim.scenario import Scenario


def _capacity(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"{shown!r} is no capacity; write a number of experts (8), a share ('25%') or a size "
                         "('20 GB')")
    return value


class LowerTier(Spec):
    """A tier below a device's first as a cache of the tier below it; ``capacity``: of each cache, as ``ExpertCache``'s.

    A tier of the host is one cache for the devices of a node. ``below``: the tier below is a cache as well.
    """

    capacity: Annotated[int | str, BeforeValidator(_capacity)]
    policy: Annotated[Any, Part("cache_policy")] = Field(default="lru", validate_default=True)
    scope: Literal["layer", "global"] = "layer"
    below: LowerTier | None = None


class ExpertCache(Spec):
    """Device memory as a cache of the tier below it, which holds all experts (docs/background/expert-caches.md).

    ``capacity``: experts that a device keeps, of each layer (scope ``layer``) or of all together (``global``): a
    number, a share of those placed on it ("25%"), or a size of all its caches together ("20 GB"). ``overflow``: of a
    layer that uses more at once than its cache holds: stop, or let what does not fit pass through a workspace.
    ``miss``: what becomes of experts that are not there (``moesim list miss``).
    ``prefetcher``: what is expected of a layer and fetched before it asks (``moesim list prefetcher``);
    ``prefetch_chunk``: bytes of such a copy that are not interrupted by a demand (left out: whole experts).
    ``below``: the tier below the devices' first does not have all experts, but is a cache of the tier below it.
    ``reroute``: tokens may choose by what is resident.
    """

    capacity: Annotated[int | str, BeforeValidator(_capacity)]
    policy: Annotated[Any, Part("cache_policy")] = Field(default="lru", validate_default=True)
    scope: Literal["layer", "global"] = "layer"
    overflow: Literal["refuse", "stream"] = "refuse"
    miss: Annotated[Any, Part("miss")] = Field(default="fetch", validate_default=True)
    prefetcher: Annotated[Any, Part("prefetcher")] = Field(default="none", validate_default=True)
    prefetch_chunk: Bytes | None = None
    below: LowerTier | None = None
    reroute: Annotated[Any, Part("reroute")] = Field(default="none", validate_default=True)

    @model_validator(mode="after")
    def _goes_together(self) -> ExpertCache:
        if self.prefetch_chunk is not None and name_of(self.prefetcher) == "none":
            raise ValueError("prefetch_chunk is of copies that a prefetcher asks for, and there is none; give a "
                             "prefetcher, or leave it out")
        if self.rerouted and self.scope == "global":
            raise ValueError("reroute decides for all layers of a pass as it begins, but in scope global what layers "
                             "find depends on those before them; use scope: layer")
        if self.rerouted and name_of(self.prefetcher) != "none":
            raise ValueError(f"reroute: the prefetcher {name_of(self.prefetcher)} expects choices that rerouting "
                             f"changes; use none")
        return self

    @property
    def rerouted(self) -> bool:
        """Whether tokens may use other experts than their gates chose."""
        return name_of(self.reroute) != "none"

    @property
    def depth(self) -> int:
        """Number of tiers below the devices' first that are caches of those below them."""
        n, at = 0, self.below
        while at is not None:
            n, at = n + 1, at.below
        return n

    def misfits(self, scenario: Scenario) -> Iterable[tuple[str, str]]:
        """Yield what ``miss`` does not go with in *scenario*: the path of the field, and what is wrong with it."""
        machine, part, name = scenario.hardware, self.miss, name_of(self.miss)
        static = name_of(self.policy) == "static"
        below = [tier.name for tier in (*machine.device.memory[1:], *machine.host)]
        if below and len(below) <= self.depth:
            yield "cache.below", (f"makes {self.depth} tiers below {machine.device.memory[0].name} caches, but "
                                  f"{machine.name} has {', '.join(below)}, and the last has all experts; add a tier")
        if self.below is not None and "host" in part.needs:
            yield "cache.below", f"does not go with miss: {name}: the host computes what it has, and it has not all"
        if "host" in part.needs:
            if machine.host_processor is None or not machine.host or len(machine.device.memory) > 1:
                yield "cache.miss", (f"{name} needs experts in the memory of a host that can compute, and "
                                     f"{machine.name} has none; add hardware.host_processor (and host), or use fetch")
            if scenario.parallelism.expert_tp > 1:
                yield "parallelism.expert_tp", f"does not go with cache.miss: {name} (whole experts); use 1"
        if not part.fetches and not static:
            yield "cache.policy", f"with miss: {name} nothing moves, so nothing can take a place; use static"
        if self.rerouted and "weights" in part.needs:
            yield "cache.miss", f"{name} looks at the weights of the gates' own choices, which reroute swaps; use fetch"
        if name_of(self.prefetcher) != "none" and not (part.fetches and part.whole):
            why = "decides as a step begins, before anything is fetched ahead" if part.fetches else "fetches nothing"
            yield "cache.prefetcher", f"does not go with miss: {name}, which {why}; leave one of them out"
        if not part.whole and not static and self.scope == "global":
            yield "cache.scope", (f"miss: {name} decides for all layers as a step begins, and a cache of all layers "
                                  f"changes from layer to layer; use layer, or policy static")
        if {"ranks", "weights"} & set(part.needs) and scenario.trace is not None and scenario.trace.balanced:
            yield "cache.miss", f"{name} looks at how tokens rank experts, and trace.balanced has no ranks; use a trace"
