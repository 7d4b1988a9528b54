"""How a replay is set up: what is asked for, the caches and their room; what cannot be replayed is refused here."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from typing import Any, Literal

import numpy as np

from moesim import registry, units
from moesim.memory.events import Events, of_sets, of_trace
from moesim.memory.job import Job
from moesim.memory.terms import CacheError
from moesim.trace import RoutingTrace

Asked = RoutingTrace | Events | Iterable[Iterable[Hashable]]
CONTRACTS = ("event", "sequential")
SCOPES = ("layer", "global")


@dataclasses.dataclass(frozen=True)
class Options:
    """Say how a replay is set up, besides policy and capacity.

    batch         of a trace: requests side by side (default: 1), or a part of kind ``batching``
    scope         ``layer`` (default of traces): each layer has a cache of the capacity; ``global``: one for all
    prefetcher    part of kind ``prefetcher``
    reroute       part of kind ``reroute``: tokens may choose by what is resident
    fit           other requests from which policies and prefetchers may learn: a trace, or a list of sets
    expert_bytes  size of an expert, one number or one per layer: for bytes per token, and for capacities in bytes
    overflow      of events that use more than their cache holds: ``refuse`` them, or ``stream`` what does not fit
    """

    batch: Any = None
    scope: Literal["layer", "global"] | None = None
    prefetcher: Any = "none"
    reroute: Any = "none"
    fit: Any = None
    expert_bytes: Any = None
    overflow: Literal["refuse", "stream"] = "refuse"

    @classmethod
    def of(cls, options: dict[str, Any]) -> Options:
        """Return *options* as a record. Raises ``CacheError``."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise CacheError(f"replay has no option {name!r}{registry.suggest(name, known)}")
        return cls(**options)

    def __post_init__(self) -> None:
        for name, known in (("scope", (*SCOPES, None)), ("overflow", ("refuse", "stream"))):
            if getattr(self, name) not in known:
                raise CacheError(f"{name} is {getattr(self, name)!r}{registry.suggest(getattr(self, name), known)}")


def events_of(events: Asked, batch: Any = None, seed: int = 0) -> Events:
    """Return *events* numbered and in order: the passes that *batch* makes of a trace, or a list of sets.

    Raises ``CacheError`` if there is a batch for what is not a trace.
    """
    if isinstance(events, RoutingTrace):
        return of_trace(events, 1 if batch is None else batch, seed)
    if batch is not None:
        raise CacheError(f"batch is {batch!r}, but these events are put together already; give a routing trace, or no "
                         "batch")
    if isinstance(events, str | bytes) or not isinstance(events, Events | Iterable):
        raise CacheError(f"events are {events!r}; give what moesim.read_trace(path) returns, or a list of sets")
    return events if isinstance(events, Events) else of_sets(events)


def _sequential(events: Events) -> Events:
    if "sequential" not in events.memo:
        events.memo["sequential"] = events.one_by_one()
    return events.memo["sequential"]


def scope_of(events: Events, scope: str | None) -> str:
    """Return the scope: as given, else ``layer`` for traces and ``global`` for sets. Raises ``CacheError``."""
    if scope == "layer" and events.names and not isinstance(events.names[0], tuple):
        raise CacheError("scope is 'layer', but the keys do not say their layer; give keys (layer, expert), those of "
                         "an event of one layer, or scope='global'")
    return scope or ("layer" if events.trace is not None else "global")


