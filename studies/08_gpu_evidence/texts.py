"""Text that a machine has anyway, by kind: sources, tests, documents, headers and tables of Python and its packages."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Document:
    """A file's text and its domain."""

    domain: str
    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Tell whether the file belongs to the tenth of all files that training never sees."""
        return _digest(self.name)[-1] % 10 == 0  # not the first byte: they are sorted by it


def roots() -> list[Path]:
    """Return the folders that are read: Python's library and headers, its packages, and documents of the system."""
    paths = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib", "include")]
    found = [p.resolve() for p in (*paths, Path("/usr/share/doc"), Path("/usr/include")) if p.is_dir()]
    return list(dict.fromkeys(found))


def documents(folders: list[Path], characters: int) -> list[Document]:
    """Return files of *folders* until every domain has *characters*, in an order that depends on names alone.

    The same text under two names is taken once, so that nothing held out was trained on. A domain with less than a
    fiftieth of *characters* is left out. Raises ``ValueError`` if fewer than ``FEWEST`` domains are left.
    """
    found: dict[str, list[Document]] = {domain: [] for domain in DOMAINS}
    length, seen = dict.fromkeys(DOMAINS, 0), set[bytes]()
    for domain, path in sorted(_files(folders), key=lambda pair: _digest(str(pair[1]))):
        if length[domain] >= characters:
            continue
        text = _text(path)
        if text and (digest := _digest(text)) not in seen:
            seen.add(digest)
            found[domain].append(Document(domain, str(path), text))
            length[domain] += len(text)
    kept = [domain for domain in DOMAINS if length[domain] >= characters / 50]
    if len(kept) < FEWEST:
        raise ValueError(f"{', '.join(map(str, folders))}: text enough for {len(kept)} of the domains "
                         f"{', '.join(DOMAINS)}, and {FEWEST} are needed; install packages with sources and documents")
    return [document for domain in kept for document in found[domain]]


def _files(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    taken = set()
    for folder in folders:
        for path in folder.rglob("*"):
            kind = "docs" if path.name == "METADATA" else KINDS.get(path.suffix)
            if kind and path not in taken and "__pycache__" not in path.parts:
                taken.add(path)
                yield ("tests" if kind == "code" and TESTS.search(path.as_posix()) else kind), path


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


def streams(texts: list[Document], learned: BytePairEncoding) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return of every domain the token ids [tokens] of what is trained on, and of what is held out."""
    ids: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
    for document in texts:
        mine = ids[document.held_out].setdefault(document.domain, [])
        mine += learned.encode(document.text)
        mine.append(learned.end)
    train, held = ({d: np.array(values, np.uint16) for d, values in part.items()} for part in ids)
    return train, held
