"""Interchangeable parts: found by being in their folder, one file each.

A part is one frozen dataclass in one module; the module's file name is the part's name, the first
line of its docstring is what ``moesim list`` prints. A file (or a keyword) names a part as ``lpt`` or,
with parameters, as ``{name: joint, balance: 0.5}``. Adding a part is adding a file.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as _dataclass
from pydantic_core import core_schema

# kind -> (package that holds the parts, the method each of them has)
KINDS = {
    "topology": ("moesim.network.topologies", "links"),
    "balancing": ("moesim.network.balancing", "paths"),
    "all_to_all": ("moesim.network.all_to_all", "stages"),
    "all_reduce": ("moesim.network.all_reduce", "rounds"),
    "kernel_model": ("moesim.kernels.models", "time_s"),
    "layer_profile": ("moesim.kernels.profiles", "read"),
    "selection": ("moesim.pim.selections", "beside"),
    "measurement_format": ("moesim.kernels.formats", "read"),
    "solver": ("moesim.placement.solvers", "solve"),
    "objective": ("moesim.placement.objectives", "costs"),
    "cache_policy": ("moesim.memory.policies", "rule"),
    "miss": ("moesim.memory.misses", "decide"),
    "prefetcher": ("moesim.memory.prefetchers", "forecast"),
    "reroute": ("moesim.memory.reroutes", "swap"),
    "batching": ("moesim.memory.batching", "passes"),
    "scheduler": ("moesim.serving.schedulers", "plan"),
    "request_router": ("moesim.serving.routers", "choose"),
    "transform": ("moesim.transforms", "apply"),
    "format": ("moesim.formats", "read"),
    "bench": ("moesim.measure.blocks", "points"),
    "placement_format": ("moesim.placement.formats", "write"),
    "run_format": ("moesim.runs.formats", "read"),
}


T = TypeVar("T")


class UnknownPart(ValueError):
    """A part name that is not in its folder."""


@dataclass_transform(frozen_default=True)
def part(cls: type[T]) -> type[T]:
    """Make *cls* a part: a frozen dataclass whose parameters are validated and may not be unknown."""
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    decorated: Any = _dataclass(cls, frozen=True, config=config)
    return decorated


@cache
def names(kind: str) -> tuple[str, ...]:
    """Return the sorted names of all parts of *kind*."""
    package = importlib.import_module(KINDS[kind][0])
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


@cache
def find(kind: str, name: str) -> type:
    """Return the class of the part *name* of *kind*. Raises ``UnknownPart`` with the nearest names."""
    if name not in names(kind):
        raise UnknownPart(f"unknown {kind.replace('_', ' ')} {name!r}{suggest(name, names(kind))}")
    module = importlib.import_module(f"{KINDS[kind][0]}.{name}")
    method = KINDS[kind][1]
    classes = [c for c in vars(module).values()
               if inspect.isclass(c) and c.__module__ == module.__name__
               and dataclasses.is_dataclass(c) and hasattr(c, method)]
    if len(classes) != 1:
        raise TypeError(f"{module.__name__} must define exactly one part with a method {method!r}, "
                        f"found {[c.__name__ for c in classes]}")
    return classes[0]


def suggest(word: str, known: Any) -> str:
    """Return the end of an error message: the nearest of *known*, or all of them."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(str(k) for k in known)}"


# Pydantic's own complaints that say what is wanted but not what was given.
_ABOUT_A_VALUE = {"bool_type", "dict_type", "float_type", "greater_than", "greater_than_equal", "int_type", "less_than",
                  "less_than_equal", "literal_error", "string_type", "tuple_type"}


