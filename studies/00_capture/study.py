"""Train the reference model on the text every CPython has, and record which experts it chooses on unseen text.

Run `python studies/00_capture/study.py` (CPU, about half an hour of one core); it continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from corpus import DOMAINS, Document, documents
from torch import Tensor

from moesim.capture.bpe import BytePairEncoding
from moesim.capture.reference_moe import ReferenceConfig, ReferenceMoE
from moesim.capture.train import Recipe, train

ROOT = Path(__file__).resolve().parents[2]
CHARACTERS = 4_000_000  # training text per domain, at most; more than one run reads
LEARN_ON = 600_000  # characters per domain for the byte-pair encoding
BATCH = 8  # sequences per training step


def main() -> None:
    """Train, capture, report."""
    options = parse(sys.argv[1:])
    torch.set_num_threads(1)  # the same bits on every machine of the same kind
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    texts = documents()
    encoding = load_encoding(texts, options.out / "encoding.json")
    config = ReferenceConfig(vocabulary=encoding.vocabulary)
    model = ReferenceMoE(config, options.seed)
    streams = {domain: stream(texts, domain, encoding, held_out=False) for domain in DOMAINS}
    held_out = {domain: stream(texts, domain, encoding, held_out=True) for domain in DOMAINS}
    probes = {domain: windows(held_out[domain], 4, config.context + 1, [options.seed]) for domain in DOMAINS}
    recipe = Recipe(steps=options.steps)
    train(model, lambda step: batch(streams, config.context + 1, [options.seed, step]), probes, recipe, options.out)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1600, help="training steps of 2048 tokens")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "00_capture", help="checkpoints and the loss table")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


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
