"""The requests of a measured run, to be simulated: its arrivals and lengths, the tokens of the file that was sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from moesim import requests as arrivals
from moesim.requests import Replay
from moesim.runs.run import Run
from moesim.scenario import Scenario

_FROM_FILE = ("prompt_ids", "output_ids", "priority", "domain")


def requests_of(run: Run, scenario: Scenario) -> pd.DataFrame:
    """Return the request table of *run*: what its client sent, when it sent it.

    Tokens (and priorities, domains) are those of the file that *scenario* replays, or of the workload that the run
    names, request by request in order. Raises ``ValueError`` if that file holds other requests.
    """
    table = run.requests[["request", "arrival_s", "prompt_tokens", "output_tokens"]].copy()
    if isinstance(scenario.requests, Replay):
        path = scenario.requests.path
    elif run.meta["workload"] is not None:
        path = Path(run.meta["workload"])
    else:
        return table
    sent = arrivals.table(Replay(kind="replay", path=path), scenario.seed)
    _same(path, sent, table, str(run.meta["path"]))
    return table.assign(**{name: sent[name] for name in _FROM_FILE if name in sent})


def _same(path: Path, sent: pd.DataFrame, table: pd.DataFrame, run: str) -> None:
    """Raise ``ValueError`` unless the file *path* holds the requests of *table*, in order."""
    remedy = "give the file that was sent, or requests of another kind than replay"
    if len(sent) != len(table):
        raise ValueError(f"{path}: holds {len(sent)} requests, the run {run} has {len(table)}; {remedy}")
    for column in ("prompt_tokens", "output_tokens"):
        other = np.flatnonzero(sent[column].to_numpy() != table[column].to_numpy())
        if len(other):
            row = other[0]
            raise ValueError(f"{path}: row {row}: {column} is {sent[column].iloc[row]}, in the run {run} it is "
                             f"{table[column].iloc[row]}; {remedy}")
