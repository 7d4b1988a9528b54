"""What this study is held against, and what it replays: published numbers with their places, synthetic requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moesim import config
from moesim.model import ModelSpec
from moesim.synthetic import GateParameters, SyntheticTrace
from moesim.trace import RoutingTrace

MODELS = Path(__file__).resolve().parents[2] / "workloads" / "models"
FORCED: dict[str, Any] = {"name": "belady", "bypass": False}

# Read-ME (arXiv 2410.19123), Table 4: hit ratio in % at capacities 2 to 5
READ_ME = {"random": (34.19, 50.14, 67.52, 82.91), "lru": (33.90, 52.42, 66.95, 83.48),
           "belady": (44.16, 61.82, 77.21, 88.03)}
# The same paper: distinct experts per batch when decode goes first, and with expert-aware batching
DISTINCT = {False: 5.08, True: 3.51}
REPEATS = 2921 / 4096  # the same: tokens that use the last token's expert
# Waiting tokens and batch size are not published: chosen so that both numbers of DISTINCT are near
BATCHING = {"name": "expert_aware", "size": 12, "waiting": 18}

# ExpertFlow (arXiv 2410.17954), Fig. 10, Switch-32: (slots, batch) -> hit ratio in %
EXPERT_FLOW = {("lru", 16, 4): 76.61, ("lru", 16, 16): 58.37, ("lru", 8, 16): 36.22,
               ("plec", 16, 4): 91.90, ("plec", 16, 16): 85.91, ("plec", 8, 16): 71.89}
SCHEDULER = {32: 1.03, 64: 1.15, 128: 1.17}  # the same, Table 2: times the tokens/s, by experts
RECALL = 0.9  # the same: its predictor in the domain that it was trained on finds more than this

# KTransformers, tokens/s of Qwen3-Next-80B-A3B by the share of experts on the GPUs, 0, 10, ... 100 % (its
# documentation; SOSP 2025; four RTX 4090 and a Xeon 6454S, ShareGPT)
RESIDENCY = {
    "random": (53.01, 56.63, 58.75, 62.86, 66.81, 70.38, 71.33, 74.40, 79.71, 88.82, 112.61),
    "frequency": (52.72, 58.60, 61.92, 66.50, 72.78, 76.19, 82.33, 89.37, 100.67, 107.15, 114.26),
    "dynamic": (53.37, 70.22, 74.73, 75.55, 80.98, 81.17, 82.30, 88.70, 92.31, 95.04, 112.99)}
# Chosen so that the curves are near the published ones: popularity, spread between requests, tokens that dynamic knows
RESIDENCY_GATE, RESIDENCY_PROMPT = GateParameters(sigma_b=0.8, a=0.0, s=0.0, sigma_d=1.4, domains=16), 10

# Paging with succinct predictions: (experts, room). Requests: Zipf 0.6, and 30 % ask again for one of the last eight
# (assumed: skewed and local, as expert choices are; the theorems hold for any)
PAGING = ((8, 4), (64, 16), (64, 32))
ERRORS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def model(name: str) -> ModelSpec:
    """Return a model that ships."""
    return config.load(ModelSpec, MODELS / f"{name}.yaml")


def read_me() -> list[set[int]]:
    """Return requests for one of six experts, uniform and independent: what its rows random and lru look like."""
    return [{e} for e in np.random.default_rng(1).integers(0, 6, 40_000).tolist()]


def pre_gated() -> RoutingTrace:
    """Return 80 requests of 40 tokens for one of six experts: the last token's in REPEATS of cases, else any."""
    rng = np.random.default_rng(0)
    used = rng.integers(0, 6, (80, 40))
    keeps = REPEATS - (1 - REPEATS) / 5  # one in six of those that draw again draw the same
    for t in range(1, 40):
        used[:, t] = np.where(rng.random(80) < keeps, used[:, t - 1], used[:, t])
    return RoutingTrace.from_arrays(used.reshape(-1, 1, 1), 6, 1, request=np.arange(80).repeat(40), phase=1)


def switch(experts: int, subjects: int = 64) -> RoutingTrace:
    """Return a top-1 trace like a Switch model's: 64 requests, requests of one of *subjects* share their favourites.

    With 64, nearly every request has favourites of its own. The trace is labelled synthetic.
    """
    gate = GateParameters(sigma_b=0.0, a=0.0, s=0.0, sigma_d=2.0, domains=subjects)
    return SyntheticTrace(parameters=gate, requests=64, prompt_tokens=0, output_tokens=64, layers=12, experts=experts,
                          top_k=1).generate()


def qwen_next() -> RoutingTrace:
    """Return a trace of 512 experts, top-10, with prompts as long as what the dynamic placement knows (synthetic)."""
    return SyntheticTrace(parameters=RESIDENCY_GATE, requests=16, prompt_tokens=RESIDENCY_PROMPT, output_tokens=32,
                          layers=4, experts=512, top_k=10).generate()


def paging(experts: int, requests: int) -> list[set[int]]:
    """Return requests for one of *experts* each: Zipf 0.6, three in ten for one of the last eight again."""
    rng = np.random.default_rng(experts)
    weights = np.arange(1, experts + 1) ** -0.6
    drawn = rng.choice(experts, requests, p=weights / weights.sum())
    again, back = rng.random(requests) < 0.3, rng.integers(1, 9, requests)
    for t in range(8, requests):
        if again[t]:
            drawn[t] = drawn[t - back[t]]
    return [{e} for e in drawn.tolist()]


def mixtral(repeats: float = 0.21, tokens: int = 20_000) -> list[set[int]]:
    """Return what one layer of eight experts, top-2, is asked for: the first choice is the last one's by *repeats*.

    0.21: Read-ME (850 of 4096 tokens) of Mixtral; one in eight would be no memory at all. All else is uniform.
    """
    rng = np.random.default_rng(8)
    first, other = rng.integers(0, 8, tokens), rng.integers(1, 8, tokens)
    keeps = rng.random(tokens) < (repeats - 1 / 8) / (1 - 1 / 8)
    for t in range(1, tokens):
        if keeps[t]:
            first[t] = first[t - 1]
    return [{int(a), int((a + b) % 8)} for a, b in zip(first, other, strict=True)]
