"""Statistics of routing against values worked by hand."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from moesim import trace_stats
from moesim.trace import RoutingTrace

# One request, four tokens, two layers, four experts, two used. Layer 0 counts: 4 2 1 1; layer 1: 2 2 2 2.
EXPERTS = [
    [[0, 1], [0, 1]],
    [[0, 2], [0, 1]],
    [[1, 0], [2, 3]],
    [[0, 3], [2, 3]],
]
TRACE = RoutingTrace.from_arrays(EXPERTS, n_experts=4, top_k=2)


def test_load_by_hand() -> None:
    assert trace_stats.load_imbalance(TRACE).tolist() == [2.0, 1.0]  # max 4, mean 8 / 4
    assert trace_stats.load_variation(TRACE) == pytest.approx([1.5**0.5 / 2, 0])  # variance (4 + 0 + 1 + 1) / 4
    assert trace_stats.normalised_entropy(TRACE) == pytest.approx([1.75 * log(2) / log(4), 1])  # 1/2 1/4 1/8 1/8


def test_zipf_slope_of_a_zipf_law_is_its_exponent() -> None:
    counts = (10000 / np.arange(1, 9) ** 1.2).astype(int)
    experts = np.repeat(np.arange(8), counts)[:, None, None]
    assert trace_stats.zipf_slope(RoutingTrace.from_arrays(experts, 8, 1)) == pytest.approx([1.2], abs=1e-3)
    alone = RoutingTrace.from_arrays(np.zeros((5, 1, 1), int), 8, 1)
    assert np.isnan(trace_stats.zipf_slope(alone)).all()


def test_mutual_information_by_hand() -> None:
    # top-1 pairs: (0,0) (0,0) (1,2) (0,2); H(first) of 3/4, 1/4, H(second) of 1/2, 1/2, H(pairs) of 1/2 1/4 1/4
    first = -(0.75 * log(0.75) + 0.25 * log(0.25))
    assert trace_stats.mutual_information(TRACE) == pytest.approx([first + log(2) - 1.5 * log(2)])
    assert trace_stats.top1_entropy(TRACE) == pytest.approx([first, log(2)])
    hit, popularity = trace_stats.predictability(TRACE)
    assert (hit.tolist(), popularity.tolist()) == ([0.75], [0.5])  # after 0: 0 (2 of 3), after 1: 2 (1 of 1)


def test_mutual_information_of_a_copy_is_the_entropy_and_its_null_the_plug_in_bias() -> None:
    top1 = np.random.default_rng(0).integers(0, 8, size=(4000, 1, 1))
    copy = RoutingTrace.from_arrays(top1.repeat(2, axis=1), 8, 1)
    assert trace_stats.mutual_information(copy) == pytest.approx(trace_stats.top1_entropy(copy)[:1])
    bias = (8 - 1) ** 2 / (2 * 4000)  # Miller-Madow: (cells - 1)(cells - 1) / 2T
    assert trace_stats.mutual_information_null(copy, repeats=20) == pytest.approx([bias], rel=0.2)
    assert trace_stats.affinity(copy) == pytest.approx(trace_stats.top1_entropy(copy)[:1] - bias, rel=0.01)


def test_overlap_by_hand() -> None:
    # layer 0: {01}{02}{10}{03}: 1, 1, 1 shared of 2; layer 1: {01}{01}{23}{23}: 2, 0, 2
    assert trace_stats.consecutive_overlap(TRACE) == pytest.approx([3 / 6, 4 / 6])
    # shares of tokens: layer 0: 1, 1/2, 1/4, 1/4; layer 1: 1/2 each
    assert trace_stats.independent_overlap(TRACE) == pytest.approx([(1 + 1 / 4 + 1 / 8) / 2, 1 / 2])


def test_overlap_only_looks_at_neighbours_of_one_request() -> None:
    experts = np.zeros((4, 1, 1), int)
    gap = RoutingTrace.from_arrays(experts, 2, 1, request=[0, 1, 0, 1], position=[0, 0, 2, 1])
    assert trace_stats.consecutive_overlap(gap).tolist() == [1.0]  # request 1 only
    apart = RoutingTrace.from_arrays(experts, 2, 1, request=range(4))
    assert np.isnan(trace_stats.consecutive_overlap(apart)).all()


def test_coactivation_by_hand() -> None:
    together = trace_stats.coactivation(TRACE)
    assert together.tolist() == [
        [[4, 2, 1, 1], [2, 2, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]],
        [[2, 2, 0, 0], [2, 2, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2]]]


def test_tables_have_one_row_per_layer_and_their_means() -> None:
    table = trace_stats.per_layer(TRACE)
    assert table.index.tolist() == [0, 1] and table["affinity_nat"].isna().tolist() == [False, True]
    summary = trace_stats.summary(TRACE)
    assert summary["tokens"] == 4 and summary["requests"] == 1 and summary["layers"] == 2
    assert summary["load_max_over_mean"] == 1.5 and summary["next_top1_hit"] == 0.75
    assert list(summary.index[5:]) == list(table.columns)


def test_a_trace_of_one_layer_and_one_expert_has_a_summary() -> None:
    summary = trace_stats.summary(RoutingTrace.from_arrays(np.zeros((3, 1, 1), int), 1, 1))
    assert summary["load_max_over_mean"] == 1 and np.isnan(summary["affinity_nat"])


def test_step_counts_by_hand() -> None:
    trace = RoutingTrace.from_arrays(EXPERTS, 4, 1, request=[0, 0, 1, 1], phase=[0, 1, 0, 1])
    steps, counts = trace_stats.step_counts(trace)
    assert steps.tolist() == [0, 1]
    assert counts.tolist() == [[[1, 1, 0, 0], [1, 0, 1, 0]], [[2, 0, 0, 0], [1, 0, 1, 0]]]
    assert (counts[1] == trace.counts(step=1)).all()
