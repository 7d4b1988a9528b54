"""Laws of choices changed by what is resident: when nothing changes, how much can, engine and replay agree."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moesim
from moesim.memory import CacheStats, events_of, replay
from moesim.memory.events import Passes, of_choices
from moesim.sim import offload
from moesim.sim.engine import Engine
from moesim.sim.inputs import prepare
from moesim.trace import RoutingTrace

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
HOST = ("hardware.host=[{name: host, capacity: 1 GB, bandwidth: 1 TB/s, link: {bandwidth: 10 GB/s}}]",
        "model.moe.experts=12", "model.moe.top_k=3", "trace.scaled=true", "trace.profile_fraction=0.4")


@cache
def ranked(layers: int = 2, experts: int = 12, top_k: int = 3, n_ranked: int = 7, seed: int = 0) -> RoutingTrace:
    """Return a trace of 8 requests whose gates prefer some experts, all probabilities known."""
    rng = np.random.default_rng(seed)
    score = rng.gumbel(size=(8 * 12, layers, experts)) + rng.normal(size=(layers, experts))
    probs = np.exp(score) / np.exp(score).sum(axis=2, keepdims=True)
    order = np.argsort(-probs, axis=2)[:, :, :n_ranked]
    return RoutingTrace.from_arrays(order, experts, top_k, request=np.repeat(np.arange(8), 12),
                                    phase=np.tile([0] * 4 + [1] * 8, 8), probs=np.take_along_axis(probs, order, 2),
                                    model="ranked")


def rerouted(policy: Any, capacity: int, keep: int, window: int | None = None, **options: Any) -> CacheStats:
    part = {"name": "cache_conditional", "keep": keep, "window": window}
    return replay(ranked(), policy, capacity, reroute=part, overflow="stream", **options)


CASES = {"capacity": st.integers(1, 12), "batch": st.sampled_from([1, 3]),
         "scope": st.sampled_from(["layer", "global"]),
         "policy": st.sampled_from(["lru", "lfu", "lfru", "random", "fld"])}


@given(**CASES)
@settings(max_examples=10, deadline=None)
def test_what_swaps_nothing_changes_nothing(capacity: int, batch: int, scope: str, policy: str) -> None:
    plain = replay(ranked(), policy, capacity, batch=batch, scope=scope, overflow="stream")
    for keep, window in ((3, None), (3, 5), (0, 3), (1, 3)):
        same = rerouted(policy, capacity, keep, window, batch=batch, scope=scope)
        assert (same.hits, same.misses, same.swapped, same.given_up) == (plain.hits, plain.misses, 0, 0)


@given(keep=st.integers(0, 3), window=st.integers(3, 7), **CASES)
@settings(max_examples=20, deadline=None)
def test_no_more_is_swapped_than_is_not_kept(keep: int, window: int, capacity: int, batch: int, scope: str,
                                             policy: str) -> None:
    found = rerouted(policy, capacity, keep, window, batch=batch, scope=scope)
    assert 0 <= found.swapped_share <= min(3 - keep, window - 3) / 3
    assert 0 <= found.given_up < 1 and found.logical == 3 * 2 * 96
    assert found.hits + found.misses == found.union <= found.logical


@given(keep=st.integers(0, 2), window=st.integers(3, 6), capacity=st.integers(1, 12), batch=st.sampled_from([1, 3]))
@settings(max_examples=20, deadline=None)
def test_of_one_snapshot_nothing_more_is_missed(keep: int, window: int, capacity: int, batch: int) -> None:
    """Each token misses a part of what it would; with what never moves (static) that holds for the whole replay."""
    fit = {"fit": events_of(ranked(seed=1)), "batch": batch}
    wide, narrow, kept = (rerouted("static", capacity, *how, **fit).misses for how in (
        (keep, window + 1), (keep, window), (keep + 1, window)))
    assert wide <= narrow <= kept <= replay(ranked(), "static", capacity, overflow="stream", **fit).misses


@pytest.mark.parametrize("capacity", [3, 5, 12])
def test_what_comes_first_draws_all_if_nothing_is_kept(capacity: int) -> None:
    """All experts are candidates and none is kept: the first token's stay for ever, however much room there is."""
    part = {"name": "cache_conditional", "keep": 0}
    assert replay(ranked(n_ranked=12), "lru", capacity, reroute=part).misses == 3 * 2


