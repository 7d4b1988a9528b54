"""A run of a serving engine, measured or simulated, as tables whose time 0 is the first arrival."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim import registry

TICK_S = 1.0  # of a timeline that is made from requests


@dataclass(frozen=True, eq=False)
class Run:
    """What happened to every request, and how the engine was doing meanwhile. All times in seconds.

    ``requests``: request (0.. in order of arrival), arrival_s (the client sent it), first_token_s, last_token_s,
    prompt_tokens, output_tokens; where known queued_s (it is in the engine's queue), scheduled_s (first time in a
    step), token_s (float64 [output tokens], when each came; None: not known).
    ``timeline``: time_s (end of a tick), prompt_tok_per_s (prompts count whole, at their first token),
    output_tok_per_s, running, waiting, and kv_used (share of the KV memory) where known. None: nobody recorded it.
    ``meta``: path, model, clock (how times were joined), engine (its options), workload (file of the prompts, or None).
    """

    requests: pd.DataFrame
    timeline: pd.DataFrame | None
    meta: dict[str, Any]

    @property
    def makespan_s(self) -> float:
        """Seconds from the first arrival to the last token."""
        return float(self.requests["last_token_s"].max())


def read(path: str | Path) -> Run:
    """Return the measured run in *path*, a folder or a file of any ``run_format``. Raises ``ValueError``."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; correct the path")
    parts = [registry.make("run_format", name) for name in registry.names("run_format")]
    reader = next((part for part in parts if part.matches(path)), None)
    if reader is None:
        known = "; ".join(f"{n}: {registry.summary('run_format', n)}" for n in registry.names("run_format"))
        raise ValueError(f"{path}: not a measured run; give one of these. {known}")
    run: Run = reader.read(path)
    return run


def digest(path: Path) -> str:
    """Return the SHA-256 of the file *path*, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def of_requests(run: Run) -> pd.DataFrame:
    """Return a timeline of *run*'s requests alone: output tokens evenly from first to last; without scheduled_s, nobody
    is known to run or wait.
    """
    table = run.requests
    ends = np.arange(TICK_S, np.ceil(run.makespan_s / TICK_S) * TICK_S + TICK_S / 2, TICK_S)
    first, last = table["first_token_s"].to_numpy(), table["last_token_s"].to_numpy()
    outputs = table["output_tokens"].to_numpy()
    spread = np.clip((ends[:, None] - first) / np.maximum(last - first, 1e-12), 0.0, 1.0)  # all at once if only one
    done = np.where(ends[:, None] >= first, 1 + spread * (outputs - 1), 0.0).sum(axis=1)
    timeline = pd.DataFrame({"time_s": ends, "prompt_tok_per_s": rate(first, table["prompt_tokens"].to_numpy(), ends),
                             "output_tok_per_s": np.diff(done, prepend=0.0) / TICK_S})
    if "scheduled_s" in table:
        started = table["scheduled_s"].to_numpy()
        timeline["running"] = inside(started, last, ends)
        timeline["waiting"] = inside(table["arrival_s"].to_numpy(), started, ends)
    return timeline


def inside(begin: np.ndarray, end: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return how many intervals from *begin* to *end* are open at each time of *at*."""
    return np.searchsorted(np.sort(begin), at, "right") - np.searchsorted(np.sort(end), at, "right")


def rate(times: np.ndarray, amounts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the *amounts* at *times* per second of the ticks that end at *ends*, each from its end less a tick."""
    tick = tick_s(ends)
    which = np.searchsorted(ends, times, "left")
    seen = which < len(ends)
    seen[seen] = times[seen] > ends[which[seen]] - tick
    return np.bincount(which[seen], np.asarray(amounts, float)[seen], len(ends)) / tick


def tick_s(ends: np.ndarray) -> float:
    """Return the length of the ticks that end at *ends*; some may be missing (nothing ran)."""
    return float(np.diff(ends).min()) if len(ends) > 1 else TICK_S
