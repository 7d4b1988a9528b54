"""What dealing two batches anew saves, by the number of experts: requests of a few subjects, in three ways apart.

A subject uses either as many experts of a layer whatever there are, or a share of them; tokens are dealt every turn,
or whole requests once; batches are of 16 to 128 tokens. None of the three is published.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from moesim.memory import events_of, replay
from moesim.memory.events import Events
from moesim.trace import RoutingTrace

GAINS = {32: 1.03, 64: 1.15, 128: 1.17}  # ExpertFlow (arXiv 2410.17954), Table 2: times the tokens/s, by experts
SLOTS, BATCH = 16, 32  # slots of a layer and batch of its comparison of throughput; of Table 2 not known to us
LAYERS, REQUESTS, TOKENS = 12, 512, 8
KINDS = {"eight": "8 experts", "quarter": "1/4 of the experts"}  # what a subject uses of a layer (assumed)
SUBJECTS, BATCHES = (2, 8, 32), (16, 32, 64, 128)
DEALS = ("turn", "request")
STRAYS = 0.1  # of tokens that go to any expert: assumed


def subjects(experts: int, kind: str, many: int, strays: float = STRAYS, seed: int = 0) -> RoutingTrace:
    """Return a top-1 trace of requests that are about one of *many* subjects each, in no order.

    A subject has favourites in every layer, each as likely: eight, or a quarter of the *experts*.
    """
    rng = np.random.default_rng(seed)
    room = 8 if kind == "eight" else experts // 4
    favourites = np.array([[rng.permutation(experts)[:room] for _ in range(LAYERS)] for _ in range(many)])
    request = np.arange(REQUESTS).repeat(TOKENS)
    subject = (rng.permutation(REQUESTS) % many)[request]
    shape = (len(request), LAYERS)
    chosen = favourites[subject[:, None], np.arange(LAYERS), rng.integers(0, room, shape)]
    chosen = np.where(rng.random(shape) < strays, rng.integers(0, experts, shape), chosen)
    return RoutingTrace.from_arrays(chosen[:, :, None], experts, 1, request=request, phase=1)


def _dealt(trace: RoutingTrace, batch: int, deal: str) -> tuple[Events, Events]:
    """Return the events of two batches as they come, and dealt anew."""
    first, second = (events_of(trace, {"name": "regroup", "size": batch, "deal": deal, "iterations": i})
                     for i in (0, 10))
    return first, second


def scheduler() -> pd.DataFrame:
    """Return which part of the distinct experts of batches, and of LRU's misses, dealing anew saves."""
    rows = []
    for kind, many, experts in itertools.product(KINDS, SUBJECTS, GAINS):
        trace = subjects(experts, kind, many)
        for deal, batch in itertools.product(DEALS, BATCHES):
            both = _dealt(trace, batch, deal)
            misses = [replay(events, "lru", SLOTS, overflow="stream").misses for events in both]
            rows.append({"kind": kind, "subjects": many, "deal": deal, "batch": batch, "experts": experts,
                         "distinct": len(both[0].keys) / (len(both[0].starts) - 1),
                         "fewer_distinct": 1 - len(both[1].keys) / len(both[0].keys),
                         "fewer_misses": 1 - misses[1] / misses[0]})
    return pd.DataFrame(rows)


def strays() -> pd.DataFrame:
    """Return the saved distinct experts of two subjects of eight experts at BATCH: other seeds, other strays."""
    rows = []
    for share, seed, experts in itertools.product((0.0, STRAYS, 0.2), (0, 1, 2), GAINS):
        plain, dealt = _dealt(subjects(experts, "eight", 2, share, seed), BATCH, "turn")
        rows.append({"strays": share, "seed": seed, "experts": experts,
                     "fewer_distinct": 1 - len(dealt.keys) / len(plain.keys)})
    return pd.DataFrame(rows)