@given(seed=st.integers(0, 100), keep=st.integers(0, 3), window=st.integers(3, 7), capacity=st.integers(1, 8),
       policy=st.sampled_from(["lru", "lfu", "random", "static"]))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_engine_and_replay_agree(seed: int, keep: int, window: int, capacity: int, policy: str,
                                 tmp_path_factory: pytest.TempPathFactory) -> None:
    """One device: the steps of a run, replayed as passes, hit, miss and swap the same."""
    path = tmp_path_factory.mktemp("trace") / "ranked.parquet"
    ranked(seed=seed).write(path)
    reroute = f"{{name: cache_conditional, keep: {keep}, window: {window}}}"
    scenario = moesim.load(TINY, (
        *HOST, "hardware.devices_per_node=1", f"trace={{path: {path}, scaled: true, profile_fraction: 0.4}}",
        f"cache={{capacity: {capacity}, policy: {policy}, overflow: stream, reroute: {reroute}}}", f"seed={seed}"))
    inputs, rows, fresh = prepare(scenario), [], []
    put = offload.Offload.put

    def noting(here: Any, cost: Any, batch: Any, *rest: Any) -> None:
        rows.append(batch.rows)
        fresh.append(len(batch.decode) == 0 and not batch.prefill_past.any())
        put(here, cost, batch, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(offload.Offload, "put", noting)
        result = Engine(inputs).run()
    passes = Passes(np.concatenate(rows), np.append(0, np.cumsum([len(r) for r in rows])), np.array(fresh, np.uint8))
    events = of_choices(inputs.trace, inputs.trace.chosen, passes)
    found = replay(events, policy, capacity, seed=seed, overflow="stream",
                   reroute=scenario.cache.reroute, fit=events_of(inputs.profile))
    steps, shares = result.steps, moesim.metrics.expert_cache(result.steps)
    assert (steps["expert_hits"].sum(), steps["expert_misses"].sum()) == (found.hits, found.misses)
    assert (steps["swapped_choices"].sum(), steps["expert_choices"].sum()) == (found.swapped, found.logical)
    assert shares["swapped_share"] == found.swapped_share
    assert shares["given_up_share"] == pytest.approx(found.given_up, rel=1e-12, abs=1e-15)
    assert any("of the tokens' choices are not those of their gates" in note for note in result.meta["warnings"])


@pytest.mark.parametrize("more", [
    ("parallelism.tp=2", "parallelism.dispatch=replicated"), ("placement={solver: {name: eplb, redundant: 4}}",), ()],
    ids=str)
def test_on_several_devices(more: tuple[str, ...], tmp_path: Path) -> None:
    """Shared experts, replicas, or neither: both engines agree, and more is hit."""
    ranked().write(tmp_path / "ranked.parquet")
    trace = f"trace={{path: {tmp_path / 'ranked.parquet'}, scaled: true, profile_fraction: 0.4}}"
    reroute = "reroute: {name: cache_conditional, keep: 1}"
    runs = [moesim.simulate(moesim.load(TINY, (*HOST, trace, f"cache={{capacity: 3, overflow: stream, {what}}}",
                                               f"detail={detail}", *more)))
            for detail, what in (("steps", reroute), ("events", reroute), ("steps", "reroute: none"))]
    for table in ("requests", "steps", "memory"):
        pd.testing.assert_frame_equal(getattr(runs[0], table), getattr(runs[1], table), rtol=1e-9, obj=table)
    found, plain = (moesim.metrics.expert_cache(run.steps) for run in (runs[0], runs[2]))
    assert 0 < found["swapped_share"] <= 2 / 3 and found["hit_ratio"] > plain["hit_ratio"]
