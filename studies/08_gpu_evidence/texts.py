"""Text that a machine has anyway, by kind: sources, tests, documents, headers and tables of Python and its packages."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import sysconfig
from array import array
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from moesim.capture.bpe import BytePairEncoding

KINDS = {".py": "code", ".pyi": "code", ".h": "c", ".hpp": "c", ".cuh": "c", ".cu": "c", ".cpp": "c", ".c": "c",
         ".rst": "docs", ".md": "docs", ".txt": "docs", ".html": "docs",
         ".json": "tables", ".csv": "tables", ".yaml": "tables", ".toml": "tables", ".xml": "tables"}
DOMAINS = ("code", "tests", "docs", "c", "tables")
TESTS = re.compile(r"(^|/)(tests?|testing)/|(^|/)test_[^/]*$")
LONGEST = 400_000    # bytes of a file: longer ones are generated
FEWEST = 3           # domains, for a router to have something to tell apart
HELD_OUT = 10        # one character of so many, at least, is never trained on, of every domain


@dataclass(frozen=True)
class Document:
    """A file's text and its domain, and whether training never sees it."""

    domain: str
    name: str
    text: str
    held_out: bool


def roots() -> list[Path]:
    """Return the folders that are read: Python's library and headers, its packages, and documents of the system."""
    paths = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib", "include")]
    found = [p.resolve() for p in (*paths, Path("/usr/share/doc"), Path("/usr/include")) if p.is_dir()]
    return list(dict.fromkeys(found))


def documents(folders: list[Path], characters: int) -> list[Document]:
    """Return files of *folders* until every domain has *characters*, in an order that depends on names alone.

    Names are those below the folders: where these are does not matter. A file is held out whenever less than one of
    ``HELD_OUT`` characters of its domain is, so that every domain has unseen text from its first file on. The same text
    under two names is taken once, so that nothing held out was trained on. A domain with less than a fiftieth of
    *characters* is left out. Raises ``ValueError`` if fewer than ``FEWEST`` domains are left.
    """
    found: dict[str, list[Document]] = {domain: [] for domain in DOMAINS}
    length, held, seen = dict.fromkeys(DOMAINS, 0), dict.fromkeys(DOMAINS, 0), set[bytes]()
    for domain, name, path in sorted(_files(folders), key=lambda found: (_digest(found[1]), str(found[2]))):
        if length[domain] >= characters:
            continue
        text = _text(path)
        if text and (digest := _digest(text)) not in seen:
            seen.add(digest)
            unseen = HELD_OUT * held[domain] <= length[domain]
            found[domain].append(Document(domain, name, text, unseen))
            length[domain] += len(text)
            held[domain] += unseen * len(text)
    kept = [domain for domain in DOMAINS if length[domain] >= characters / 50]
    if len(kept) < FEWEST:
        raise ValueError(f"{', '.join(map(str, folders))}: text enough for {len(kept)} of the domains "
                         f"{', '.join(DOMAINS)}, and {FEWEST} are needed; install packages with sources and documents")
    return [document for domain in kept for document in found[domain]]


def _files(folders: list[Path]) -> Iterator[tuple[str, str, Path]]:
    """Return domain, name below its folder, and path of every file whose kind is known, each path once."""
    taken = set()
    for folder in folders:
        for place, inside, names in os.walk(folder):
            inside[:] = [name for name in inside if name != "__pycache__"]
            for name in names:
                kind = "docs" if name == "METADATA" else KINDS.get(os.path.splitext(name)[1])
                path = os.path.join(place, name)
                if kind and path not in taken:
                    taken.add(path)
                    below = os.path.join(folder.name, os.path.relpath(path, folder))
                    yield ("tests" if kind == "code" and TESTS.search(below) else kind), below, Path(path)


def _text(path: Path) -> str:
    """Return the text of *path*; "" if it is none, too long, or cannot be read."""
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= LONGEST else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


def encoding(texts: list[Document], vocabulary: int, characters: int) -> BytePairEncoding:
    """Learn an encoding from the first *characters* of every domain's training text."""
    sample = []
    for domain in dict.fromkeys(document.domain for document in texts):
        left = characters
        for document in texts:
            if document.domain == domain and not document.held_out and left > 0:
                sample.append(document.text[:left])
                left -= len(document.text)
    return BytePairEncoding.learn(sample, vocabulary)


def streams(texts: list[Document], learned: BytePairEncoding,
            workers: int = 1) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return of every domain the token ids [tokens] of what is trained on, and of what is held out.

    With several *workers*, processes encode a domain each.
    """
    parts: dict[tuple[str, bool], list[str]] = {}
    for document in texts:
        parts.setdefault((document.domain, document.held_out), []).append(document.text)
    if workers > 1:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            ids = list(pool.map(partial(encoded, learned.merges), parts.values()))
    else:
        ids = [encoded(learned.merges, part) for part in parts.values()]
    found = dict(zip(parts, ids, strict=True))
    train, held = ({d: values for (d, unseen), values in found.items() if unseen is wanted} for wanted in (False, True))
    return train, held


def encoded(merges: tuple[tuple[int, int], ...], texts: list[str]) -> np.ndarray:
    """Return the token ids of *texts*, each followed by the end of a document: uint16 [tokens]."""
    learned, ids = BytePairEncoding(merges), array("H")
    for text in texts:
        ids.extend(learned.encode(text))
        ids.append(learned.end)
    return np.array(ids, np.uint16)
