"""A replay in which what is resident decides what tokens use: the events that come about, and what they find."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moesim.memory.arrays import Stream, make_found
from moesim.memory.events import Events
from moesim.memory.job import Job
from moesim.memory.live import looking_back
from moesim.memory.loops import run_choosing
from moesim.memory.swapping import GATE, GIVEN_UP, SWAPPED, Uses, tokens_of
from moesim.memory.terms import CacheError, Rule


@dataclasses.dataclass(frozen=True, eq=False)
class Rerouted:
    """Hold what came about.

    events    with what tokens used in the end
    counts    as ``Found.counts``
    swapped   choices that are not among the best top-k of their token
    given_up  share of the gate probability of the best top-k that is not used
    """

    events: Events
    counts: np.ndarray
    swapped: int
    given_up: float


def check(job: Job, contract: str, prefetcher: str) -> None:
    """Raise ``CacheError`` for a replay in which rerouting has no meaning."""
    if job.whole.trace is None or job.whole.passes is None:
        raise CacheError("reroute needs the ranked candidates of tokens; give a routing trace, not sets of keys")
    if contract != "event":
        raise CacheError("reroute: a layer's tokens choose against what is resident as its event begins; the "
                         "sequential contract has no such moment; use the contract 'event'")
    if prefetcher != "none":
        raise CacheError(f"reroute: the prefetcher {prefetcher} expects choices that rerouting changes; use none")


def rule_of(policy: Any, job: Job) -> Rule:
    """Return the rule of *policy*. Raises ``CacheError`` if it looks at events as they would be without rerouting."""
    try:
        return looking_back(policy, job)
    except CacheError as error:
        raise CacheError(f"reroute changes what comes: {error}") from None


def play(job: Job, rule: Rule, reroute: Any) -> Rerouted:
    """Replay the passes of *job* under *rule*, tokens choosing as the part *reroute* says. Raises ``CacheError``."""
    events, trace, passes = job.events, job.events.trace, job.events.passes
    assert trace is not None and passes is not None, "checked before"
    swap = reroute.swap(trace.top_k)
    tokens = tokens_of(trace, swap)
    most = len(passes.rows) * trace.n_layers * trace.top_k
    starts, keys, uses = np.zeros(len(events.time) + 1, np.int64), np.zeros(most, np.int32), np.zeros(most, np.int32)
    cache = job.cache_of[events.layer * trace.n_experts]
    stream = Stream(starts, keys, events.time, events.step, events.layer, cache,
                    events.fresh[events.step] * np.uint8(rule.resets))
    found = make_found(events.n_layers)
    together = Uses(np.ascontiguousarray(passes.rows, np.int64), np.ascontiguousarray(passes.starts, np.int64), uses,
                    np.zeros(trace.n_experts, np.int32))
    run_choosing(rule.score, swap.pick, tokens, together, stream, job.given(rule), job.store(rule), found)
    kept = dataclasses.replace(events, starts=starts, keys=keys[:starts[-1]], uses=uses[:starts[-1]],
                               weights=np.zeros(0, np.float32))
    tally = tokens.tally
    return Rerouted(kept, found.counts, int(tally[SWAPPED]), float(tally[GIVEN_UP] / tally[GATE]))

