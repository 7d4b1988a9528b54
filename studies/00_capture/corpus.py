"""Real text that every CPython has: five domains, split by file into a training and a held-out part.

code   standard library sources without their docstrings
docs   those docstrings, and the language reference in pydoc_data
c      the C headers of the interpreter
tests  the standard library's tests
tables character encoding tables
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOMAINS = ("code", "docs", "c", "tests", "tables")
NOT_TEXT_OF_OURS = {"site-packages", "__pycache__", "ensurepip"}  # other projects' code under other licences

TESTS = {"test", "tests", "idle_test"}  # folders


@dataclass(frozen=True)
class Document:
    """One piece of text; `name` is the file it came from."""

    domain: str
    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Tell whether the file belongs to the tenth of all files that training never sees."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4]) % 10 == 0


def documents() -> list[Document]:
    """Return all documents of this interpreter, in an order that does not depend on the file system."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [*_library(library), *_topics(), *_headers(Path(sysconfig.get_path("include")))]
    found.sort(key=lambda document: hashlib.sha256(f"{document.domain} {document.name}".encode()).digest())
    missing = set(DOMAINS) - {document.domain for document in found}
    if missing:
        raise ValueError(
            f"{library}: no text for the domains {sorted(missing)}; this Python came without its tests or headers: "
            "install them (Debian: libpython3-testsuite and python3-dev) or use an interpreter from python.org"
        )
    return found


def _library(library: Path) -> Iterator[Document]:
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if NOT_TEXT_OF_OURS.intersection(name.parts) or name.parts[0] == "pydoc_data":
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # some test files are in other encodings on purpose
        if TESTS.intersection(name.parts):
            yield Document("tests", str(name), text)
        elif name.parts[0] == "encodings":
            yield Document("tables", str(name), text)
        else:
            yield from _code_and_docs(str(name), text)


def _code_and_docs(name: str, text: str) -> Iterator[Document]:
    """Cut one source file into its docstrings and the rest."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files have invalid escapes
            tree = ast.parse(text)
    except SyntaxError:
        return  # lib2to3 ships files that are Python 2 on purpose
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    described = [node for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node)]
    drop: set[int] = set()
    for node in described:
        drop.update(range(node.body[0].lineno - 1, node.body[0].end_lineno or 0))
    code = "".join(line for index, line in enumerate(text.splitlines(keepends=True)) if index not in drop)
    prose = "\n\n".join(ast.get_docstring(node) or "" for node in described)
    yield Document("code", name, code)
    if prose:
        yield Document("docs", name, prose)


def _topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield Document("docs", f"topics/{name}", text)


def _headers(include: Path) -> Iterator[Document]:
    for path in sorted(include.rglob("*.h")):
        yield Document("c", str(path.relative_to(include)), path.read_text(encoding="utf-8"))