def job_of(whole: Events, contract: str, capacity: Any, setup: Options, seed: int) -> Job:
    """Return the replay of *whole* in *contract* on caches of *capacity*. Raises ``CacheError``."""
    if contract not in CONTRACTS:
        raise CacheError(f"contract is {contract!r}{registry.suggest(contract, CONTRACTS)}")
    events, layers = whole if contract == "event" else _sequential(whole), whole.n_layers
    per_layer = scope_of(whole, setup.scope) == "layer"
    cache_of = events.layer_of if per_layer else np.zeros_like(events.layer_of)
    experts = np.bincount(cache_of, minlength=layers if per_layer else 1)
    sizes = None if setup.expert_bytes is None else sizes_of(setup.expert_bytes, layers)
    rooms, in_bytes = rooms_of(capacity, experts, sizes)
    size = sizes[events.layer_of] if in_bytes and sizes is not None else np.ones(len(cache_of))
    fit = setup.fit
    if fit is not None:
        fit = events_of(fit, whole.batching if isinstance(fit, RoutingTrace) else None, seed)
    return Job(whole, events, cache_of, rooms, size.astype(np.int64), fit, seed)


def rooms_of(capacity: Any, experts: np.ndarray, sizes: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """Return the room of each cache, which holds at most *experts*, and whether it is in bytes."""
    if isinstance(capacity, str) and capacity.strip().endswith("%"):
        try:
            share = float(capacity.strip()[:-1]) / 100
        except ValueError:
            share = np.nan
        if not np.isfinite(share):
            raise CacheError(f"capacity is {capacity!r}; write a share as '25%'")
        rooms = np.rint(share * experts).astype(np.int64)
        if not 0 < share <= 1 or not rooms.min():
            raise CacheError(f"capacity is {capacity}, {rooms.min()} of {experts.min()} experts; give a share that "
                             "leaves room for at least one, 100% at most")
        return rooms, False
    if isinstance(capacity, str):
        if sizes is None:
            raise CacheError(f"capacity is {capacity!r}, a size; give expert_bytes= (bytes of one expert) as well")
        try:
            room = units.parse(capacity, "byte")
        except ValueError as error:
            raise CacheError(f"capacity: {error}") from None
        if room / len(experts) < sizes.max():
            raise CacheError(f"capacity is {capacity} for {len(experts)} caches, but one expert takes "
                             f"{units.pretty(float(sizes.max()), 'byte', 4)}; give at least one expert to each cache")
        return np.full(len(experts), int(room // len(experts))), True
    if isinstance(capacity, bool) or not isinstance(capacity, int | np.integer) or capacity < 1:
        raise CacheError(f"capacity is {capacity!r}; give a number of experts from 1, a share ('25%') or a size "
                         "('2 GB')")
    return np.full(len(experts), int(capacity)), False


def sizes_of(given: Any, layers: int) -> np.ndarray:
    """Return the bytes of an expert of each layer, float64 [L]."""
    parsed = [units.parse(v, "byte") if isinstance(v, str) else v for v in np.atleast_1d(given).tolist()]
    sizes = np.asarray(parsed, dtype=np.float64)
    if sizes.size not in (1, layers) or not (np.isfinite(sizes) & (sizes >= 1)).all():
        raise CacheError(f"expert_bytes is {given!r}; give bytes from 1, one number or one per layer ({layers})")
    return np.broadcast_to(sizes, layers)


def needs_of(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Return what each event that uses anything takes and the cache that it asks."""
    used = np.diff(job.events.starts)
    starts = job.events.starts[:-1][used > 0]
    needs = used[used > 0] if (job.size == 1).all() else np.add.reduceat(job.size[job.events.keys], starts)
    return needs, job.cache_of[job.events.keys[starts]]


def refuse_overflow(job: Job, needs: np.ndarray, cache: np.ndarray) -> None:
    """Raise ``CacheError`` if an event *needs* more than its *cache* has room for."""
    over = needs - job.rooms[cache]
    if over.max() > 0:
        worst = int(over.argmax())
        events = np.flatnonzero(np.diff(job.events.starts))
        i = int(events[worst])
        raise CacheError(f"capacity is {job.rooms[cache[worst]]}, but pass {job.events.step[i]} uses {needs[worst]} at "
                         f"once in layer {job.events.layer[i]}; give at least that, or overflow='stream': what does "
                         "not fit is a miss and passes through a workspace (moesim cache: --overflow stream)")
