"""Real routing of two public models: our statistics equal those measured independently."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moesim import registry, trace_stats
from moesim.trace import RoutingTrace, TraceError, read_trace

pytestmark = pytest.mark.external

COLUMNS = ["load_max_over_mean", "load_variation", "entropy_normalised", "zipf_slope", "affinity_nat",
           "affinity_fraction", "next_top1_hit", "next_top1_hit_popularity", "overlap", "overlap_independent"]
# Measured by an independent script on the same files: means over layers in the order of COLUMNS; least and largest
# load over layers; overlap of the first, middle and last layer
ROWS = {
    "esft_dsv2lite_intent.npz": ([3.8, 0.79, 0.933, 0.84, 1.78, 0.53, 0.52, 0.12, 0.26, 0.15],
                                 (2.9, 4.7), (0.16, 0.31, 0.23)),
    "esft_dsv2lite_summary.npz": ([4.3, 0.74, 0.946, 0.68, 1.20, 0.35, 0.39, 0.15, 0.29, 0.15],
                                  (2.0, 6.5), (0.10, 0.32, 0.34)),
    "gptoss20b_decode_167seq.npz": ([2.8, 0.75, 0.912, 1.12, 1.03, 0.36, 0.42, 0.15, 0.45, 0.20],
                                    (1.9, 4.1), (0.20, 0.61, 0.57)),
}
PRINTED = [0.05, 0.005, 0.0005, *[0.005] * 7]  # half a unit of the last printed digit


@pytest.fixture(scope="module")
def traces(shared_data: Path) -> dict[str, RoutingTrace]:
    return {name: read_trace(shared_data / "routing" / name) for name in ROWS}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_statistics_equal_the_independent_table(traces: dict[str, RoutingTrace], name: str) -> None:
    means, load_range, overlap_ends = ROWS[name]
    table = trace_stats.per_layer(traces[name])
    rounding = np.array(PRINTED) * 1.1
    assert (abs(table[COLUMNS].mean().to_numpy() - means) <= rounding).all(), table[COLUMNS].mean()
    load, overlap = table["load_max_over_mean"], table["overlap"]
    assert (load.min(), load.max()) == pytest.approx(load_range, abs=0.055)
    middle = len(table) // 2
    assert (overlap[0], overlap[middle], overlap[len(table) - 1]) == pytest.approx(overlap_ends, abs=0.0055)


def test_sizes_origin_and_phase(traces: dict[str, RoutingTrace]) -> None:
    sizes = {name: (t.n_tokens, t.n_layers, t.n_experts, t.top_k, len(t.requests)) for name, t in traces.items()}
    assert sizes == {"esft_dsv2lite_intent.npz": (8222, 26, 64, 6, 127),
                     "esft_dsv2lite_summary.npz": (8479, 26, 64, 6, 13),
                     "gptoss20b_decode_167seq.npz": (54354, 24, 32, 4, 167)}
    intent, decode = traces["esft_dsv2lite_intent.npz"], traces["gptoss20b_decode_167seq.npz"]
    assert intent.domains() == ("intent",) and intent.probs is not None
    assert (intent.tokens["phase"] == 0).all() and (intent.tokens["step"] == 0).all()
    assert intent.meta["renormalised"] is False and intent.meta["licence"].startswith("MIT")
    assert intent.meta["moe_layer_indices"] == list(range(1, 27))
    assert len(decode.domains()) == 6 and (decode.tokens["phase"] == 1).all() and decode.probs is None
    assert (decode.tokens["step"] == decode.tokens["position"]).all() and decode.meta["licence"] == "Apache-2.0"


def likeness_of(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)]))


def test_each_domain_resembles_the_published_frequencies_of_its_own_dataset_most(
        shared_data: Path, traces: dict[str, RoutingTrace]) -> None:
    """A twin: use of experts by other samples of the same datasets, counted and published by the trace's authors."""
    with np.load(shared_data / "routing" / "gptoss20b_category_freq.npz") as archive:
        groups = np.array(json.loads(str(archive["names"])))
        frequency, tokens = archive["count_frequency"], archive["sample_count"] * archive["num_think_tokens"]
    trace = traces["gptoss20b_decode_167seq.npz"]
    for dataset, domain in (("gpqa", "gpqa_main"), ("tulu3", "tulu3_persona_if"),
                            ("Polyglot", "Polyglot-or-Not_Fact-Completion")):
        of_dataset = np.char.startswith(groups, dataset)
        published = np.average(frequency[of_dataset], axis=0, weights=tokens[of_dataset])
        likeness = {name: likeness_of(published, trace.of_domain(name).counts()) for name in trace.domains()}
        assert max(likeness, key=likeness.__getitem__) == domain and likeness[domain] > 0.85, likeness


@pytest.mark.parametrize("name", sorted(ROWS))
def test_parquet_keeps_the_bits_and_shuffling_brings_the_null(
        traces: dict[str, RoutingTrace], name: str, tmp_path: Path) -> None:
    trace = traces[name]
    trace.write(tmp_path / "t.parquet")
    back = read_trace(tmp_path / "t.parquet")
    assert back.experts.tobytes() == trace.experts.tobytes() and back.tokens.equals(trace.tokens)
    assert back.meta == trace.meta
    assert trace.probs is None or (back.probs is not None and back.probs.tobytes() == trace.probs.tobytes())
    shuffled = trace_stats.per_layer(registry.make("transform", "shuffle_within_layer").apply(trace, 0))
    assert shuffled["affinity_nat"].abs().max() < 0.02
    assert (shuffled["overlap"] - shuffled["overlap_independent"]).abs().max() < 0.01


def test_files_of_counts_say_that_they_are_no_traces(shared_data: Path) -> None:
    for name, what in (("gptoss20b_category_freq.npz", "how often each expert is used by whole groups of tokens"),
                       ("allenai_olmoe_mixtral_counts.npz", "expert counts and cross-layer pair counts")):
        with pytest.raises(TraceError, match=what):
            read_trace(shared_data / "routing" / name)