def plain(error: dict[str, Any]) -> str:
    """Return a validation *error* of pydantic in words for the author of a file."""
    kind, message, given = error["type"], error["msg"].removeprefix("Value error, "), error["input"]
    if kind == "missing":
        return "missing; add it"
    if kind in ("model_type", "dataclass_type", "model_attributes_type"):
        return f"must be a mapping of keys to values, got {_shown(given)}"
    if kind == "union_tag_invalid":
        about = error["ctx"]
        return f"unknown {about['discriminator']} {about['tag']!r}; known: {about['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"must be a mapping with a key {error['ctx']['discriminator']}"
    if kind == "too_short" and "ctx" in error:
        return f"needs at least {error['ctx']['min_length']}, got {error['ctx']['actual_length']}; add to the list"
    message = message.replace("valid tuple", "list")  # what a frozen spec holds; files have lists
    if kind in _ABOUT_A_VALUE and not message.endswith(f", got {_shown(given)}"):
        return f"{message}, got {_shown(given)}"
    return message


def _shown(given: Any) -> str:
    """Return *given* as the author of a file wrote it."""
    return repr(list(given) if isinstance(given, tuple) else given)


def expect(value: Any, kind: type | tuple[type, ...], name: str, remedy: str) -> None:
    """Raise ``TypeError`` unless the argument *name* is a *kind*: a path where its content belongs, or two swapped."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}; {remedy}")


def near_files(path: Path) -> str:
    """Return the end of a message about a missing file: the nearest beside it, else all there that end alike."""
    beside = [p for p in sorted(path.parent.iterdir()) if not p.name.startswith(".")] if path.parent.is_dir() else []
    alike = {p.stem: p.name for p in beside if path.suffix and p.suffix == path.suffix}
    close = (difflib.get_close_matches(path.name, [p.name for p in beside if p.suffix != path.suffix], n=1, cutoff=0.8)
             or [alike[stem] for stem in difflib.get_close_matches(path.stem, alike, n=1, cutoff=0.6)])
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(alike.values())}" if alike else "; correct the path"


def name_of(instance: Any) -> str:
    """Return the name under which the part *instance* is registered."""
    return type(instance).__module__.rsplit(".", 1)[1]


def summary(kind: str, name: str) -> str:
    """Return the first line of the part's module docstring."""
    return (inspect.getmodule(find(kind, name)).__doc__ or "").strip().splitlines()[0]


def make(kind: str, value: Any) -> Any:
    """Return the part that *value* (an instance, a name, or a mapping with ``name``) describes."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        if not dataclasses.is_dataclass(value) or not hasattr(value, KINDS[kind][1]):
            raise UnknownPart(f"{value!r} is not a {kind.replace('_', ' ')}; write its name, "
                              f"one of: {', '.join(names(kind))}")
        return value
    if "name" not in value:
        raise UnknownPart(f"a {kind.replace('_', ' ')} needs a name, one of: {', '.join(names(kind))}")
    cls = find(kind, str(value["name"]))
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "name"}
    known = [f.name for f in dataclasses.fields(cls)]
    for key in options:
        if key not in known:
            raise UnknownPart(f"{value['name']} has no parameter {key!r}"
                              + (suggest(key, known) if known else "; it takes none"))
    try:
        return cls(**options)
    except ValidationError as error:
        facts = [f"{'.'.join(str(p) for p in e['loc'])}: {plain(dict(e))}" for e in error.errors()]
        raise UnknownPart(f"{value['name']}: " + "; ".join(facts)) from None


def dump(instance: Any) -> dict[str, Any]:
    """Return the mapping from which ``make`` builds an equal part."""
    return {"name": name_of(instance)} | TypeAdapter(type(instance)).dump_python(instance, mode="json")


@dataclasses.dataclass(frozen=True)
class Part:
    """Annotate a spec's field that holds a part: ``solver: Annotated[Any, Part("solver")]``."""

    kind: str
    optional: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._read, serialization=core_schema.plain_serializer_function_ser_schema(self._dump))

    def _read(self, value: Any) -> Any:
        return None if value is None and self.optional else make(self.kind, value)

    def _dump(self, value: Any) -> Any:
        return None if value is None else dump(value)
