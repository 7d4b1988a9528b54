"""Request tables: when requests arrive and how many tokens they have.

A request table is a DataFrame with one row per request: ``request`` (0..n-1, in order of arrival),
``arrival_s``, ``prompt_tokens``, ``output_tokens`` and, where known, ``domain``, ``priority`` (whole numbers, the
smallest goes first), ``prompt_ids`` and ``output_ids`` (lists of token ids). Closed-loop requests arrive when an
earlier one finishes; their ``arrival_s`` is NaN until the run sets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from moesim import json_lines
from moesim.config import DataPath, Spec
from moesim.units import PerSecond

_LARGEST = 2.0**31  # tokens of a request and seconds of arrival: 68 years, int32 positions
_MOST = 10_000_000  # requests of a run: more do not fit into memory
_LATE = 1e6  # seconds: nobody waits eleven days for the first request, but time stamps of a clock look like this
COLUMNS = ("request", "arrival_s", "prompt_tokens", "output_tokens")
EXTRAS = ("domain", "priority", "prompt_ids", "output_ids")
# What LLMServingSim's workload files call the columns.
_JSON_NAMES = {"input_toks": "prompt_tokens", "output_toks": "output_tokens", "input_tok_ids": "prompt_ids",
               "output_tok_ids": "output_ids"}


class Uniform(Spec):
    """Token counts drawn uniformly from the integers ``low`` to ``high``, both included."""

    low: int = Field(ge=1)
    high: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.high < self.low:
            raise ValueError(f"high {self.high} is below low {self.low}; swap them")
        return self


def _form(value: object) -> str:
    return "range" if isinstance(value, dict | Uniform) else "number"


def _length(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | dict | Uniform | None):
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"{shown!r} is no number of tokens; write a whole one (512), or {{low: 128, high: 512}}")
    return value


Length = Annotated[Annotated[int, Field(ge=1), Tag("number")] | Annotated[Uniform, Tag("range")], Discriminator(_form),
                   BeforeValidator(_length)]


class Poisson(Spec):
    """Requests that arrive at random times, ``rate`` per second on average (exponential gaps)."""

    kind: Literal["poisson"]
    rate: PerSecond
    count: int = Field(ge=1, le=_MOST)
    prompt_tokens: Length | None = None
    output_tokens: Length | None = None

    @model_validator(mode="after")
    def _arrive(self) -> Poisson:
        if self.rate == 0:
            raise ValueError("rate is 0: no request would ever arrive; write e.g. '10 /s'")
        return self


class ClosedLoop(Spec):
    """``concurrency`` users, each of whom sends the next request when the last one has finished."""

    kind: Literal["closed_loop"]
    concurrency: int = Field(ge=1)
    count: int = Field(ge=1, le=_MOST)
    prompt_tokens: Length | None = None
    output_tokens: Length | None = None


class Replay(Spec):
    """Requests read from a CSV, Parquet or JSON-lines file with the columns of a request table.

    JSON lines may use the names of LLMServingSim's workloads: input_toks, output_toks, arrival_time_ns, input_tok_ids,
    output_tok_ids.
    """

    kind: Literal["replay"]
    path: DataPath


Requests = Annotated[Poisson | ClosedLoop | Replay, Field(discriminator="kind")]


def _draw(length: Length, count: int, rng: np.random.Generator) -> np.ndarray:
    if isinstance(length, Uniform):
        return rng.integers(length.low, length.high + 1, count)
    return np.full(count, length)


def table(spec: Poisson | ClosedLoop | Replay, seed: int) -> pd.DataFrame:
    """Return the request table of *spec*; lengths are -1 where *spec* leaves them to the trace.

    Raises ``ValueError`` if a replayed file lacks a column, or holds impossible values, or requests come too late.
    """
    if isinstance(spec, Replay):
        return _replay(spec)
    rng = np.random.default_rng([seed, 1])
    if isinstance(spec, Poisson):
        arrival = np.cumsum(rng.exponential(1 / spec.rate, spec.count))
        if not arrival[-1] < _LARGEST:
            raise ValueError(f"the last of {spec.count} requests would arrive after {arrival[-1]:.3g} s, beyond "
                             f"{_LARGEST:g}; raise rate ({spec.rate:g} /s), or lower count")
    else:
        arrival = np.where(np.arange(spec.count) < spec.concurrency, 0.0, np.nan)
    lengths = {name: np.full(spec.count, -1) if length is None else _draw(length, spec.count, rng)
               for name, length in (("prompt_tokens", spec.prompt_tokens), ("output_tokens", spec.output_tokens))}
    return pd.DataFrame({"request": np.arange(spec.count), "arrival_s": arrival} | lengths)


def _replay(spec: Replay) -> pd.DataFrame:
    requests = _read(spec.path)
    missing = [c for c in COLUMNS[1:] if c not in requests]
    if missing:
        raise ValueError(f"{spec.path}: no column {', '.join(missing)}; a request table has {', '.join(COLUMNS)}")
    if requests.empty:
        raise ValueError(f"{spec.path}: holds no request; give at least one row")
    for column, least in (("arrival_s", 0), ("prompt_tokens", 1), ("output_tokens", 1)):
        _check_column(spec.path, column, requests[column], least)
    if not requests["arrival_s"].is_monotonic_increasing:
        raise ValueError(f"{spec.path}: arrival_s is not sorted; sort the rows by arrival_s")
    if requests["arrival_s"].iloc[0] > _LATE:
        raise ValueError(f"{spec.path}: the first arrival_s is {requests['arrival_s'].iloc[0]:g}, but time begins with "
                         f"the run; subtract the first arrival from all")
    _check_extras(spec.path, requests)
    keep = [c for c in (*COLUMNS[1:], *EXTRAS) if c in requests]
    whole = {c: np.int64 for c in ("prompt_tokens", "output_tokens", "priority") if c in requests}
    requests = requests.astype({"arrival_s": float} | whole)
    return requests[keep].reset_index(drop=True).rename_axis("request").reset_index()


def _read(path: Path) -> pd.DataFrame:
    """Return the table in the file *path*. Raises ``ValueError``."""
    if path.suffix == ".jsonl":
        return _read_lines(path)
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own complaints are ValueErrors
        raise ValueError(f"{path}: not a readable CSV or Parquet file ({str(error).splitlines()[0]}); "
                         f"write a table with {', '.join(COLUMNS)}") from None


def _read_lines(path: Path) -> pd.DataFrame:
    requests = pd.DataFrame(json_lines.read(path)).rename(columns=_JSON_NAMES)
    if "arrival_time_ns" in requests and "arrival_s" not in requests:
        requests["arrival_s"] = pd.to_numeric(requests["arrival_time_ns"], errors="coerce") * 1e-9
    return requests


def _check_extras(path: Path, requests: pd.DataFrame) -> None:
    """Raise ``ValueError`` if priorities are not whole numbers, or token ids are not as many as there are tokens."""
    if "priority" in requests:
        numbers = pd.to_numeric(requests["priority"], errors="coerce").to_numpy(float)
        bad = np.flatnonzero(~(np.abs(numbers) < _LARGEST) | (numbers % 1 != 0))
        if len(bad):
            raise ValueError(f"{path}: row {bad[0]}: priority is {requests['priority'].iloc[bad[0]]}; it must be a "
                             f"whole number (the smallest goes first)")
    if ("prompt_ids" in requests) != ("output_ids" in requests):
        raise ValueError(f"{path}: prompt_ids and output_ids come together; add the other column")
    for ids, count in (("prompt_ids", "prompt_tokens"), ("output_ids", "output_tokens")):
        for row, (values, n) in enumerate(zip(requests[ids], requests[count], strict=True) if ids in requests else ()):
            if np.ndim(values) != 1 or len(values) != n or np.asarray(values).dtype.kind not in "iu":
                raise ValueError(f"{path}: row {row}: {ids} must be a list of {n} token ids ({count}); lists need a "
                                 f"Parquet file or JSON lines")


def _check_column(path: Path, column: str, values: pd.Series, least: int) -> None:
    """Raise ``ValueError`` if *values* are not finite numbers from *least* up, or token counts are not whole."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
    bad = np.flatnonzero(~((numbers >= least) & (numbers < _LARGEST)))
    if len(bad):
        raise ValueError(f"{path}: row {bad[0]}: {column} is {values.iloc[bad[0]]}; it must be at least {least}"
                         f"{'' if not numbers[bad[0]] >= _LARGEST else f' and below {_LARGEST:g}'}")
    broken = np.flatnonzero(numbers % 1) if column != "arrival_s" else bad
    if len(broken):
        raise ValueError(f"{path}: row {broken[0]}: {column} is {values.iloc[broken[0]]}; tokens are whole numbers")
