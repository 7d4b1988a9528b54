"""Train a Mixture-of-Experts language model of the device's size, in bf16, and record its routing on unseen text."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import texts
import torch
from pieces import tell
from torch import Tensor

from moesim import trace_stats, whole
from moesim.capture import record
from moesim.capture.bpe import BytePairEncoding
from moesim.capture.generate import generate
from moesim.capture.reference_moe import Cache, Output, ReferenceConfig, ReferenceMoE
from moesim.capture.train import Recipe, make_optimizer, save, train, update
from moesim.trace import RoutingTrace, read_trace

SEED = 0
PILOT = (2, 3)      # steps before, and timed, to see how many fit
MARGIN = 0.85       # of the time that is left is given to steps; the rest is held-out losses and checkpoints
SAVING = 0.05       # of the time may go into checkpoints, at most
LARGEST = 12e6      # bytes of a trace that a repository should hold
CLOSING_S = 15.0    # to join, write and describe what was captured on a GPU's machine (assumed)
LICENCE = "Apache-2.0, as this repository; holds expert ids, no text"
ORIGIN = ("studies/08_gpu_evidence: {prefill} tokens of held-out files of a Python {python} and its packages as "
          "prompts, {decode} decoded by the model; trained for {steps} steps of {batch} tokens on the other files")


@dataclass(frozen=True)
class Size:
    """A model, what it reads, how it is trained, and how much is captured."""

    model: ReferenceConfig
    characters: int           # of every domain
    learn_on: int             # of them, for the encoding
    rows: int                 # sequences of a step
    recipe: Recipe
    prompt: tuple[int, int, int]  # tokens: least, median, most
    output: tuple[int, int, int]
    least: tuple[int, int]    # prefill and decode tokens to capture
    beside: int               # requests that run side by side
    workers: int = 1          # processes that encode text


# Learning rates and lengths: our choice, not tuned. The model of a GPU has 421 M weights, 68 M of them active.
SIZES = {
    "cuda": Size(ReferenceConfig(vocabulary=2048, n_layers=16, n_experts=64, top_k=8, width=512, n_heads=8,
                                 expert_width=256, context=512), 12_000_000, 50_000, 64,
                 Recipe(peak_rate=1e-3, every=250), (32, 160, 384), (16, 64, 128), (50_000, 20_000), 128, 5),
    "cpu": Size(ReferenceConfig(vocabulary=300, n_layers=2, n_experts=8, top_k=2, width=32, n_heads=2, expert_width=32,
                                context=64), 60_000, 6_000, 4,
                Recipe(peak_rate=3e-3, warmup=10, every=10), (8, 16, 32), (2, 8, 16), (200, 60), 8),
}


class Half(ReferenceMoE):
    """The reference model whose products run in bf16; weights, gates and the residual stream stay in fp32."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None,
                past_key_values: Cache | None = None) -> Output:
        """Run one pass, as ``ReferenceMoE``; logits are fp32."""
        with torch.autocast(input_ids.device.type, torch.bfloat16):
            found = super().forward(input_ids, attention_mask, past_key_values)
        return Output(found.logits.float(), found.balance)


def teach(out: Path, device: str, seconds: float, share_s: float) -> bool:
    """Train for *seconds*, of *share_s* that are left over all calls; return whether all steps were made."""
    end, folder, size = time.monotonic() + seconds, out / "training", SIZES[device]
    folder.mkdir(parents=True, exist_ok=True)
    seen, unseen = prepared(folder, size)
    length, domains = size.model.context + 1, list(seen)
    probes = {d: windows(unseen[d], 4, length, [SEED]).to(device) for d in domains}
    batches = partial(batch, seen, size.rows, length, device)
    recipe, closing_s = planned_steps(folder, size, batches, device, share_s - (time.monotonic() + seconds - end))
    closing_s = max(2 * closing_s, 20.0 if device == "cuda" else 0.2)  # held-out losses, and writing the checkpoint
    model = Half(size.model, SEED).to(device)
    table = train(model, batches, probes, recipe, folder, lambda: time.monotonic() > end - closing_s)
    rows = table.read_text(encoding="utf-8").splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    tell(folder, {"parameters": sum(p.numel() for p in model.parameters()), "planned_steps": recipe.steps,
                  "steps": int(last["step"]), "last_row": last,
                  "training_tokens": {d: len(ids) for d, ids in seen.items()}})
    return int(last["step"]) >= recipe.steps


