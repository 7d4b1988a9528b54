"""What a replay found: hits and misses, and what they mean in shares of the logical demand and in bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class CacheStats:
    """Hold the counts of one replay and how they were taken.

    hits, misses    distinct experts of events that were resident when the event began, or were not
    events          layers of passes in which at least one expert was used
    tokens          token rows; events, for a list of sets
    logical         expert uses before tokens of an event share one: tokens x layers x top-k
    loaded_ahead    loads that a prefetcher asked for; ``used_ahead`` were used, ``unused_ahead`` evicted before
    loaded_before   experts that are there before the first event (``static``)
    beyond_room     events that use more than their cache holds
    mean_fill       mean over events of what they use / room of their cache
    layer_hits, layer_misses  int64 [L]
    contract        ``event``: an event is classified against one snapshot; ``sequential``: one expert after the other
    scope           ``layer``: a cache for each layer; ``global``: one for all
    policy, prefetcher, batching  mappings from which ``registry.make`` builds the parts
    capacity        as it was given
    capacity_experts  experts that fit, all caches together; NaN if their sizes differ
    oracle          policy or prefetcher sees what has not happened yet; ``policy_oracle`` the policy does
    reroute         mapping of the part that lets tokens choose by what is resident
    swapped         choices that it changed; ``given_up``: share of the gate probability of the best top-k not used
    moved_bytes     bytes of what was missed or loaded ahead; None if sizes were not given
    """

    hits: int
    misses: int
    events: int
    tokens: int
    logical: int
    loaded_ahead: int
    used_ahead: int
    unused_ahead: int
    loaded_before: int
    beyond_room: int
    mean_fill: float
    layer_hits: np.ndarray
    layer_misses: np.ndarray
    contract: str
    scope: str
    policy: dict[str, Any]
    prefetcher: dict[str, Any]
    batching: dict[str, Any] | None
    capacity: Any
    capacity_experts: float
    seed: int
    oracle: bool
    policy_oracle: bool
    reroute: dict[str, Any]
    swapped: int = 0
    given_up: float = 0.0
    moved_bytes: float | None = None

    @property
    def union(self) -> int:
        """Return the distinct experts of events, summed: what is asked for after tokens of an event share experts."""
        return self.hits + self.misses

    @property
    def hit_ratio(self) -> float:
        """Return hits / union."""
        return self.hits / self.union

    @property
    def miss_fraction(self) -> float:
        """Return the effective miss fraction: misses / logical. Batches differ in it by sharing as well."""
        return self.misses / self.logical

    @property
    def swapped_share(self) -> float:
        """Return swapped / logical: the part of all choices that are not the gate's."""
        return self.swapped / self.logical

    @property
    def sharing(self) -> float:
        """Return union / logical: 1 if no two tokens of an event use the same expert."""
        return self.union / self.logical

    @property
    def loads(self) -> int:
        """Return experts moved while replaying: misses and loads ahead."""
        return self.misses + self.loaded_ahead

    @property
    def bytes_per_token(self) -> float | None:
        """Return the bytes moved per token; None if sizes were not given."""
        return None if self.moved_bytes is None else self.moved_bytes / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and names as one flat row of a table; parts by their names."""
        names = ("contract", "scope", "capacity", "capacity_experts", "seed", "oracle", "policy_oracle", "events",
                 "tokens", "logical", "union", "hits", "misses", "hit_ratio", "swapped_share", "given_up",
                 "miss_fraction", "sharing", "mean_fill", "beyond_room", "loaded_ahead", "used_ahead", "unused_ahead",
                 "loaded_before", "loads", "bytes_per_token")
        parts = {key: None if (value := getattr(self, key)) is None else value["name"]
                 for key in ("policy", "prefetcher", "batching", "reroute")}
        size = {"batch": (self.batching or {}).get("size")}
        return parts | size | {name: getattr(self, name) for name in names}
