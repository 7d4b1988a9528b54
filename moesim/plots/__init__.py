"""One figure per file: a function of the file's name takes a table and returns the Axes it drew on.

Every function is called as ``plots.pareto(table, ax=None, **options)``. Without *ax* it makes a figure of its own,
outside any global state: ``plots.save(axes.figure, "pareto.png")``. Tables are plain DataFrames (or what Parquet
keeps of them); which columns a plot reads is in its docstring, and a missing one is a ``ValueError``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from moesim import registry
from moesim.plots._style import figure, save

__all__ = ["draw", "figure", "names", "save"]


def names() -> tuple[str, ...]:
    """Return the sorted names of all plots."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def draw(name: str, table: Any, **options: Any) -> Any:
    """Return the Axes of the plot *name* of *table*. Raises ``ValueError`` if there is no such plot or option."""
    if name not in names():
        raise ValueError(f"unknown plot {name!r}{registry.suggest(name, names())}")
    known = list(inspect.signature(globals()[name]).parameters)[1:]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}{registry.suggest(option, known)}")
    return globals()[name](table, **options)


def _function(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


for _name in names():
    globals()[_name] = _function(_name)


def __getattr__(name: str) -> Any:  # for type checkers: the loop above has set every plot
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
