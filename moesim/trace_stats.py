"""Statistics of routing: load, entropy, what one layer says about the next, what a token shares with the last.

Numbers of real models to compare with are in docs/howto/get-routing-traces.md; an external test reproduces them.
"top-1" is the candidate of largest probability; "load" counts all K used experts. Letters: T tokens, L MoE
layers, K = top-k, E experts. Every function of one layer returns [L], of two adjacent layers [L-1].
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from moesim.trace import RoutingTrace, read_trace
from moesim.trace_file import is_trace_file, read_column, read_meta, scan


def load_imbalance(trace: RoutingTrace) -> np.ndarray:
    """Return tokens of the busiest expert / mean over experts, [L]; 1 is balanced, E/K the worst possible."""
    counts = trace.counts()
    return counts.max(axis=1) / (counts.sum(axis=1) / trace.sizes)


def load_variation(trace: RoutingTrace) -> np.ndarray:
    """Return the standard deviation of the tokens per expert / their mean, [L]."""
    rows = [row[:size] for row, size in zip(trace.counts(), trace.sizes, strict=True)]
    return np.array([row.std() / row.mean() for row in rows])


def normalised_entropy(trace: RoutingTrace) -> np.ndarray:
    """Return the entropy of the experts' share of the load / ln E, [L]; 1 is balanced."""
    most = np.log(trace.sizes)
    return np.divide(_entropy(trace.counts()), most, out=np.zeros(trace.n_layers), where=most > 0)


def zipf_slope(trace: RoutingTrace) -> np.ndarray:
    """Return s of the line ln(tokens) = c - s ln(rank) through all used experts, [L]; NaN with fewer than two."""
    slopes = np.full(trace.n_layers, np.nan)
    for layer, counts in enumerate(np.sort(trace.counts(), axis=1)[:, ::-1]):
        used = counts[counts > 0]
        if len(used) > 1:
            x = np.log(np.arange(1, len(used) + 1))
            x -= x.mean()
            slopes[layer] = -(x @ np.log(used)) / (x @ x)
    return slopes


def mutual_information(trace: RoutingTrace) -> np.ndarray:
    """Return the plug-in mutual information of adjacent layers' top-1 experts in nats, [L-1].

    It is biased upwards by about (E-1)^2 / 2T; subtract ``mutual_information_null``.
    """
    return _mutual_information(trace.transitions())


def mutual_information_null(trace: RoutingTrace, seed: int = 0, repeats: int = 2) -> np.ndarray:
    """Return what ``mutual_information`` gives after shuffling the tokens of one layer, mean of *repeats*, [L-1]."""
    rng = np.random.default_rng(seed)
    n_experts, top1 = trace.n_experts, trace.experts[:, :, 0].astype(np.int64)
    null = np.zeros(trace.n_layers - 1)
    for layer in range(trace.n_layers - 1):
        for _ in range(repeats):
            pairs = top1[:, layer] * n_experts + rng.permutation(top1[:, layer + 1])
            joint = np.bincount(pairs, minlength=n_experts**2).reshape(1, n_experts, n_experts)
            null[layer] += _mutual_information(joint)[0] / repeats
    return null


def affinity(trace: RoutingTrace, seed: int = 0) -> np.ndarray:
    """Return mutual information minus its shuffled null, in nats, [L-1]."""
    return mutual_information(trace) - mutual_information_null(trace, seed)


def top1_entropy(trace: RoutingTrace) -> np.ndarray:
    """Return the entropy of the top-1 expert in nats, [L]: the bound of ``affinity``."""
    return _entropy(_top1_counts(trace))


def predictability(trace: RoutingTrace) -> tuple[np.ndarray, np.ndarray]:
    """Return how often the most likely top-1 successor is right, and the most popular expert is, [L-1] each."""
    following = trace.transitions().max(axis=2).sum(axis=1) / trace.n_tokens
    return following, _top1_counts(trace)[1:].max(axis=1) / trace.n_tokens


def consecutive_overlap(trace: RoutingTrace) -> np.ndarray:
    """Return |S_t & S_(t-1)| / K, mean over neighbouring positions of a request, [L]; NaN without any."""
    from moesim.trace_loops import add_overlaps

    earlier, later = _neighbours(trace)
    if not len(later):
        return np.full(trace.n_layers, np.nan)
    shared = np.zeros(trace.n_layers, dtype=np.int64)
    add_overlaps(trace.experts, trace.top_k, earlier, later, shared)
    return shared / (len(later) * trace.top_k)


