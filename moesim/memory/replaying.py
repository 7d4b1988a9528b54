"""Replay what a trace asks of expert caches, without a machine: hits and misses of a policy, a capacity, a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moesim import registry
from moesim.memory import rerouting
from moesim.memory.arrays import FETCHED, HITS, MISSES, UNUSED, USED
from moesim.memory.events import Events
from moesim.memory.job import Job
from moesim.memory.setup import Asked, Options, events_of, job_of, needs_of, refuse_overflow, scope_of, sizes_of
from moesim.memory.stats import CacheStats


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
    setup = Options.of(options)
    whole = events_of(events, setup.batch, seed)
    job = job_of(whole, contract, capacity, setup, seed)
    chosen, prefetcher, reroute = (registry.make(*asked) for asked in (
        ("cache_policy", policy), ("prefetcher", setup.prefetcher), ("reroute", setup.reroute)))
    if registry.name_of(reroute) == "none":
        fill = _fill(job, setup)
        job = dataclasses.replace(job, forecast=prefetcher.forecast(job))
        rule = chosen.rule(job)
        counts, changed = job.play(rule).counts, {}
    else:
        rerouting.check(job, contract, registry.name_of(prefetcher))
        rule = rerouting.rule_of(chosen, job)
        found = rerouting.play(job, rule, reroute)
        fill = _fill(dataclasses.replace(job, events=found.events), setup)
        counts, changed = found.counts, {"swapped": found.swapped, "given_up": found.given_up}
    how = {"contract": contract, "scope": scope_of(whole, setup.scope), "policy": registry.dump(chosen),
           "prefetcher": registry.dump(prefetcher), "reroute": registry.dump(reroute),
           "batching": whole.batching, "capacity": capacity, "seed": seed,
           "oracle": rule.oracle or (job.forecast is not None and job.forecast.oracle),
           "policy_oracle": rule.oracle,
           "loaded_before": 0 if rule.held is None else len(rule.held),
           "beyond_room": int((fill > 1).sum()), "mean_fill": float(fill.mean())}
    return _stats(whole, job, counts, how | changed, setup.expert_bytes)


def _fill(job: Job, setup: Options) -> np.ndarray:
    """Return what events that use anything take of their cache's room. Raises ``CacheError`` if too much is refused."""
    needs, cache = needs_of(job)
    if setup.overflow == "refuse":
        refuse_overflow(job, needs, cache)
    return needs / job.rooms[cache]


def _stats(whole: Events, job: Job, found: np.ndarray, how: dict[str, Any], expert_bytes: Any) -> CacheStats:
    hits, misses, ahead = (found[:, column] for column in (HITS, MISSES, FETCHED))
    same = (job.size == job.size[0]).all()
    moved = None if expert_bytes is None else float((misses + ahead) @ sizes_of(expert_bytes, len(hits)))
    return CacheStats(
        hits=int(hits.sum()), misses=int(misses.sum()), events=int((np.diff(whole.starts) > 0).sum()),
        tokens=len(whole.passes.rows) if whole.passes else len(whole.starts) - 1, logical=int(whole.uses.sum()),
        loaded_ahead=int(ahead.sum()), used_ahead=int(found[:, USED].sum()), unused_ahead=int(found[:, UNUSED].sum()),
        layer_hits=hits.copy(), layer_misses=misses.copy(), moved_bytes=moved,
        capacity_experts=float((job.rooms // job.size[0]).sum()) if same else float("nan"), **how)
