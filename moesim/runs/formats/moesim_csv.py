"""A table of requests as anybody can write it, CSV or Parquet: arrival, first and last token, numbers of tokens.

Any one clock will do; what is read counts from the first arrival:

>>> import pathlib, tempfile
>>> path = pathlib.Path(tempfile.mkdtemp()) / "run.csv"
>>> _ = path.write_text("request,arrival_s,first_token_s,last_token_s,prompt_tokens,output_tokens\\n"
...                     "a,100.0,100.5,102.5,7,5\\nb,101.0,101.25,101.25,9,1\\n")
>>> MoesimCsv().read(path).requests[["arrival_s", "first_token_s", "last_token_s"]].to_numpy().tolist()
[[0.0, 0.5, 2.5], [1.0, 1.25, 1.25]]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from moesim.registry import part
from moesim.runs.formats._checks import File, one_clock
from moesim.runs.run import Run

_EVENTS = ("arrival_s", "queued_s", "scheduled_s", "first_token_s", "last_token_s")
_NEED = ("request", "arrival_s", "first_token_s", "last_token_s", "prompt_tokens", "output_tokens")
_SAME_S = 1e-6  # seconds: times of tokens are written with more digits than this


@part
class MoesimCsv:
    """Read request, arrival_s, first_token_s, last_token_s, prompt_tokens, output_tokens; sorted by arrival, one clock.

    Optional: ``queued_s`` (in the engine's queue), ``scheduled_s`` (first time in a step) and, in Parquet, ``token_s``:
    a list of the times of all output tokens, for inter-token latencies.
    """

    def matches(self, path: Path) -> bool:
        """Say whether *path* is a CSV or Parquet file."""
        return Path(path).suffix in (".csv", ".parquet") and Path(path).is_file()

    def read(self, path: str | Path) -> Run:
        """Return the run. Raises ``ValueError`` with file, row, fact and remedy."""
        path = Path(path)
        file = _file(path)
        file.need(_NEED)
        twice = np.flatnonzero(file.table["request"].duplicated())
        if len(twice):
            raise ValueError(f"{file.place(twice[0])}: request {file.table['request'].iloc[twice[0]]} is there twice; "
                             f"write one row per request")
        times = file.times([name for name in _EVENTS if name in file.table])
        arrival = times["arrival_s"]
        file.sorted("arrival_s", arrival)
        for name, values in times.items():
            if not one_clock(arrival, values):
                raise ValueError(f"{file.place(0)}: arrival_s is {arrival[0]:.3f} and {name} {values[0]:.3f}: of "
                                 f"different clocks (one counts from 1970?); write all times from one")
        requests = pd.DataFrame({
            "request": np.arange(len(arrival)), **{name: values - arrival[0] for name, values in times.items()},
            "prompt_tokens": file.counts("prompt_tokens"), "output_tokens": file.counts("output_tokens")})
        if "token_s" in file.table:
            requests["token_s"] = _tokens(file, requests, float(arrival[0]))
        return Run(requests, None, {"path": str(path), "model": "", "clock": "", "engine": {}, "workload": None})


def _file(path: Path) -> File:
    try:
        parquet = path.suffix == ".parquet"
        return File(path, pd.read_parquet(path) if parquet else pd.read_csv(path), None if parquet else 2)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own complaints are ValueErrors
        raise ValueError(f"{path}: not a readable CSV or Parquet file ({str(error).splitlines()[0]}); write a table "
                         f"with {', '.join(_NEED)}") from None


def _tokens(file: File, requests: pd.DataFrame, origin: float) -> list[np.ndarray]:
    """Return the times of each request's tokens. Raises ``ValueError`` if they are not those of its row."""
    found = []
    for row, (given, first, last, count) in enumerate(zip(
            file.table["token_s"], requests["first_token_s"], requests["last_token_s"], requests["output_tokens"],
            strict=True)):
        if isinstance(given, str) or np.ndim(given) != 1:
            raise ValueError(f"{file.place(row)}: token_s is {given!r}, not a list of times; write it to Parquet, or "
                             f"leave it out")
        times = np.asarray(given, float) - origin
        if len(times) != count:
            raise ValueError(f"{file.place(row)}: token_s has {len(times)} times for {count} output tokens; give one "
                             f"each")
        if not (np.diff(times) >= 0).all() or abs(times[0] - first) > _SAME_S or abs(times[-1] - last) > _SAME_S:
            raise ValueError(f"{file.place(row)}: token_s does not increase from first_token_s to last_token_s; "
                             f"correct it")
        found.append(times)
    return found