def prepared(folder: Path, size: Size) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the token ids of every domain, trained on and held out; read and encode the text once."""
    file = folder / "tokens.npz"
    if not file.exists():
        found = texts.documents(texts.roots(), size.characters)
        learned = texts.encoding(found, size.model.vocabulary, size.learn_on)
        whole.file(folder / "encoding.json", json.dumps(learned.merges).encode())
        seen, unseen = texts.streams(found, learned, size.workers)
        both = [d for d in seen if len(seen[d]) > 4 * size.model.context and len(unseen.get(d, ())) > 2 *
                size.model.context]
        if len(both) < texts.FEWEST:
            raise ValueError(f"only {', '.join(both) or 'no domain'} has text enough to train on and to hold out; "
                             f"{texts.FEWEST} domains are needed: install packages with sources and documents")
        part = file.with_name("part.npz")
        np.savez(part, **{f"seen_{d}": seen[d] for d in both}, **{f"unseen_{d}": unseen[d] for d in both})
        part.replace(file)
    with np.load(file) as ids:
        return tuple({name.partition("_")[2]: ids[name] for name in ids if name.startswith(f"{part}_")}
                     for part in ("seen", "unseen"))  # type: ignore[return-value]


def planned_steps(folder: Path, size: Size, batches: Any, device: str, left_s: float) -> tuple[Recipe, float]:
    """Return the recipe of the steps that fit into *left_s*, and the seconds of a step; found once, by a pilot.

    The pilot's model is thrown away. Checkpoints are so far apart that they take at most ``SAVING`` of the time.
    """
    file = folder / "recipe.json"
    if not file.exists():
        began = time.monotonic()
        model = Half(size.model, SEED).to(device)
        optimizer = make_optimizer(model, size.recipe)
        times = []
        for step in range(sum(PILOT)):
            before = time.monotonic()
            update(model, optimizer, batches(step), size.recipe, step)  # waits for the loss
            times.append(time.monotonic() - before)
        step_s, before = float(np.median(times[PILOT[0]:])), time.monotonic()
        save(model, optimizer, folder / "pilot.pt", 0)
        save_s = time.monotonic() - before
        (folder / "pilot.pt").unlink()
        left_s -= 2 * (time.monotonic() - began)  # the model is built once more, and saved
        steps = max(int(MARGIN * left_s / step_s), 20)
        every = max(size.recipe.every, int(save_s / SAVING / step_s))
        whole.file(file, json.dumps({"steps": steps, "every": every, "step_s": step_s, "save_s": save_s}).encode())
    found = json.loads(file.read_text(encoding="utf-8"))
    return replace(size.recipe, steps=found["steps"], every=found["every"]), float(found["step_s"] + found["save_s"])


def windows(ids: np.ndarray, count: int, length: int, seed: list[int]) -> Tensor:
    """Cut *count* windows of *length* tokens at random places: int64 [count, length]."""
    starts = np.random.default_rng(seed).integers(0, len(ids) - length, count)
    return torch.from_numpy(ids[starts[:, None] + np.arange(length)].astype(np.int64))


def batch(streams: dict[str, np.ndarray], rows: int, length: int, device: str, step: int) -> Tensor:
    """Return the windows [rows, length] of training *step*, each from a domain drawn with equal chance."""
    names, random = list(streams), np.random.default_rng([SEED, step])
    counts = np.bincount(random.integers(0, len(names), rows), minlength=len(names))
    parts = [windows(streams[d], int(n), length, [SEED, step, i])
             for i, (d, n) in enumerate(zip(names, counts, strict=True)) if n]
    return torch.cat(parts).to(device)


def record_trace(out: Path, device: str, seconds: float = float("inf")) -> bool:
    """Run requests from held-out text through the trained model; write trace.parquet and what its routing is like.

    Requests run in batches that hold every domain alike, and each batch is on disk when the next begins. The trace has
    those that there is time for, at least one; return whether that is all. Raises ``ValueError`` without a model.
    """
    end, folder, place, size = time.monotonic() + seconds, out / "training", out / "capture", SIZES[device]
    if not (folder / "checkpoint.pt").exists():
        raise ValueError(f"{folder}: no checkpoint.pt; train first, on the same machine (checkpoints stay there)")
    state = torch.load(folder / "checkpoint.pt", weights_only=True, map_location=device)
    model = Half(size.model, SEED).to(device).eval()
    model.load_state_dict(state["model"])
    _, unseen = prepared(folder, size)
    pad = BytePairEncoding(tuple(map(tuple, json.loads((folder / "encoding.json").read_text())))).end
    drawn, parts, longest = requests(unseen, size), list[RoutingTrace](), 0.0
    count = len(drawn[0])
    for at in range(0, count, size.beside):
        began = time.monotonic()
        if parts and began + longest > end - (CLOSING_S if device == "cuda" else 0.0):
            break
        file = place / f"step{state['step']}-{at:05d}.parquet"
        if not file.exists():
            batch = tuple(column[at : at + size.beside] for column in drawn)
            place.mkdir(parents=True, exist_ok=True)
            slim(captured(model, batch, SEED + at, pad)).write(file)
            longest = max(longest, time.monotonic() - began)
        parts.append(read_trace(file))
    trace = joined(parts, {"model": "reference-moe-gpu", "revision": f"step {state['step']}", "licence": LICENCE})
    phases = {name: trace.phase(name).n_tokens for name in ("prefill", "decode")}
    trace.meta["origin"] = ORIGIN.format(**phases, python=platform.python_version(), steps=state["step"],
                                         batch=size.rows * size.model.context)
    trace.write(place / "trace.parquet")
    done = len(parts) * size.beside >= count
    tell(place, phases | {"wanted": size.least, "complete": done} | routing_facts(trace, place / "trace.parquet"))
    return done


def captured(model: Half, batch: tuple[Any, ...], seed: int, pad: int) -> RoutingTrace:
    """Return the trace of the requests of *batch*, side by side: prompts, output lengths, domains."""
    prompts, outputs, domains = batch
    with torch.no_grad(), record(model) as recorder:
        generate(model, prompts, outputs, seed, pad=pad)
    return recorder.trace(domain=domains)


def joined(parts: list[RoutingTrace], about: dict[str, Any]) -> RoutingTrace:
    """Return the requests of *parts*, one after the other, as one trace."""
    tokens, first = [], 0
    for part in parts:
        tokens.append(part.tokens.assign(request=part.tokens["request"] + first))
        first += int(part.tokens["request"].max()) + 1
    one = parts[0]
    experts = np.concatenate([part.experts for part in parts])
    return RoutingTrace(pd.concat(tokens, ignore_index=True), experts, None, one.n_experts, one.top_k,
                        one.meta | about)


def requests(unseen: dict[str, np.ndarray], size: Size) -> tuple[list[list[int]], list[int], list[str]]:
    """Draw prompts, output lengths and domains in turn until both least numbers of tokens are reached.

    Lengths are log-normal around the medians (spread 0.5: assumed), cut to their limits.
    """
    random, names = np.random.default_rng(SEED), list(unseen)
    prompts: list[list[int]] = []
    outputs: list[int] = []
    prefill = decode = 0
    while prefill < size.least[0] or decode < size.least[1]:
        (low, middle, high), (fewest, usual, most) = size.prompt, size.output
        length, output = np.exp(random.normal(np.log([middle, usual]), 0.5))
        ids = unseen[names[len(prompts) % len(names)]]
        start = int(random.integers(0, len(ids) - high))
        prompts.append(ids[start : start + int(np.clip(length, low, high))].tolist())
        outputs.append(int(np.clip(output, fewest, most)))
        prefill, decode = prefill + len(prompts[-1]), decode + outputs[-1] - 1
    return prompts, outputs, [names[i % len(names)] for i in range(len(prompts))]


def slim(trace: RoutingTrace) -> RoutingTrace:
    """Return *trace* with nothing but the chosen experts: no probabilities, and no text, which is other people's."""
    meta = {key: value for key, value in trace.meta.items() if key != "n_ranked"}
    return RoutingTrace(trace.tokens.assign(token_id=-1), trace.chosen, None, trace.n_experts, trace.top_k, meta)


def routing_facts(trace: RoutingTrace, file: Path) -> dict[str, object]:
    """Return what the trace's routing is like, mean over layers, and its size."""
    found = {name: round(float(value), 4) for name, value in trace_stats.summary(trace).items()}
    tokens = trace.tokens.groupby("domain").size()
    return {"bytes": file.stat().st_size, "too_large": file.stat().st_size > LARGEST, "domains": sorted(tokens.index),
            "tokens_of": {str(name): int(n) for name, n in tokens.items()}, **found}
