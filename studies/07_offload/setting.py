"""What this study is held against, and what it replays: published numbers with their places, synthetic requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moesim import config
from moesim.model import ModelSpec
from moesim.synthetic import GateParameters, SyntheticTrace
from moesim.trace import RoutingTrace

MODELS = Path(__file__).resolve().parents[2] / "workloads" / "models"

# KTransformers, tokens/s of Qwen3-Next-80B-A3B by the share of experts on the GPUs, 0, 10, ... 100 % (its
# documentation; SOSP 2025; four RTX 4090 and a Xeon 6454S, ShareGPT)
RESIDENCY = {
    "random": (53.01, 56.63, 58.75, 62.86, 66.81, 70.38, 71.33, 74.40, 79.71, 88.82, 112.61),
    "frequency": (52.72, 58.60, 61.92, 66.50, 72.78, 76.19, 82.33, 89.37, 100.67, 107.15, 114.26),
    "dynamic": (53.37, 70.22, 74.73, 75.55, 80.98, 81.17, 82.30, 88.70, 92.31, 95.04, 112.99)}
# Chosen so that the curves are near the published ones: popularity, spread between requests, tokens that dynamic knows
RESIDENCY_GATE, RESIDENCY_PROMPT = GateParameters(sigma_b=0.8, a=0.0, s=0.0, sigma_d=1.4, domains=16), 10


def model(name: str) -> ModelSpec:
    """Return a model that ships."""
    return config.load(ModelSpec, MODELS / f"{name}.yaml")


def qwen_next() -> RoutingTrace:
    """Return a trace of 512 experts, top-10, with prompts as long as what the dynamic placement knows (synthetic)."""
    return SyntheticTrace(parameters=RESIDENCY_GATE, requests=16, prompt_tokens=RESIDENCY_PROMPT, output_tokens=32,
                          layers=4, experts=512, top_k=10).generate()


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
