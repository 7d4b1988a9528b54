"""Train four small top-1 models with 8, 16, 32 and 64 experts and record which experts they choose on unseen text.

Run `python studies/03_exflow/study.py train` (CPU, about 25 minutes of one core); it continues where it was stopped.
Text, byte-pair encoding and requests are those of studies/00_capture, whose modules are used as they are.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moesim.capture.reference_moe import ReferenceConfig, ReferenceMoE
from moesim.capture.train import Recipe, train
from moesim.trace import RoutingTrace

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "out" / "03_exflow"
EXPERTS = (8, 16, 32, 64)
STEPS = 600  # of 2048 tokens
REQUESTS = 200
SEED = 0
ORIGIN = (
    "studies/03_exflow: {prompts} tokens of held-out files of CPython {python} as prompts, {outputs} tokens sampled by "
    "the model (12 layers, {experts} experts, top-1, width 64), trained for {steps} steps of 2048 tokens on the others"
)


def capture_study() -> ModuleType:
    """Return studies/00_capture/study.py as a module (its folder joins the path: it imports its neighbours)."""
    folder = HERE.parent / "00_capture"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location("capture_study", folder / "study.py")
    if spec is None or spec.loader is None:
        raise ValueError(f"{folder / 'study.py'} is missing; it brings the text and the encoding")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_of(experts: int, vocabulary: int) -> ReferenceMoE:
    """Return an untrained model: 12 layers, each top-1 of *experts*; widths are what 25 minutes for four allow."""
    config = ReferenceConfig(vocabulary=vocabulary, n_experts=experts, top_k=1, width=64, expert_width=128)
    return ReferenceMoE(config, SEED)


def make_traces() -> None:
    """Train and capture every model; write traces/moe-<experts>.parquet and training.csv."""
    torch.set_num_threads(1)  # the same bits again on the same kind of machine
    study = capture_study()
    OUT.mkdir(parents=True, exist_ok=True)
    texts = study.documents()
    encoding = study.load_encoding(texts, OUT / "encoding.json")
    seen, unseen = ({domain: study.stream(texts, domain, encoding, held_out=held) for domain in study.DOMAINS}
                    for held in (False, True))
    requests = study.routing.draw_requests(texts, encoding, REQUESTS, SEED)
    (HERE / "traces").mkdir(exist_ok=True)
    tables = []
    for experts in EXPERTS:
        model = model_of(experts, encoding.vocabulary)
        length = model.config.context + 1
        probes = {d: study.windows(ids, 4, length, [SEED]) for d, ids in unseen.items()}
        table = train(model, partial(batch_of, study, seen, length), probes, Recipe(steps=STEPS),
                      OUT / f"moe-{experts}")
        trace = study.routing.capture(model, requests, encoding.end, SEED, about(model, requests, study))
        slim(trace).write(HERE / "traces" / f"moe-{experts}.parquet")
        tables.append(pd.read_csv(table).assign(experts=experts))
        print(tables[-1].tail(1).to_string(), flush=True)
    losses = pd.concat(tables)
    losses["held_out"] = losses[list(study.DOMAINS)].mean(axis=1).round(4)
    columns = ["experts", "step", "tokens", "loss", "held_out", "balance"]
    losses[columns].to_csv(HERE / "training.csv", index=False)


def batch_of(study: ModuleType, streams: dict[str, np.ndarray], length: int, step: int) -> Tensor:
    """Return the windows [rows, *length*] of training *step*: the same for every model."""
    return study.batch(streams, length, [SEED, step])


def slim(trace: RoutingTrace) -> RoutingTrace:
    """Return *trace* with nothing but the chosen experts: no runners-up, no probabilities, no text."""
    meta = {key: value for key, value in trace.meta.items() if key != "n_ranked"}
    return RoutingTrace(trace.tokens.assign(token_id=-1), trace.chosen, None, trace.n_experts, 1, meta)


def about(model: ReferenceMoE, requests: list[Any], study: ModuleType) -> dict[str, Any]:
    """Return what a trace says about its origin."""
    prompts, outputs = sum(len(r.prompt) for r in requests), sum(r.new_tokens for r in requests)
    experts = model.config.n_experts
    return {
        "model": f"exflow-small-moe-{experts}",
        "revision": study.routing.weights_hash(model),
        "origin": ORIGIN.format(prompts=prompts, outputs=outputs, python=platform.python_version(), experts=experts,
                                steps=STEPS),
        "licence": "Apache-2.0, as this repository; holds expert ids, no text",
        "renormalised": False,
    }
