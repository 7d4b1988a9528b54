"""The section ``cache`` of a scenario: experts that do not fit are below the device's memory and fetched on a miss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moesim.config import Spec
from moesim.registry import Part, name_of


class ExpertCache(Spec):
    """Device memory as a cache of the tier below it, which holds all experts (docs/background/expert-caches.md).

    ``capacity``: experts that a device keeps, of each layer (scope ``layer``) or of all together (``global``): a
    number, a share of those placed on it ("25%"), or a size of all its caches together ("20 GB"). ``overflow``: of a
    layer that uses more at once than its cache holds: stop, or let what does not fit pass through a workspace.
    ``miss``: fetch what is missed, or let the host's processor compute it where it lies (policy ``static`` alone).
    ``lead``: layers before its own in which a layer's experts are known, and their copies can begin: 0, or 1 (a gate
    that looks ahead and is always right; assumed). ``reroute``: tokens may choose by what is resident.
    """

    capacity: int | str
    policy: Annotated[Any, Part("cache_policy")] = Field(default="lru", validate_default=True)
    scope: Literal["layer", "global"] = "layer"
    overflow: Literal["refuse", "stream"] = "refuse"
    miss: Literal["fetch", "host"] = "fetch"
    lead: Literal[0, 1] = 0
    reroute: Annotated[Any, Part("reroute")] = Field(default="none", validate_default=True)

    @model_validator(mode="after")
    def _decides_as_layers_begin(self) -> ExpertCache:
        if self.rerouted and self.scope == "global":
            raise ValueError("reroute decides for all layers of a pass as it begins, but in scope global what layers "
                             "find depends on those before them; use scope: layer")
        if self.rerouted and self.lead:
            raise ValueError("reroute decides by what is resident, which is not known a layer ahead; leave lead out")
        return self

    @property
    def rerouted(self) -> bool:
        """Whether tokens may use other experts than their gates chose."""
        return name_of(self.reroute) != "none"