def independent_overlap(trace: RoutingTrace) -> np.ndarray:
    """Return the overlap of two tokens that choose independently with the trace's popularity, [L]."""
    return ((trace.counts() / trace.n_tokens) ** 2).sum(axis=1) / trace.top_k


def coactivation(trace: RoutingTrace) -> np.ndarray:
    """Return how many tokens use both experts i and j of a layer, int64 [L, E, E]; the diagonal is the load."""
    from moesim.trace_loops import add_coactivations

    counts = np.zeros((trace.n_layers, trace.n_experts, trace.n_experts), dtype=np.int64)
    add_coactivations(trace.experts, trace.top_k, counts)
    return counts


def per_layer(trace: RoutingTrace, seed: int = 0) -> pd.DataFrame:
    """Return one row per layer; columns about two layers stand at the first of them and are NaN at the last."""
    pairs = {"affinity_nat": affinity(trace, seed), "next_top1_hit": predictability(trace)[0],
             "next_top1_hit_popularity": predictability(trace)[1]}
    bound = top1_entropy(trace)[1:]
    pairs["affinity_fraction"] = np.divide(pairs["affinity_nat"], bound, out=np.zeros_like(bound), where=bound > 0)
    columns = {"load_max_over_mean": load_imbalance(trace), "load_variation": load_variation(trace),
               "entropy_normalised": normalised_entropy(trace), "zipf_slope": zipf_slope(trace),
               "overlap": consecutive_overlap(trace), "overlap_independent": independent_overlap(trace)}
    columns |= {name: np.append(values, np.nan) for name, values in pairs.items()}
    return pd.DataFrame(columns, index=pd.RangeIndex(trace.n_layers, name="layer"))


def summary(trace: RoutingTrace, seed: int = 0) -> pd.Series:
    """Return the sizes of the trace and the mean over layers of every column of ``per_layer``."""
    sizes = {"tokens": trace.n_tokens, "requests": len(trace.requests), "layers": trace.n_layers,
             "experts": trace.n_experts, "top_k": trace.top_k}
    return pd.concat([pd.Series(sizes, dtype=float), per_layer(trace, seed).mean()])


def step_counts(source: str | Path | RoutingTrace) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps, int32 [S] ascending, and the tokens per expert in each, int32 [S, L, E].

    A Parquet file is streamed: memory stays at the counts plus one batch of rows, whatever its size.
    """
    from moesim.trace_loops import add_step_counts

    if not isinstance(source, RoutingTrace) and not is_trace_file(source):
        source = read_trace(source)
    if isinstance(source, RoutingTrace):
        sizes, step = source.meta, source.tokens["step"].to_numpy()
        batches: Iterable[tuple[np.ndarray, np.ndarray]] = [(step, source.experts)]
    else:
        sizes, step = read_meta(source), read_column(source, "step")
        batches = ((tokens["step"], experts) for tokens, experts in scan(source, ("step",)))
    steps = np.unique(step).astype(np.int32)
    counts = np.zeros((len(steps), sizes["n_layers"], sizes["n_experts"]), dtype=np.int32)
    for batch_step, experts in batches:
        add_step_counts(experts, sizes["top_k"], np.searchsorted(steps, batch_step), counts)
    return steps, counts


def _top1_counts(trace: RoutingTrace) -> np.ndarray:
    top1 = trace.experts[:, :, 0]
    return np.stack([np.bincount(top1[:, layer], minlength=trace.n_experts) for layer in range(trace.n_layers)])


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Return the entropy in nats along the last axis."""
    share = counts / counts.sum(axis=-1, keepdims=True)
    return -(share * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(axis=-1)


def _mutual_information(joint: np.ndarray) -> np.ndarray:
    pairs = joint.reshape(len(joint), joint.shape[1] * joint.shape[2])
    return _entropy(joint.sum(axis=2)) + _entropy(joint.sum(axis=1)) - _entropy(pairs)


def _neighbours(trace: RoutingTrace) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of all pairs of tokens at positions p and p+1 of one request."""
    request, position = (trace.tokens[name].to_numpy() for name in ("request", "position"))
    order = np.argsort(request, kind="stable")
    request, position = request[order], position[order]
    pairs = np.flatnonzero((request[1:] == request[:-1]) & (position[1:] == position[:-1] + 1))
    return order[pairs], order[pairs + 1]
