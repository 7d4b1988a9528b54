"""Strict YAML -> frozen specs: every mistake at once, each with file:line, dotted path and remedy.

Three steps, each a function: ``read`` a file into plain data that remembers its lines, ``graft`` the
files it names (``model: mixtral-8x7b``) and apply overrides, ``validate`` against a frozen pydantic
class. Wrong input raises ``ConfigError``, which holds all problems and prints one line for each.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from moesim.document import ConfigError, Document, KeyPath, Problem, dotted, read
from moesim.registry import plain, suggest

__all__ = ["ConfigError", "DataPath", "Document", "Named", "Problem", "Spec", "build", "facts_error", "find_file",
           "library_names", "library_roots", "load", "read", "validate"]

class Spec(BaseModel):
    """A frozen description read from YAML: unknown keys are errors, defaults are part of the class."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
    _document: Document | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        """Compare fields: where they were read from does not matter."""
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # arrays and mappings inside

    @model_validator(mode="wrap")
    @classmethod
    def _read_mapping(cls, data: Any, handler: Any) -> Any:
        if isinstance(data, dict):  # a frozen spec holds tuples; text has lists
            data = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        try:
            return handler(data)
        except ValidationError as error:
            known = list(cls.model_fields)
            raise ValidationError.from_exception_data(
                cls.__name__, [_explain(dict(e), known) for e in error.errors(include_url=False)]) from None

    def error(self, path: str, fact: str) -> ConfigError:
        """Return the error *fact* about the field at the dotted *path*, with file:line if known."""
        return ConfigError([(self._document or Document(None)).problem(path, fact)])

    def dump(self) -> dict[str, Any]:
        """Return plain data that loads back to an equal spec (quantities as text with units)."""
        return self.model_dump(mode="json", exclude_none=True)


def _explain(error: dict[str, Any], known: list[str]) -> InitErrorDetails:
    kind, message, loc = error["type"], plain(error), error["loc"]
    if kind == "extra_forbidden" and len(loc) == 1:
        kind, message = "unknown_key", f"unknown key{suggest(loc[0], known)}"
    elif kind == "union_tag_invalid":  # the place is the key that names the kind
        loc = (*loc, error["ctx"]["discriminator"].strip("'"))
    return InitErrorDetails(type=PydanticCustomError(kind, _literal(message)), loc=loc, input=error["input"])


def facts_error(title: str, facts: Iterable[tuple[str, str]]) -> ValidationError:
    """Return the error a validator raises for several *facts*, each with the dotted path of its field."""
    return ValidationError.from_exception_data(title, [
        InitErrorDetails(type=PydanticCustomError("fact", _literal(fact)), loc=tuple(path.split(".")), input=None)
        for path, fact in facts])


def _literal(message: str) -> typing.LiteralString:
    return typing.cast(typing.LiteralString, message)


@dataclass(frozen=True)
class Named:
    """Annotate a spec field that a file may give by name: a YAML file in *folder* of the library, or a path."""

    folder: str


T = TypeVar("T", bound=Spec)


def library_roots() -> list[Path]:
    """Return the folders that hold ``workloads/``, ``hw_configs/`` and ``studies/``."""
    package = Path(__file__).resolve().parent
    return [root for root in (package / "_data", package.parent) if (root / "hw_configs").is_dir()]


def library_names(folder: str) -> list[str]:
    """Return the names of the YAML files in *folder* of the library."""
    return sorted({file.stem for root in library_roots() for file in (root / folder).glob("*.yaml")})


def find_file(name: str, folder: Path) -> Path:
    """Return the file *name*, looked for beside the naming file, in the working folder and in the library.

    Raises ``ValueError`` if it is in none of them.
    """
    places = [folder, Path.cwd(), *library_roots()]
    for place in places:
        if (place / name).is_file():
            return (place / name).resolve()
    raise ValueError(f"no file {name!r} in {', '.join(str(p) for p in dict.fromkeys(places))}; correct the path")


