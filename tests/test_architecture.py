"""The picture of the house (docs/background/architecture.md): imports point down, tools stay in their rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "moesim"

# From the top floor to the cellar. A module imports its own floor's package, or floors below.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"demo", "runs"},
    {"plots", "explore", "measure"},
    {"sim"},
    {"result"},
    {"metrics"},
    {"scenario"},
    {"pools"},
    {"expert_cache", "fits", "sections"},
    {"serving", "placement", "network", "memory", "kernels", "pim", "transforms", "capture"},
    {"trace_stats", "synthetic", "balanced"},
    {"formats"},
    {"trace"},
    {"trace_file"},
    {"trace_checks"},
    {"trace_loops"},
    {"requests", "hardware", "model"},
    {"attention"},
    {"layers"},
    {"config"},
    {"published"},
    {"document", "json_lines", "page", "registry", "torch_file", "units", "whole"},
]
ROOMS = {  # heavy tools and the only packages that may import them
    "simpy": {"sim"},
    "pulp": {"placement"},
    "torch": {"capture", "measure"},
    "triton": {"measure"},
    "transformers": {"capture"},
    "matplotlib": {"plots"},
    "pint": {"units"},
    "networkx": {"network"},
    "typer": {"cli"},
}
FLOOR_OF = {name: i for i, names in enumerate(FLOORS) for name in names}


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Yield the dotted name of every import in *file*, wherever it stands, except those for type checking alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    typing_only = {id(inner) for node in guards for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            if node.module == "moesim":
                yield from ((f"moesim.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


def room(file: Path) -> str:
    """Return the top-level module or package of *file*."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def test_every_module_has_a_floor() -> None:
    assert {room(f) for f in FILES} == set(FLOOR_OF), "draw the new module into FLOORS (and the docs)"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    here = room(file)
    for name, line in imports(file):
        top, *rest = name.split(".")
        if top != "moesim" or not rest or rest[0] == here:
            continue
        assert FLOOR_OF[rest[0]] > FLOOR_OF[here], f"{file}:{line}: {here} imports {rest[0]}, which is not below it"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_tools_stay_in_their_rooms(file: Path) -> None:
    for name, line in imports(file):
        allowed = ROOMS.get(name.split(".")[0])
        assert allowed is None or room(file) in allowed, f"{file}:{line}: {name} belongs to {sorted(allowed or ())}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_pieces_are_small(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 300, f"{file} has {text.count(chr(10))} lines: does it do more than one thing?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{file}:{node.lineno}: {node.name} has {length} lines"
