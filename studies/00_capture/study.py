"""Train the reference model on the text every CPython has, and record which experts it chooses on unseen text.

Run `python studies/00_capture/study.py` (CPU, about half an hour of one core); it continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import report
import routing
import torch
from corpus import DOMAINS, Document, documents
from torch import Tensor

from moesim import trace_stats
from moesim.capture.bpe import BytePairEncoding
from moesim.capture.reference_moe import ReferenceConfig, ReferenceMoE
from moesim.capture.train import Recipe, train

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TRACE = "reference-moe.parquet"
BEGIN, END = "<!-- numbers: written by study.py -->", "<!-- end -->"
CHARACTERS = 4_000_000  # training text per domain, at most; more than one run reads
LEARN_ON = 600_000  # characters per domain for the byte-pair encoding
BATCH = 8  # sequences per training step


def main() -> None:
    """Train, capture, report; copy the results into the repository unless told not to."""
    options = parse(sys.argv[1:])
    torch.set_num_threads(1)  # the same bits again on the same kind of machine
    out, seed = options.out, options.seed
    out.mkdir(parents=True, exist_ok=True)
    texts = documents()
    encoding = load_encoding(texts, out / "encoding.json")
    config = ReferenceConfig(vocabulary=encoding.vocabulary)
    model, untrained = ReferenceMoE(config, seed), ReferenceMoE(config, seed)
    held_out = {domain: stream(texts, domain, encoding, held_out=True) for domain in DOMAINS}
    probes = {domain: windows(held_out[domain], 4, config.context + 1, [seed]) for domain in DOMAINS}
    teach(model, texts, encoding, probes, options)
    requests = routing.draw_requests(texts, encoding, options.requests, seed)
    about = routing.facts(model, requests, options.steps)
    trace = routing.capture(model, requests, encoding.end, seed, about)
    trace.write(out / TRACE)
    before = routing.capture(untrained, requests, encoding.end, seed, {})
    table = report.numbers(trace, before, routing.losses(model, probes, seed))
    (out / "numbers.md").write_text(table + "\n")
    trace_stats.per_layer(trace).round(4).to_csv(out / "layers.csv")
    report.loss_figure(pd.read_csv(out / "loss.csv"), out / "loss.png")
    report.routing_figure(trace, before, out / "routing.png")
    print(table)
    if not options.keep:
        publish(out, table)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1600, help="training steps of 2048 tokens")
    parser.add_argument("--requests", type=int, default=300, help="requests to capture")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "00_capture", help="checkpoints and results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="leave the trace and figures of the repository alone")
    return parser.parse_args(arguments)


def teach(model: ReferenceMoE, texts: list[Document], encoding: BytePairEncoding, probes: dict[str, Tensor],
          options: argparse.Namespace) -> None:
    """Train *model* in place, or load it if `--out` holds the finished run."""
    streams = {domain: stream(texts, domain, encoding, held_out=False) for domain in DOMAINS}
    length = model.config.context + 1
    train(model, lambda step: batch(streams, length, [options.seed, step]), probes, Recipe(steps=options.steps),
          options.out)


def publish(out: Path, table: str) -> None:
    """Copy the trace, the figures, the loss and the numbers to where the repository keeps them."""
    shutil.copy(out / TRACE, ROOT / "workloads" / "traces" / TRACE)
    for name in ("loss.csv", "layers.csv", "loss.png", "routing.png"):
        shutil.copy(out / name, HERE / name)
    readme = HERE / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    readme.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", encoding="utf-8")


def limited(texts: list[Document], domain: str, held_out: bool, characters: int) -> list[str]:
    """Return whole documents of *domain* until *characters* are reached."""
    chosen, length = [], 0
    for document in texts:
        if document.domain == domain and document.held_out == held_out and length < characters:
            chosen.append(document.text)
            length += len(document.text)
    return chosen


def load_encoding(texts: list[Document], path: Path) -> BytePairEncoding:
    """Learn the encoding from training text, once."""
    if not path.exists():
        sample = [text for domain in DOMAINS for text in limited(texts, domain, False, LEARN_ON)]
        path.write_text(json.dumps(BytePairEncoding.learn(sample, 1024).merges))
    return BytePairEncoding(tuple((left, right) for left, right in json.loads(path.read_text())))


def stream(texts: list[Document], domain: str, encoding: BytePairEncoding, held_out: bool) -> np.ndarray:
    """Return the token ids of a domain's documents, each followed by the end id."""
    ids: list[int] = []
    for text in limited(texts, domain, held_out, CHARACTERS):
        ids += encoding.encode(text)
        ids.append(encoding.end)
    return np.array(ids, dtype=np.int64)


def windows(ids: np.ndarray, count: int, length: int, seed: list[int]) -> Tensor:
    """Cut *count* windows of *length* tokens at random places."""
    starts = np.random.default_rng(seed).integers(0, len(ids) - length, count)
    return torch.from_numpy(ids[starts[:, None] + np.arange(length)])


def batch(streams: dict[str, np.ndarray], length: int, seed: list[int]) -> Tensor:
    """Draw the windows of one training step, each from a domain drawn with equal chance."""
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(DOMAINS), BATCH)
    return torch.cat([windows(streams[DOMAINS[d]], 1, length, [*seed, i]) for i, d in enumerate(drawn)])


if __name__ == "__main__":
    main()
