"""Send held-out text through the trained model and record its gates; ask whether the routing matters to it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from corpus import DOMAINS, Document
from torch import Tensor, nn

import moesim
from moesim.capture import record
from moesim.capture.bpe import BytePairEncoding
from moesim.capture.generate import generate
from moesim.capture.reference_moe import ReferenceGate, ReferenceMoE
from moesim.capture.train import evaluate

RANKED = 8  # candidates kept per layer
ROWS = 32  # requests that run side by side
ORIGIN = (
    "studies/00_capture: {prompts} tokens of held-out files of CPython {python} as prompts, {outputs} tokens sampled "
    "by the model; trained for {steps} steps of 2048 tokens on the other files"
)


@dataclass(frozen=True)
class Request:
    """A prompt from held-out text and how many tokens to generate after it."""

    domain: str
    prompt: list[int]
    new_tokens: int


def draw_requests(texts: list[Document], encoding: BytePairEncoding, count: int, seed: int) -> list[Request]:
    """Draw *count* requests, equally many per domain and in random order, from places in held-out documents.

    Lengths are log-normal around 80 prompt and 40 output tokens and cut to 16..192 and 4..64, so that a request
    fits the 256 positions seen in training (shape and values assumed; serving traces have such a long tail).
    """
    random = np.random.default_rng(seed)
    pools: dict[str, list[list[int]]] = {domain: [] for domain in DOMAINS}
    for document in texts:
        if document.held_out:
            pools[document.domain].append(encoding.encode(document.text))
    domains = random.permutation([DOMAINS[i % len(DOMAINS)] for i in range(count)])
    requests = []
    for domain in domains:
        pool = [ids for ids in pools[domain] if len(ids) >= 16]
        sizes = np.array([len(ids) for ids in pool], dtype=float)
        ids = pool[random.choice(len(pool), p=sizes / sizes.sum())]
        prompt, output = np.exp(random.normal(np.log([80, 40]), [0.6, 0.5]))
        length = min(int(np.clip(prompt, 16, 192)), len(ids))
        start = int(random.integers(0, len(ids) - length + 1))
        requests.append(Request(str(domain), ids[start : start + length], int(np.clip(output, 4, 64))))
    return requests


def capture(
    model: ReferenceMoE, requests: list[Request], end: int, seed: int, about: dict[str, Any]
) -> moesim.RoutingTrace:
    """Run *requests* in batches, prefill and decode, and return the trace of every routed token."""
    with record(model, ranked=RANKED) as recorder:
        for first in range(0, len(requests), ROWS):
            rows = requests[first : first + ROWS]
            generate(model, [r.prompt for r in rows], [r.new_tokens for r in rows], seed + first, pad=end)
    return recorder.trace(domain=[request.domain for request in requests], **about)


def facts(model: ReferenceMoE, requests: list[Request], steps: int) -> dict[str, Any]:
    """Return what the trace says about its origin."""
    prompts, outputs = sum(len(r.prompt) for r in requests), sum(r.new_tokens for r in requests)
    return {
        "model": "reference-moe",
        "revision": weights_hash(model),
        "origin": ORIGIN.format(prompts=prompts, outputs=outputs, python=platform.python_version(), steps=steps),
        "licence": "PSF-2.0 (token ids spell text of the CPython distribution)",
    }


def weights_hash(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that name the weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def random_experts(model: ReferenceMoE, seed: int) -> Iterator[None]:
    """Replace every gate's choice by experts drawn at random, with the weights that it gave."""
    random = torch.Generator().manual_seed(seed)

    def hook(gate: ReferenceGate, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, experts = output
        drawn = torch.rand(logits.shape, generator=random).topk(gate.top_k, dim=-1).indices
        return logits, weights, drawn

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, ReferenceGate)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def losses(model: ReferenceMoE, probes: dict[str, Tensor], seed: int) -> dict[str, tuple[float, float]]:
    """Return per domain the held-out loss with the gate's choices and with random experts, nat per token."""
    learned = {domain: evaluate(model, ids) for domain, ids in probes.items()}
    with random_experts(model, seed):
        drawn = {domain: evaluate(model, ids) for domain, ids in probes.items()}
    return {domain: (learned[domain], drawn[domain]) for domain in probes}
