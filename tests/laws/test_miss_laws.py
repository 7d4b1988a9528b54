"""Laws of what becomes of missed experts: limits in which one part is another, choices that add up, no slower than."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moesim
from moesim import registry
from moesim.sim import missing
from moesim.sim.cost import StepCost

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"
HOST = "hardware.host=[{{name: host, capacity: 1 GB, bandwidth: 1 TB/s, link: {{bandwidth: {link} GB/s}}}}]"
CPU = ("hardware.host_processor={{kind: cpu, peak: {{bf16: 10 TFLOP/s}}, bandwidth: {speed} GB/s, multiprocessors: 8}}")
WIDE = ("model.moe.experts=12", "trace.synthetic.experts=12", "model.moe.top_k=3", "trace.synthetic.top_k=3")


@functools.cache
def run(miss: str, *overrides: str, policy: str = "lru", link: float = 1.0, speed: float = 20.0) -> moesim.Result:
    return moesim.simulate(moesim.load(TINY, (
        HOST.format(link=link), CPU.format(speed=speed), *WIDE, "span_steps=0", "requests.count=4",
        f"cache={{capacity: 3, policy: {policy}, overflow: stream, miss: {miss}}}", *overrides)))


@pytest.mark.parametrize(("one", "other", "policy"), [
    ("{name: skip, keep: 3}", "fetch", "lru"),
    ("{name: low_precision, share: 1}", "fetch", "lru"),
    ("{name: low_precision, share: 1, threshold: 0.4}", "fetch", "lfu"),
    ("{name: low_precision, threshold: 0.000001}", "fetch", "lru"),
    ("{name: defer, choices: 0}", "host", "static"),
])
def test_limits(one: str, other: str, policy: str) -> None:
    """Parts that do not use what is theirs are those that have nothing of it: same times, hits and bytes."""
    left, right = (run(miss, policy=policy) for miss in (one, other))
    same = [c for c in right.steps if not c.endswith("_choices")]
    pd.testing.assert_frame_equal(left.steps[same], right.steps[same], rtol=1e-12)
    pd.testing.assert_frame_equal(left.requests, right.requests, rtol=1e-12)
    assert right.steps["expert_misses"].sum() > 12


@pytest.mark.parametrize(("miss", "policy"), [*((name, "static") for name in registry.names("miss")),
                                              ("low_precision", "lru"), ("low_precision", "lfu")])
def test_what_becomes_of_misses_changes_no_hit(miss: str, policy: str) -> None:
    """Where experts stay, or all that is missed comes: hits are those of ``fetch``, which are those of a replay."""
    same = ("requests.concurrency=1", "requests.count=2")  # the same steps, whatever they take
    found, wanted = (run(name, *same, policy=policy).steps for name in (miss, "fetch"))
    columns = ["expert_hits", "expert_misses", "prefill_tokens"]
    pd.testing.assert_frame_equal(found[columns], wanted[columns])


@given(seed=st.integers(0, 50), miss=st.sampled_from(
    ["cheapest", "defer", "skip", "host", "{name: low_precision, threshold: 0.4}"]), nodes=st.sampled_from([1, 2]))
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_engines_agree(seed: int, miss: str, nodes: int) -> None:
    more = () if nodes == 1 else ("hardware.nodes=2", "hardware.scale_out={efficiency: 0.9, startup: 20 us, ramp: 0 s}",
                                  "hardware.fabric={name: leaf_spine, leaves: 2, spines: 3, hosts_per_leaf: 2, "
                                  "link: 10 Gbit/s}")
    steps, events = (run(miss, f"seed={seed}", f"detail={detail}", *more, policy="static", speed=1.0)
                     for detail in ("steps", "events"))
    for table in ("requests", "steps", "memory"):
        pd.testing.assert_frame_equal(getattr(steps, table), getattr(events, table), rtol=1e-9, obj=table)


@given(seed=st.integers(0, 50), link=st.floats(0.1, 50), speed=st.floats(0.5, 200))
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_cheapest_is_no_slower_than_fetch(seed: int, link: float, speed: float) -> None:
    """Where times add up: one device, whose kernels and copies are bound by bytes.

    Against the host alone only so much holds: not by more than the device needs for its hits and shared experts, which
    a host that does everything hides (the rule does not look at them).
    """
    fixed = ("hardware.devices_per_node=1", "requests.concurrency=1", "requests.count=2", "kernels=roofline")
    steps = {miss: run(miss, *fixed, f"seed={seed}", policy="static", link=link, speed=speed).steps
             for miss in ("fetch", "host", "cheapest")}
    length = {miss: table["end_s"] - table["start_s"] for miss, table in steps.items()}
    assert (length["cheapest"] <= length["fetch"] * (1 + 1e-9)).all()
    assert (length["cheapest"] <= (length["host"] + steps["host"]["experts_s"]) * (1 + 1e-9)).all()


@pytest.mark.parametrize("more", [
    (), ("parallelism.tp=2", "parallelism.dispatch=replicated"), ("parallelism.dispatch=all_gather",),
    ("placement.solver={name: eplb, redundant: 4}",)], ids=str)
def test_ranks_and_shares_add_up(more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of a slot are its tokens, replicas or not; every token ranks one expert first; weights are shares."""
    seen, missed = [], missing.Facts.missed

    def noting(self: missing.Facts, cost: StepCost, *others: object) -> object:
        seen.append((cost.expert_tokens.copy(), missed(self, cost, *others)))  # type: ignore[union-attr,arg-type]
        return seen[-1][1]

    monkeypatch.setattr(missing.Facts, "missed", noting)
    run.cache_clear()
    result = run("{name: skip, below: 0.5}", *more)
    assert len(seen) == len(result.steps)
    for tokens, found in seen:
        assert np.array_equal(found.ranks.sum(axis=3), tokens)
        by_rank = found.ranks.sum(axis=(1, 2))  # [M, K]
        assert (by_rank == by_rank[0, 0]).all()
        first = found.ranks[..., 0] > 0
        assert (found.weight[first] >= 1 / 3 - 1e-3).all() and (found.weight <= 1).all()
        assert ((found.weight > 0) == (tokens > 0)).all()
    steps = result.steps
    assert (steps["skipped_choices"] < steps["expert_choices"]).all() and steps["skipped_choices"].sum() > 0
