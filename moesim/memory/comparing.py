"""Many replays as one table: policies, capacities and batches; what is lost against the best that eviction can do.

Letters: m_c, m_B, m_F misses of the best policy that sees no future, of Belady, and of Belady forced to admit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd

from moesim import registry
from moesim.memory.replaying import replay
from moesim.memory.setup import Asked, events_of
from moesim.memory.terms import CacheError
from moesim.trace import RoutingTrace

BELADY = {"bypass": {"name": "belady"}, "forced": {"name": "belady", "bypass": False}}
SETTING = ["prefetcher", "batching", "batch", "capacity"]


def label(part: Any) -> str:
    """Return the name of *part* with the parameters that are not its defaults: ``belady(bypass=False)``."""
    changed = [f"{field.name}={value!r}" for field in dataclasses.fields(part)
               if (value := getattr(part, field.name)) != field.default]
    return registry.name_of(part) + (f"({', '.join(changed)})" if changed else "")


def compare(events: Asked, policies: Iterable[Any], capacities: Sequence[Any], batches: Sequence[Any] = (None,),
            contract: str = "event", **options: Any) -> pd.DataFrame:
    """Return one row per batch, capacity and policy: ``CacheStats.to_dict`` and what is lost against Belady.

    *options* are those of ``replay``, its ``seed``, and ``jobs`` (threads; default: the processors there are). Belady,
    free and forced to admit, is replayed with the rest, so that there are the columns of ``with_gaps``; always of what
    the gates chose, so that with ``reroute`` the others may miss less. Raises as ``replay`` does.
    """
    jobs, seed = options.pop("jobs", os.cpu_count() or 1), options.pop("seed", 0)
    parts = {label(p): p for p in (registry.make("cache_policy", p) for p in [*policies, *BELADY.values()])}
    if not isinstance(jobs, int) or jobs < 1:
        raise CacheError(f"jobs is {jobs!r}; give a number of threads from 1")
    for name, given in (("capacities", capacities), ("batches", batches)):
        if isinstance(given, str) or not hasattr(given, "__len__") or not len(given):
            raise CacheError(f"{name} are {given!r}; give a list of at least one")
    rows, fixed = [], {label(registry.make("cache_policy", p)): {"reroute": "none"} for p in BELADY.values()}
    with ThreadPoolExecutor(jobs) as pool:
        for batch in batches:
            asked = events_of(events, batch, seed)
            shared = _shared(options, asked.batching, seed)
            _ = asked.next_uses, asked.first_uses  # computed before threads share them
            done = {(c, name): pool.submit(replay, asked, part, c, contract, seed, **shared | fixed.get(name, {}))
                    for c in capacities for name, part in parts.items()}
            rows += [task.result().to_dict() | {"policy": name} for (_, name), task in done.items()]
    return with_gaps(pd.DataFrame(rows))


def _shared(options: dict[str, Any], batch: Any, seed: int) -> dict[str, Any]:
    """Return *options* with the events that policies learn from put together once."""
    fit = options.get("fit")
    return options | {"fit": events_of(fit, batch, seed)} if isinstance(fit, RoutingTrace) else options


def with_gaps(table: pd.DataFrame) -> pd.DataFrame:
    """Return *table* with columns that say how far each setting's policies are from Belady.

    gap               (m_c - m_B) / m_c: what the best policy without a view of the future loses; NaN without one; below
                      0 if rerouting let it miss less than Belady does of what the gates chose (no shares then)
    best_causal       that policy
    admission_share   (m_F - m_B) / (m_c - m_B): what of the gap is not admitting; 0 / 0 is NaN
    victim_share      (m_c - m_F) / (m_c - m_B): the rest: knowing whose next use is furthest
    misses_over_best  misses / m_B of the row
    """
    found = []
    for _, group in table.groupby(SETTING, sort=False, dropna=False):
        misses = group.set_index("policy")["misses"]
        causal = group[~group["policy_oracle"].to_numpy(bool)].set_index("policy")["misses"]
        best, forced = int(misses["belady"]), int(misses["belady(bypass=False)"])
        nearest = causal.idxmin() if len(causal) else None
        lead = float(causal.min()) if len(causal) else float("nan")
        gap = lead - best
        found.append(group.assign(
            best_causal=nearest, gap=gap / lead if lead else float("nan"),
            admission_share=(forced - best) / gap if gap > 0 else float("nan"),
            victim_share=(lead - forced) / gap if gap > 0 else float("nan"),
            misses_over_best=group["misses"] / best if best else float("nan")))
    return pd.concat(found, ignore_index=True)
