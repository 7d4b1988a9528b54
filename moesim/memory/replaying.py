"""Replay what a trace asks of expert caches, without a machine: hits and misses of a policy, a capacity, a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from typing import Any, Literal

import numpy as np

from moesim import registry, units
from moesim.memory.events import Events, of_sets, of_trace
from moesim.memory.job import Job
from moesim.memory.loops import FETCHED, HITS, MISSES, UNUSED, USED
from moesim.memory.stats import CacheStats
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
    fit           other requests from which policies and prefetchers may learn: a trace, or a list of sets
    expert_bytes  size of an expert, one number or one per layer: for bytes per token, and for capacities in bytes
    overflow      of events that use more than their cache holds: ``refuse`` them, or ``stream`` what does not fit
    """

    batch: Any = None
    scope: Literal["layer", "global"] | None = None
    prefetcher: Any = "none"
    fit: Any = None
    expert_bytes: Any = None
    overflow: Literal["refuse", "stream"] = "refuse"

    def __post_init__(self) -> None:
        for name, known in (("scope", (*SCOPES, None)), ("overflow", ("refuse", "stream"))):
            if getattr(self, name) not in known:
                raise CacheError(f"{name} is {getattr(self, name)!r}{registry.suggest(getattr(self, name), known)}")


def replay(events: Asked, policy: Any = "lru", capacity: Any = 1, contract: str = "event", seed: int = 0,
           **options: Any) -> CacheStats:
    """Replay *events* on caches of *capacity* that evict by *policy*; return what they hit and missed.

    *events*: a routing trace, a list of sets of keys, or what ``events_of`` made of one (faster if it is used again).
    *capacity*: a number of experts, a share of them ("25%"), or a size ("2 GB") with ``expert_bytes``; of each layer's
    cache, or of the one cache in scope ``global`` - a size is always that of all caches together.
    *contract*: ``event``: the experts of a (pass, layer) are classified against what is resident when it begins, then
    what was missed is admitted; ``sequential``: one expert after the other, ascending, each with its own eviction.
    Sequential replay punishes LRU and its kin: use it only to compare with work that does. *options*: see ``Options``.

    Raises ``CacheError`` or ``registry.UnknownPart``.
    """
    if contract not in CONTRACTS:
        raise CacheError(f"contract is {contract!r}{registry.suggest(contract, CONTRACTS)}")
    unknown = sorted(options.keys() - {f.name for f in dataclasses.fields(Options)})
    if unknown:
        raise CacheError(f"replay has no option {unknown[0]!r}"
                         f"{registry.suggest(unknown[0], [f.name for f in dataclasses.fields(Options)])}")
    setup = Options(**options)
    whole = events_of(events, setup.batch, seed)
    job = _job(whole, contract, capacity, setup, seed)
    if setup.overflow == "refuse":
        _refuse_overflow(job)
    chosen, prefetcher = registry.make("cache_policy", policy), registry.make("prefetcher", setup.prefetcher)
    forecast = prefetcher.forecast(job)
    job = dataclasses.replace(job, forecast=forecast)
    rule = chosen.rule(job)
    found = job.play(rule).counts
    how = {"contract": contract, "policy": registry.dump(chosen), "prefetcher": registry.dump(prefetcher),
           "batching": whole.batching, "capacity": capacity, "seed": seed,
           "scope": _scope(whole, setup.scope),
           "oracle": rule.oracle or (forecast is not None and forecast.oracle),
           "loaded_before": 0 if rule.held is None else len(rule.held)}
    return _stats(whole, job, found, how, setup.expert_bytes)


def events_of(events: Asked, batch: Any = None, seed: int = 0) -> Events:
    """Return *events* numbered and in order: the passes that *batch* makes of a trace, or a list of sets.

    Raises ``CacheError`` if there is a batch for what is not a trace.
    """
    if isinstance(events, RoutingTrace):
        return of_trace(events, 1 if batch is None else batch, seed)
    if batch is not None:
        raise CacheError(f"batch is {batch!r}, but these events are put together already; give a routing trace, or no "
                         "batch")
    return events if isinstance(events, Events) else of_sets(events)


def _sequential(events: Events) -> Events:
    if "sequential" not in events.memo:
        events.memo["sequential"] = events.one_by_one()
    return events.memo["sequential"]


