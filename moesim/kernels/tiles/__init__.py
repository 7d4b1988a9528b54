"""Time of each operator when it runs as tiles on multiprocessors: the formulas behind the ``tile`` kernel model.

All share one picture. A kernel is cut into tiles (or blocks of key/value columns); a tile takes the longer of
its arithmetic and its loads, plus a prologue; tiles spread over the multiprocessors. Meanwhile memory streams
what cannot be avoided. The two overlap: ``overlapped(tiles, memory)``, plus what cannot overlap (launch,
second kernels). Every formula is non-decreasing in the amount of work.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from pydantic import BeforeValidator, ValidationError

from moesim.registry import suggest


def overlapped(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the time of two activities that overlap: the longer one, or 19 % more where they are equal.

    The fourth-power mean; exponents 2.6 to 3.8 fit best when free, the error hardly differs, and square roots are fast.
    """
    a, b = a * a, b * b
    return np.sqrt(np.sqrt(a * a + b * b))


def group_of(cls: type) -> Any:
    """Annotate a field that holds the constants *cls*: a mapping, as a file writes it, becomes one."""
    known = [f.name for f in dataclasses.fields(cls)]

    def build(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for key in value:
            if key not in known:
                raise ValueError(f"unknown constant {key!r}{suggest(key, known)}")
        try:
            return cls(**value)
        except ValidationError as error:
            facts = (f"{e['loc'][0]}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
            raise ValueError("; ".join(facts)) from None

    return BeforeValidator(build)
