"""Request tables: when requests arrive and how many tokens they have.

A request table is a DataFrame with one row per request: ``request`` (0..n-1, in order of arrival),
``arrival_s``, ``prompt_tokens``, ``output_tokens`` and, where known, ``domain``. Closed-loop requests
arrive when an earlier one finishes; their ``arrival_s`` is NaN until the run sets it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from moesim.config import DataPath, Spec
from moesim.units import PerSecond

COLUMNS = ("request", "arrival_s", "prompt_tokens", "output_tokens")


class Uniform(Spec):
    """Token counts drawn uniformly from the integers ``low`` to ``high``, both included."""

    low: int = Field(ge=1)
    high: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.high < self.low:
            raise ValueError(f"high {self.high} is below low {self.low}; swap them")
        return self


Length = Annotated[int, Field(ge=1)] | Uniform


class Poisson(Spec):
    """Requests that arrive at random times, ``rate`` per second on average (exponential gaps)."""

    kind: Literal["poisson"]
    rate: PerSecond
    count: int = Field(ge=1)
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
    count: int = Field(ge=1)
    prompt_tokens: Length | None = None
    output_tokens: Length | None = None


class Replay(Spec):
    """Requests read from a CSV or Parquet file with the columns of a request table."""

    kind: Literal["replay"]
    path: DataPath


Requests = Annotated[Poisson | ClosedLoop | Replay, Field(discriminator="kind")]


def _draw(length: Length, count: int, rng: np.random.Generator) -> np.ndarray:
    if isinstance(length, Uniform):
        return rng.integers(length.low, length.high + 1, count)
    return np.full(count, length)


def table(spec: Poisson | ClosedLoop | Replay, seed: int) -> pd.DataFrame:
    """Return the request table of *spec*; lengths are -1 where *spec* leaves them to the trace.

    Raises ``ValueError`` if a replayed file lacks a column, or holds impossible values.
    """
    if isinstance(spec, Replay):
        return _replay(spec)
    rng = np.random.default_rng([seed, 1])
    if isinstance(spec, Poisson):
        arrival = np.cumsum(rng.exponential(1 / spec.rate, spec.count))
    else:
        arrival = np.where(np.arange(spec.count) < spec.concurrency, 0.0, np.nan)
    lengths = {name: np.full(spec.count, -1) if length is None else _draw(length, spec.count, rng)
               for name, length in (("prompt_tokens", spec.prompt_tokens), ("output_tokens", spec.output_tokens))}
    return pd.DataFrame({"request": np.arange(spec.count), "arrival_s": arrival} | lengths)


def _replay(spec: Replay) -> pd.DataFrame:
    read = pd.read_parquet if spec.path.suffix == ".parquet" else pd.read_csv
    requests = read(spec.path)
    missing = [c for c in COLUMNS[1:] if c not in requests]
    if missing:
        raise ValueError(f"{spec.path}: no column {', '.join(missing)}; a request table has {', '.join(COLUMNS)}")
    for column, least in (("arrival_s", 0), ("prompt_tokens", 1), ("output_tokens", 1)):
        bad = np.flatnonzero(~(requests[column].to_numpy() >= least))
        if len(bad):
            raise ValueError(f"{spec.path}: row {bad[0]}: {column} is {requests[column].iloc[bad[0]]}; "
                             f"it must be at least {least}")
    if not requests["arrival_s"].is_monotonic_increasing:
        raise ValueError(f"{spec.path}: arrival_s is not sorted; sort the rows by arrival_s")
    keep = [*COLUMNS[1:], *(["domain"] if "domain" in requests else [])]
    return requests[keep].reset_index(drop=True).rename_axis("request").reset_index()