def _data_path(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError(f"{value!r} is not a path")
    return find_file(str(value), (info.context or {}).get("folder", Path.cwd()))


def _portable(path: Path) -> str:
    """Return *path* as another machine with the same library finds it."""
    root = next((root for root in library_roots() if path.is_relative_to(root)), None)
    return path.relative_to(root).as_posix() if root else str(path)


DataPath = Annotated[Path, BeforeValidator(_data_path), PlainSerializer(_portable, return_type=str)]


def load(cls: type[T], path: str | Path, overrides: Iterable[str] = ()) -> T:
    """Return the YAML file *path*, with *overrides* (``"a.b=value"``), as a checked *cls*.

    Raises ``ConfigError`` with every problem found.
    """
    return build(cls, read(path), overrides)


def build(cls: type[T], document: Document, overrides: Iterable[str] = ()) -> T:
    """Return *document* as a checked *cls*: graft named files, apply *overrides*, validate."""
    graft(cls, document)
    for text in (overrides,) if isinstance(overrides, str) else overrides:
        _override(document, text)
        graft(cls, document)
    return validate(cls, document)


def graft(cls: type[Spec], document: Document, path: KeyPath = ()) -> None:
    """Replace the names in *document* that stand for library files (``Named`` fields of *cls*) by their content."""
    data = _at(document.data, path)
    if not isinstance(data, dict):
        return
    for key, info in cls.model_fields.items():
        here = (*path, key)
        named = next((m for m in info.metadata if isinstance(m, Named)), None)
        if named and isinstance(data.get(key), str):
            _graft_file(document, here, named)
        for inner in _specs_in(info.annotation):
            graft(inner, document, here)


def _graft_file(document: Document, path: KeyPath, named: Named) -> None:
    parent = _at(document.data, path[:-1])
    name = parent[path[-1]]
    is_path = name.endswith((".yaml", ".yml"))
    try:
        file = find_file(name if is_path else f"{named.folder}/{name}.yaml", document.folder)
        inner = read(file)
    except ConfigError as error:
        document.problems.extend(error.problems)
        return
    except ValueError as error:
        fact = str(error) if is_path else f"no {name!r} in {named.folder}{suggest(name, library_names(named.folder))}"
        document.problems.append(Problem(document.place(path), dotted(path), fact))
        parent[path[-1]] = None
        return
    parent[path[-1]] = inner.data
    document.marks |= {(*path, *p): place for p, place in inner.marks.items()}
    document.problems += [Problem(p.place, dotted((*path, p.path)), p.fact) for p in inner.problems]


def _specs_in(annotation: Any) -> Iterator[type[Spec]]:
    """Yield the Spec classes that a field of type *annotation* may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        for argument in typing.get_args(annotation):
            yield from _specs_in(argument)


def _at(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _override(document: Document, text: str) -> None:
    """Set the value of ``a.b=value`` (the value read as YAML) in *document*."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        document.problems.append(Problem(None, "", f"override {text!r} is not of the form path=value"))
        return
    keys: KeyPath = tuple(path.strip().split("."))
    data: Any = document.data
    for i, key in enumerate(keys):
        if isinstance(data, list) and key.isdigit() and int(key) < len(data):
            keys = (*keys[:i], int(key), *keys[i + 1:])
        elif not isinstance(data, dict):
            document.problems.append(Problem(None, dotted(keys[:i]), f"override {text!r}: not a mapping"))
            return
        if i == len(keys) - 1:
            break
        if isinstance(data, dict) and isinstance(data.get(key), str):  # a part given by name alone: make it a mapping
            data[key] = {"name": data[key]}
        data = data[keys[i]] if isinstance(data, list) else data.setdefault(key, {})
    try:
        data[keys[-1]] = YAML(typ="safe", pure=True).load(value)
    except YAMLError:
        document.problems.append(Problem(None, dotted(keys), f"override {text!r}: {value!r} is not valid YAML"))
        return
    document.marks = {p: place for p, place in document.marks.items() if p[: len(keys)] != keys}
    document.marks[keys] = (f"override {text}", 0)  # no line


def validate(cls: type[T], document: Document) -> T:
    """Return *document* as a *cls*. Raises ``ConfigError`` with every problem found."""
    problems = list(document.problems)
    known_bad = {p.path for p in problems}
    try:
        spec = cls.model_validate(document.data, context={"folder": document.folder})
    except ValidationError as error:
        found = [_problem(e, document) for e in error.errors(include_url=False) if e["type"] != "too_short"] or [
            _problem(e, document) for e in error.errors(include_url=False)]  # items left out because they are wrong
        problems += [p for p in found if p.path not in known_bad]
    if problems:
        raise ConfigError(sorted(problems, key=lambda p: p.place or ("", 0)))
    spec._document = document
    return spec


def _holds(data: Any, path: KeyPath, step: Any) -> bool:
    """Return whether what stands at *path* of *data* has the key or index *step*."""
    for key in path:
        data = data[key]
    return step in data if isinstance(data, dict) else isinstance(data, list) and step in range(len(data))


def _problem(error: Any, document: Document) -> Problem:
    path: KeyPath = ()
    loc = error["loc"]
    for i, step in enumerate(loc):  # pydantic adds the tags of unions to the path: they are not in the text
        last = i == len(loc) - 1 and error["type"] in ("missing", "unknown_key")
        if last or error["type"] == "fact" or _holds(document.data, path, step):
            path = (*path, step)
    return Problem(document.place(path), dotted(path), error["msg"].removeprefix("Value error, "))