def _scope(events: Events, scope: str | None) -> str:
    if scope == "layer" and events.names and not isinstance(events.names[0], tuple):
        raise CacheError("scope is 'layer', but the keys do not say their layer; give keys (layer, expert), those of "
                         "an event of one layer, or scope='global'")
    return scope or ("layer" if events.trace is not None else "global")


def _job(whole: Events, contract: str, capacity: Any, setup: Options, seed: int) -> Job:
    events, layers = whole if contract == "event" else _sequential(whole), whole.n_layers
    per_layer = _scope(whole, setup.scope) == "layer"
    cache_of = events.layer_of if per_layer else np.zeros_like(events.layer_of)
    experts = np.bincount(cache_of, minlength=layers if per_layer else 1)
    sizes = None if setup.expert_bytes is None else _sizes(setup.expert_bytes, layers)
    rooms, in_bytes = _rooms(capacity, experts, sizes)
    size = sizes[events.layer_of] if in_bytes and sizes is not None else np.ones(len(cache_of))
    fit = setup.fit
    if fit is not None:
        fit = events_of(fit, whole.batching if isinstance(fit, RoutingTrace) else None, seed)
    return Job(whole, events, cache_of, rooms, size.astype(np.int64), fit, seed)


def _rooms(capacity: Any, experts: np.ndarray, sizes: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """Return the room of each cache, which holds at most *experts*, and whether it is in bytes."""
    if isinstance(capacity, str) and capacity.strip().endswith("%"):
        try:
            share = float(capacity.strip()[:-1]) / 100
        except ValueError:
            raise CacheError(f"capacity is {capacity!r}; write a share as '25%'") from None
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


def _sizes(given: Any, layers: int) -> np.ndarray:
    """Return the bytes of an expert of each layer, float64 [L]."""
    parsed = [units.parse(v, "byte") if isinstance(v, str) else v for v in np.atleast_1d(given).tolist()]
    sizes = np.asarray(parsed, dtype=np.float64)
    if sizes.size not in (1, layers) or not (np.isfinite(sizes) & (sizes >= 1)).all():
        raise CacheError(f"expert_bytes is {given!r}; give bytes from 1, one number or one per layer ({layers})")
    return np.broadcast_to(sizes, layers)


def _needs(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Return what each event that uses anything takes and the cache that it asks."""
    starts = job.events.starts[:-1][np.diff(job.events.starts) > 0]
    return np.add.reduceat(job.size[job.events.keys], starts), job.cache_of[job.events.keys[starts]]


def _refuse_overflow(job: Job) -> None:
    needs, cache = _needs(job)
    over = needs - job.rooms[cache]
    if over.max() > 0:
        worst = int(over.argmax())
        events = np.flatnonzero(np.diff(job.events.starts))
        i = int(events[worst])
        raise CacheError(f"capacity is {job.rooms[cache[worst]]}, but pass {job.events.step[i]} uses {needs[worst]} at "
                         f"once in layer {job.events.layer[i]}; give at least that, or overflow='stream': what does "
                         "not fit is a miss and passes through a workspace (moesim cache: --overflow stream)")


def _stats(whole: Events, job: Job, found: np.ndarray, how: dict[str, Any], expert_bytes: Any) -> CacheStats:
    hits, misses, ahead = (found[:, column] for column in (HITS, MISSES, FETCHED))
    needs, cache = _needs(job)
    same = (job.size == job.size[0]).all()
    moved = None if expert_bytes is None else float((misses + ahead) @ _sizes(expert_bytes, len(hits)))
    return CacheStats(
        hits=int(hits.sum()), misses=int(misses.sum()), events=int((np.diff(whole.starts) > 0).sum()),
        tokens=len(whole.passes.rows) if whole.passes else len(whole.starts) - 1, logical=int(whole.uses.sum()),
        loaded_ahead=int(ahead.sum()), used_ahead=int(found[:, USED].sum()), unused_ahead=int(found[:, UNUSED].sum()),
        beyond_room=int((needs > job.rooms[cache]).sum()), mean_fill=float((needs / job.rooms[cache]).mean()),
        layer_hits=hits.copy(), layer_misses=misses.copy(), moved_bytes=moved,
        capacity_experts=float((job.rooms // job.size[0]).sum()) if same else float("nan"), **how)
