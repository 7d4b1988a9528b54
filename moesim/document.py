"""YAML as plain data that remembers where every key stands, and the problems found in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Place = tuple[str, int]
KeyPath = tuple[Any, ...]
_DEEPEST = 50  # levels of a file: enough for any spec, far below what an alias to itself would reach


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is (file, line, dotted path) and the fact with its remedy."""

    place: Place | None
    path: str
    fact: str

    def __str__(self) -> str:
        file, line = self.place or ("", 0)
        return ": ".join(text for text in (f"{file}:{line}" if line else file, self.path, self.fact) if text)


class ConfigError(ValueError):
    """Wrong input: all ``problems`` found, one per line when printed."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


@dataclass
class Document:
    """Plain data, the place of every path in it, and the problems found while reading."""

    data: Any
    marks: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    folder: Path = field(default_factory=Path.cwd)

    def place(self, path: KeyPath) -> Place | None:
        """Return the place of *path*, or of its nearest ancestor that is in the text."""
        if path not in self.marks:  # an override below it may have made it
            below = [place for key, place in self.marks.items() if key[: len(path)] == path and not place[1]]
            if path and below:
                return below[-1]
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path)

    def problem(self, path: str, fact: str) -> Problem:
        """Return a problem at the dotted *path*."""
        return Problem(self.place(tuple(path.split("."))), path, fact)


def read(path: str | Path) -> Document:
    """Return the YAML file *path* as plain data with the place of every key. Raises ``ConfigError``."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        fact = f"cannot be read: {error.strerror}; correct the path"
        raise ConfigError([Problem((_shown(path), 1), "", fact)]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem((_shown(path), 1), "", "is not UTF-8 text; give a YAML file")]) from None
    return read_text(text, _shown(path), path.resolve().parent)


def read_text(text: str, name: str, folder: Path) -> Document:
    """Return the YAML *text*, which messages call *name*, as a ``Document``."""
    yaml = YAML(typ="safe", pure=True)
    document = Document(None, folder=folder)
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError([Problem((name, line), "", f"not valid YAML: {error.problem}")]) from None
    except YAMLError as error:  # characters that no YAML file may hold
        raise ConfigError([Problem((name, 1), "", f"not valid YAML: {str(error).splitlines()[0]}")]) from None
    if not isinstance(node, MappingNode):
        raise ConfigError([Problem((name, 1), "", "must be a mapping of keys to values")])
    document.marks[()] = (name, 1)
    document.data = _plain(node, (), document, (yaml, name))
    return document


def _shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _plain(node: Node, path: KeyPath, document: Document, source: tuple[YAML, str]) -> Any:
    """Return *node* as dicts, lists and scalars; note places and duplicate keys in *document*."""
    _, name = source
    if len(path) > _DEEPEST:
        raise ConfigError([Problem((name, node.start_mark.line + 1), dotted(path[:3]),
                                   f"is nested more than {_DEEPEST} deep, or holds itself; write it flat")])
    if isinstance(node, MappingNode):
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            place = (name, key_node.start_mark.line + 1)
            key = _scalar(key_node, path, source)
            here = (*path, key)
            if key in mapping:
                first = document.marks[here][1]
                document.problems.append(Problem(place, dotted(here), f"given twice (first on line {first}); keep one"))
                continue
            document.marks[here] = place
            mapping[key] = _plain(value_node, here, document, source)
        return mapping
    if isinstance(node, SequenceNode):
        for i, item in enumerate(node.value):
            document.marks[(*path, i)] = (name, item.start_mark.line + 1)
        return [_plain(item, (*path, i), document, source) for i, item in enumerate(node.value)]
    return _scalar(node, path, source)


def _scalar(node: Node, path: KeyPath, source: tuple[YAML, str]) -> Any:
    """Return the value of the scalar *node*. Raises ``ConfigError`` if it is a list, a merge key or has a tag."""
    yaml, name = source
    fact = "keys are text; a list or mapping is not"
    if isinstance(node, ScalarNode):
        try:
            return yaml.constructor.construct_object(node, deep=True)
        except (YAMLError, ValueError):
            fact = f"{node.value!r} is no plain value; write it out, without '<<' and without a '!' tag"
    raise ConfigError([Problem((name, node.start_mark.line + 1), dotted(path), fact)])


def dotted(path: Iterable[Any]) -> str:
    return ".".join(str(p) for p in path)
