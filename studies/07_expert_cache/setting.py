"""What this study replays: traces, policies, capacities, batches; and the published numbers that it is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moesim.synthetic import GateParameters, SyntheticTrace
from moesim.trace import RoutingTrace, read_trace

HERE = Path(__file__).resolve().parent
OWN, GPT = "reference-moe", "GPT-OSS-20B"
PUBLIC = "gptoss20b_decode_167seq.npz"
CAPACITIES = ("10%", "20%", "30%", "40%", "60%")
BATCHES = (1, 2, 4, 8, 16)
# hobbit without uses in high precision: the public trace has no probabilities
POLICIES: tuple[Any, ...] = ("random", "lru", "lfu", "lfru", "static", "eam",
                             {"name": "hobbit", "weights": [1.0, 1.0, 0.0, 1.0]}, "mark_predict")
NAMES = {"hobbit(weights=(1.0, 1.0, 0.0, 1.0))": "hobbit", "belady(bypass=False)": "belady, forced"}
FORCED: dict[str, Any] = {"name": "belady", "bypass": False}

# Read-ME (arXiv 2410.19123), Table 4: hit ratio in % at capacities 2 to 5
READ_ME = {"random": (34.19, 50.14, 67.52, 82.91), "lru": (33.90, 52.42, 66.95, 83.48),
           "belady": (44.16, 61.82, 77.21, 88.03)}
# ExpertFlow (arXiv 2410.17954), Fig. 10, Switch-32: (slots, batch) -> hit ratio in %
EXPERT_FLOW = {("lru", 16, 4): 76.61, ("lru", 16, 16): 58.37, ("lru", 8, 16): 36.22,
               ("plec", 16, 4): 91.90, ("plec", 16, 16): 85.91, ("plec", 8, 16): 71.89}
# KTransformers, tokens/s of Qwen3-Next-80B-A3B by the share of experts on the GPUs, 0, 10, ... 100 % (its
# documentation; SOSP 2025; four RTX 4090 and a Xeon 6454S, ShareGPT)
RESIDENCY = {
    "random": (53.01, 56.63, 58.75, 62.86, 66.81, 70.38, 71.33, 74.40, 79.71, 88.82, 112.61),
    "frequency": (52.72, 58.60, 61.92, 66.50, 72.78, 76.19, 82.33, 89.37, 100.67, 107.15, 114.26),
    "dynamic": (53.37, 70.22, 74.73, 75.55, 80.98, 81.17, 82.30, 88.70, 92.31, 95.04, 112.99)}
# Chosen so that the curves are near the published ones: popularity, spread between requests, tokens that dynamic knows
RESIDENCY_GATE, RESIDENCY_PROMPT = GateParameters(sigma_b=0.8, a=0.0, s=0.0, sigma_d=1.4, domains=16), 10


def traces(public: Path | None) -> dict[str, RoutingTrace]:
    """Return the decode tokens of our own trace, and of that in the folder *public*. Raises ``ValueError``."""
    found = {OWN: read_trace(HERE.parents[1] / "workloads" / "traces" / "reference-moe.parquet").phase("decode")}
    if public is not None:
        if not (public / PUBLIC).is_file():
            raise ValueError(f"{public}: has no {PUBLIC}; see docs/howto/get-routing-traces.md")
        found[GPT] = read_trace(public / PUBLIC)
    return found


def read_me() -> list[set[int]]:
    """Return requests for one of six experts, uniform and independent: what its rows random and lru look like."""
    return [{e} for e in np.random.default_rng(1).integers(0, 6, 40_000).tolist()]


def switch(experts: int) -> RoutingTrace:
    """Return a top-1 trace like a Switch model's: every request has favourites of its own (labelled synthetic)."""
    gate = GateParameters(sigma_b=0.0, a=0.0, s=0.0, sigma_d=2.0, domains=64)
    return SyntheticTrace(parameters=gate, requests=64, prompt_tokens=0, output_tokens=64, layers=12, experts=experts,
                          top_k=1).generate()


def qwen_next() -> RoutingTrace:
    """Return a trace of 512 experts, top-10, with prompts as long as what the dynamic placement knows (synthetic)."""
    return SyntheticTrace(parameters=RESIDENCY_GATE, requests=16, prompt_tokens=RESIDENCY_PROMPT, output_tokens=32,
                          layers=4, experts=512, top_k=10).generate()
