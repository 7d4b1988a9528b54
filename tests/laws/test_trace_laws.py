"""Laws of routing traces: conservation, round trip, split, what shuffling does; loops equal their numpy twins."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import registry, trace_loops, trace_stats
from moesim.synthetic import SyntheticTrace
from moesim.trace import RoutingTrace, TraceError, read_trace


@st.composite
def traces(draw: st.DrawFn, min_requests: int = 1) -> RoutingTrace:
    tokens, layers = draw(st.integers(min_requests, 40)), draw(st.integers(1, 4))
    n_experts = draw(st.integers(1, 12))
    n_ranked = draw(st.integers(1, n_experts))
    top_k = draw(st.integers(1, n_ranked))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    experts = np.argsort(rng.random((tokens, layers, n_experts)), axis=2)[:, :, :n_ranked]
    probs = np.sort(rng.random((tokens, layers, n_ranked)), axis=2)[:, :, ::-1] if draw(st.booleans()) else None
    ids = rng.choice(1000, size=draw(st.integers(min_requests, tokens)), replace=False)
    request = np.concatenate([ids, rng.choice(ids, tokens - len(ids))])  # every id occurs, rows interleaved
    phase = rng.integers(0, 2) if draw(st.booleans()) else 0
    domain = draw(st.sampled_from([None, "code", "per request"]))
    if domain == "per request":
        domain = [f"domain {r % 3}" for r in request]
    return RoutingTrace.from_arrays(experts, n_experts, top_k, request=request, phase=phase, probs=probs, domain=domain,
                                    model="law", note={"nested": [1, 2.5, None, "é"]})


def same(a: RoutingTrace, b: RoutingTrace) -> None:
    pd.testing.assert_frame_equal(a.tokens, b.tokens)
    assert a.experts.dtype == b.experts.dtype and a.experts.tobytes() == b.experts.tobytes()
    assert (a.probs is None) == (b.probs is None)
    assert a.probs is None or b.probs is None or a.probs.tobytes() == b.probs.tobytes()
    assert (a.n_experts, a.top_k, a.meta) == (b.n_experts, b.top_k, b.meta)


@given(traces())
def test_routed_ids_are_conserved(trace: RoutingTrace) -> None:
    routed = trace.n_tokens * trace.top_k
    assert (trace.counts().sum(axis=1) == routed).all()
    assert (trace.transitions().sum(axis=(1, 2)) == trace.n_tokens).all()
    assert (trace.transitions(top1=False).sum(axis=(1, 2)) == trace.n_tokens * trace.top_k**2).all()
    steps, counts = trace_stats.step_counts(trace)
    assert steps.tolist() == sorted(set(trace.tokens["step"]))
    assert (counts.sum(axis=0) == trace.counts()).all()
    together = trace_stats.coactivation(trace)
    assert (together == together.transpose(0, 2, 1)).all()
    assert (np.diagonal(together, axis1=1, axis2=2) == trace.counts()).all()


@settings(deadline=None)
@given(traces())
def test_parquet_gives_back_the_same_bits(trace: RoutingTrace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        trace.write(path)
        same(read_trace(path), trace)
        streamed, whole = trace_stats.step_counts(path), trace_stats.step_counts(trace)
        assert (streamed[0] == whole[0]).all() and (streamed[1] == whole[1]).all()


@given(traces(min_requests=2), st.floats(0.01, 0.99), st.integers(0, 2**70))
def test_the_split_is_disjoint_and_complete(trace: RoutingTrace, fraction: float, seed: int) -> None:
    seen, unseen = trace.profile(fraction, seed), trace.evaluation(fraction, seed)
    assert not set(seen.requests) & set(unseen.requests)
    assert set(seen.requests) | set(unseen.requests) == set(trace.requests)
    assert seen.n_tokens + unseen.n_tokens == trace.n_tokens
    assert (seen.counts() + unseen.counts() == trace.counts()).all()
    assert abs(len(seen.requests) - fraction * len(trace.requests)) <= 1
    same(seen, trace.profile(fraction, seed))


@given(traces(), st.integers(0, 2**32))
def test_shuffling_within_layers_keeps_the_counts(trace: RoutingTrace, seed: int) -> None:
    shuffled = registry.make("transform", "shuffle_within_layer").apply(trace, seed)
    assert (shuffled.counts() == trace.counts()).all()
    assert (trace_stats.coactivation(shuffled) == trace_stats.coactivation(trace)).all()


@given(traces(), st.integers(0, 2**32))
def test_relabelling_experts_keeps_every_statistic(trace: RoutingTrace, seed: int) -> None:
    relabelled = registry.make("transform", "relabel_experts").apply(trace, seed)
    assert (np.sort(relabelled.counts()) == np.sort(trace.counts())).all()
    for statistic in (trace_stats.load_imbalance, trace_stats.normalised_entropy, trace_stats.zipf_slope,
                      trace_stats.mutual_information, trace_stats.consecutive_overlap, trace_stats.independent_overlap):
        np.testing.assert_allclose(statistic(relabelled), statistic(trace), rtol=1e-9, atol=1e-12)


@given(traces())
def test_bounds_of_the_statistics(trace: RoutingTrace) -> None:
    eps = 1e-9
    load = trace_stats.load_imbalance(trace)
    assert (load >= 1 - eps).all() and (load <= trace.n_experts / trace.top_k + eps).all()
    entropy, top1 = trace_stats.normalised_entropy(trace), trace_stats.top1_entropy(trace)
    assert (entropy >= -eps).all() and (entropy <= 1 + eps).all()
    information = trace_stats.mutual_information(trace)
    assert (information >= -eps).all() and (information <= np.minimum(top1[1:], top1[:-1]) + eps).all()
    following, popular = trace_stats.predictability(trace)
    assert (following >= popular - eps).all() and (following <= 1 + eps).all()


def test_shuffling_brings_mutual_information_to_the_null_and_overlap_to_independence() -> None:
    trace = SyntheticTrace(preset="gpt_oss_20b", requests=32, prompt_tokens=256, output_tokens=0, layers=6).generate()
    shuffled = registry.make("transform", "shuffle_within_layer").apply(trace, 1)
    before, after = trace_stats.per_layer(trace), trace_stats.per_layer(shuffled)
    assert before["affinity_nat"].min() > 0.5
    assert after["affinity_nat"].abs().max() < 0.01
    assert (before["overlap"] - before["overlap_independent"]).min() > 0.1
    assert (after["overlap"] - after["overlap_independent"]).abs().max() < 0.01


@given(traces(), st.integers(0, 2**32), st.sampled_from(["range", "repeat", "both"]))
def test_the_first_bad_choice_is_the_same_for_loop_and_numpy(trace: RoutingTrace, seed: int, kind: str) -> None:
    rng, experts = np.random.default_rng(seed), trace.experts.copy()
    assert trace_loops.first_bad_choice(trace.experts, trace.n_experts) == (trace_loops.FINE, -1, -1)
    for _ in range(rng.integers(1, 4)):
        row, layer = rng.integers(trace.n_tokens), rng.integers(trace.n_layers)
        if kind != "range" and trace.n_ranked > 1:
            experts[row, layer, rng.integers(1, trace.n_ranked)] = experts[row, layer, 0]
        if kind != "repeat":
            experts[row, layer, rng.integers(trace.n_ranked)] = trace.n_experts + rng.integers(3)
    experts.flags.writeable = False
    found = trace_loops.first_bad_choice(experts, trace.n_experts)
    assert found == trace_loops.first_bad_choice_numpy(experts, trace.n_experts)
    if found[0] != trace_loops.FINE:
        with pytest.raises(TraceError, match=f"token row {found[1]}, layer {found[2]}: "):
            RoutingTrace.from_arrays(experts, trace.n_experts, trace.top_k, request=trace.tokens["request"])


@given(traces(), st.integers(0, 2**32))
def test_counting_loops_equal_their_numpy_twins(trace: RoutingTrace, seed: int) -> None:
    layers, n_experts, rng = trace.n_layers, trace.n_experts, np.random.default_rng(seed)
    slots = rng.integers(0, 5, trace.n_tokens)
    pairs = rng.integers(0, trace.n_tokens, size=(2, 7))
    for name, shape, arguments in (
            ("add_step_counts", (5, layers, n_experts), (trace.top_k, slots)),
            ("add_transitions", (layers - 1, n_experts, n_experts), (trace.top_k,)),
            ("add_coactivations", (layers, n_experts, n_experts), (trace.top_k,)),
            ("add_overlaps", (layers,), (trace.top_k, pairs[0], pairs[1]))):
        loop, twin = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        getattr(trace_loops, name)(trace.experts, *arguments, loop)
        getattr(trace_loops, f"{name}_numpy")(trace.experts, *arguments, twin)
        assert (loop == twin).all(), name
