"""The picture of the house (docs/background/architecture.md): imports point down, tools stay in their rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

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


@cache
def parsed(file: Path) -> ast.Module:
    """Return the syntax tree of *file*."""
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imports(file: Path) -> list[tuple[str, int]]:
    """Return the dotted name and the line of every import in *file*, but those for type checking alone."""
    return list(_imports(file))


def _imports(file: Path) -> Iterator[tuple[str, int]]:
    tree = parsed(file)
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


def test_imports_point_down() -> None:
    above = [f"{file}:{line}: {room(file)} imports {rest[0]}, which is not below it"
             for file in FILES for name, line in imports(file) for top, *rest in [name.split(".")]
             if top == "moesim" and rest and rest[0] != room(file) and FLOOR_OF[rest[0]] <= FLOOR_OF[room(file)]]
    assert not above, "\n".join(above)


def test_tools_stay_in_their_rooms() -> None:
    astray = [f"{file}:{line}: {name} belongs to {sorted(ROOMS[tool])}"
              for file in FILES for name, line in imports(file) for tool in [name.split(".")[0]]
              if tool in ROOMS and room(file) not in ROOMS[tool]]
    assert not astray, "\n".join(astray)


def test_pieces_are_small() -> None:
    large = [f"{file} has {n} lines: does it do more than one thing?"
             for file in FILES for n in [file.read_text(encoding="utf-8").count("\n")] if n > 300]
    large += [f"{file}:{node.lineno}: {node.name} has {n} lines"
              for file in FILES for node in ast.walk(parsed(file)) if isinstance(node, ast.FunctionDef)
              for n in [(node.end_lineno or 0) - node.lineno + 1] if n > 60]
    assert not large, "\n".join(large)
