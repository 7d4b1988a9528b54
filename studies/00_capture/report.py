"""Turn the trace and the losses into the study's tables, numbers and figures."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from corpus import DOMAINS

from moesim import RoutingTrace, plots, trace_stats

# Okabe and Ito's colours, which colour-blind readers can tell apart (jfly.uni-koeln.de/color)
COLOUR = dict(zip(DOMAINS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"), strict=True))
GREY = "#666666"


def shares(trace: RoutingTrace) -> np.ndarray:
    """Return each domain's share of choices per expert, [domains, L, E]."""
    counts = np.stack([trace.of_domain(domain).counts() for domain in DOMAINS])
    return counts / counts.sum(-1, keepdims=True)


def domain_distance(trace: RoutingTrace) -> float:
    """Return the total-variation distance between two domains' expert shares, mean over pairs and layers."""
    share = shares(trace)
    return float(np.mean([np.abs(share[a] - share[b]).sum(-1) / 2 for a, b in combinations(range(len(share)), 2)]))


def domain_distance_null(trace: RoutingTrace, seed: int = 0) -> float:
    """Return `domain_distance` after dealing the domain labels anew to whole requests."""
    tokens = trace.tokens.copy()
    labels = tokens.groupby("request")["domain"].first().astype(str)
    labels[:] = np.random.default_rng(seed).permutation(labels.to_numpy())
    tokens["domain"] = tokens["request"].map(labels).astype("category")
    return domain_distance(RoutingTrace(tokens, trace.experts, None, trace.n_experts, trace.top_k))


def phase_correlation(trace: RoutingTrace) -> float:
    """Return Pearson's r between prefill and decode tokens per expert, mean over layers."""
    prefill, decode = trace.phase("prefill").counts(), trace.phase("decode").counts()
    return float(np.mean([np.corrcoef(p, d)[0, 1] for p, d in zip(prefill, decode, strict=True)]))


def numbers(trace: RoutingTrace, untrained: RoutingTrace, losses: dict[str, tuple[float, float]]) -> str:
    """Return the study's numbers as a Markdown table, trained beside untrained."""
    rows = []
    for name, get in {
        "mutual information of adjacent layers' top-1 (nat)": lambda t: trace_stats.mutual_information(t).mean(),
        "the same after shuffling tokens in a layer (nat)": lambda t: trace_stats.mutual_information_null(t).mean(),
        "difference / entropy of the top-1": lambda t: trace_stats.summary(t)["affinity_fraction"],
        "next top-1 guessed from this one": lambda t: trace_stats.predictability(t)[0].mean(),
        "next top-1 guessed from popularity": lambda t: trace_stats.predictability(t)[1].mean(),
        "load, max / mean over experts": lambda t: trace_stats.load_imbalance(t).mean(),
        "overlap of consecutive tokens": lambda t: trace_stats.consecutive_overlap(t).mean(),
        "distance between domains' expert shares": domain_distance,
        "the same with domain labels dealt anew": domain_distance_null,
        "correlation of prefill and decode load": phase_correlation,
    }.items():
        rows.append(f"| {name} | {get(trace):.2f} | {get(untrained):.2f} |")
    learned, drawn = np.mean(list(losses.values()), axis=0)
    lines = ["| mean over layers | trained | untrained |", "|---|---|---|", *rows]
    lines += ["", f"Held-out loss, mean of the domains: {learned:.2f} nat per token with the gates' own choices, "
                  f"{drawn:.2f} with experts drawn at random."]
    return "\n".join(lines)


def loss_figure(table: pd.DataFrame, path: Path) -> None:
    """Draw training and held-out loss over tokens seen."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    seen = table["tokens"].cumsum() / 1e6
    axes.plot(seen, table["loss"], color="black", linewidth=2)
    ends = {"training": (float(table["loss"].iloc[-1]), "black")}
    for domain in DOMAINS:
        axes.plot(seen, table[domain], color=COLOUR[domain], linewidth=1.2)
        ends[f"{domain}, held out"] = (float(table[domain].iloc[-1]), COLOUR[domain])
    heights = spread([value for value, _ in ends.values()], 0.24)
    for (name, (value, colour)), height in zip(ends.items(), heights, strict=True):
        axes.annotate(f"{name} {value:.2f}", (seen.iloc[-1], height), xytext=(6, 0), textcoords="offset points",
                      color=colour, va="center", fontsize=9)
    axes.set(xlabel="training tokens (millions)", ylabel="loss (nat per token)", xlim=(0, seen.iloc[-1] * 1.28),
             ylim=(0, None))
    finish(figure, path)


def spread(values: list[float], gap: float) -> list[float]:
    """Return label heights near *values* that are at least *gap* apart."""
    order = np.argsort(values)
    heights = np.array(values, dtype=float)
    for below, above in zip(order[:-1], order[1:], strict=True):
        heights[above] = max(heights[above], heights[below] + gap)
    return heights.tolist()


def routing_figure(trace: RoutingTrace, untrained: RoutingTrace, path: Path) -> None:
    """Draw affinity by layer, one layer's transitions, and one layer's popularity by domain."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    layers = np.arange(trace.n_layers - 1)
    for label, values, colour in (
        ("trained", trace_stats.mutual_information(trace), COLOUR["code"]),
        ("untrained", trace_stats.mutual_information(untrained), COLOUR["docs"]),
        ("shuffled (null)", trace_stats.mutual_information_null(trace), GREY),
    ):
        left.plot(layers, values, "o-", color=colour, markersize=4)
        left.annotate(label, (layers[-1], values[-1]), xytext=(6, 0), textcoords="offset points", color=colour,
                      va="bottom")
    left.set(xlabel="from layer to the next", ylabel="mutual information of top-1 experts (nat)", ylim=(0, None),
             xlim=(-0.5, layers[-1] + 4.5), xticks=layers[::2])
    headline(left, "What a layer says about the next")
    layer = trace.n_layers // 2  # a middle layer: the first ones mostly follow the token's id
    plots.affinity(transition_table(trace), middle, layer=layer, title=f"Transitions, layer {layer} to {layer + 1}")
    popular = 100 * shares(trace)[:, layer]
    image = right.imshow(popular, cmap="Blues", vmin=0, aspect="auto")
    right.set(xlabel=f"expert in layer {layer}", yticks=range(len(DOMAINS)), yticklabels=DOMAINS)
    headline(right, f"Popularity by domain, layer {layer}")
    figure.colorbar(image, ax=right, label="share of the domain's choices (%)", shrink=0.85)
    finish(figure, path)


def headline(axes: plt.Axes, text: str) -> None:
    """Give *axes* a title in the look of moesim.plots."""
    axes.set_title(text, loc="left", fontsize=10.5, fontweight="bold")


def transition_table(trace: RoutingTrace) -> pd.DataFrame:
    """Return the pairs of first choices in adjacent layers that occur, and how many tokens make them."""
    counts = trace.transitions()
    layer, expert, following = np.nonzero(counts)
    return pd.DataFrame({"layer": layer, "expert": expert, "next_expert": following,
                         "tokens": counts[layer, expert, following]})


def finish(figure: plt.Figure, path: Path) -> None:
    """Remove the frame's upper and right edge and save."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    plt.close(figure)
