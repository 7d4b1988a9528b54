"""The folder that LLMServingSim's bench writes of a vLLM run: requests.jsonl, meta.json and timeseries.csv.

Arrivals are of the wall clock, all other times of the engine's; the two are joined (see the class):

>>> import json, pathlib, tempfile
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> row = {"request_id": "a", "input_toks": 7, "output_toks": 3, "arrival_time": 1.7e9, "queued_ts": 50.0,
...        "scheduled_ts": 50.5, "first_token_ts": 51.0, "last_token_ts": 53.0}
>>> _ = (folder / "requests.jsonl").write_text(json.dumps(row))
>>> run = VllmBench().read(folder)
>>> run.requests[["arrival_s", "queued_s", "first_token_s", "last_token_s"]].iloc[0].tolist()
[0.0, 0.0, 1.0, 3.0]
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim import json_lines
from moesim.registry import part
from moesim.runs.formats._checks import LONGEST_S, File, one_clock
from moesim.runs.run import Run, digest

_EVENTS = {"queued_ts": "queued_s", "scheduled_ts": "scheduled_s", "first_token_ts": "first_token_s",
           "last_token_ts": "last_token_s"}
_COLUMNS = ("input_toks", "output_toks", "arrival_time", *_EVENTS)
_TICKS = {"prompt_throughput": "prompt_tok_per_s", "gen_throughput": "output_tok_per_s", "running": "running",
          "waiting": "waiting"}


@part
class VllmBench:
    """Read ``bench/examples/<gpu>/<model>/vllm`` of casys-kaist/LLMServingSim (MIT), or a folder of your own bench.

    ``arrival_time`` is the client's wall clock, the other times are monotonic, and nothing says how far apart the two
    are. They are joined so that the request that got from the client into the engine's queue the fastest took no time.
    A prompt counts whole, cached tokens too, at the moment of its first token (vLLM's ``num_prompt_tokens``). A KV use
    that is 0 throughout was not recorded (vLLM's field had another name) and is left out.
    """

    def matches(self, path: Path) -> bool:
        """Say whether *path* is such a folder."""
        return (Path(path) / "requests.jsonl").is_file()

    def read(self, path: str | Path) -> Run:
        """Return the run. Raises ``ValueError`` with file, line, fact and remedy."""
        folder = Path(path)
        file = File(folder / "requests.jsonl", pd.DataFrame(json_lines.read(folder / "requests.jsonl")), 1)
        file.need(_COLUMNS)
        times = file.times(("arrival_time", *_EVENTS))
        arrival, queued = times["arrival_time"], times["queued_ts"]
        file.sorted("arrival_time", arrival)
        shared = one_clock(arrival, queued)
        apart = 0.0 if shared else float((queued - arrival).min())
        meta = _meta(folder / "meta.json")
        if meta.get("num_requests", len(arrival)) != len(arrival):
            raise ValueError(f"{file.path}: holds {len(arrival)} requests, {folder / 'meta.json'} says "
                             f"{meta['num_requests']}; copy the whole file")
        requests = pd.DataFrame({
            "request": np.arange(len(arrival)), "arrival_s": arrival - arrival[0],
            **{name: times[column] - apart - arrival[0] for column, name in _EVENTS.items()},
            "prompt_tokens": file.counts("input_toks"), "output_tokens": file.counts("output_toks")})
        clock = "" if shared else ("arrivals are of another clock than the engine's times; they are joined so that the "
                                   "shortest way from the client into the queue took no time")
        return Run(requests, _timeline(folder / "timeseries.csv", meta, float(arrival[0])),
                   {"path": str(folder), "model": meta.get("model", ""), "clock": clock,
                    "engine": meta.get("engine_kwargs", {}), "workload": _workload(folder, meta)})


def _meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a JSON object ({error}); copy the whole file, or leave it out") from None


def _timeline(path: Path, meta: dict[str, Any], first_arrival: float) -> pd.DataFrame | None:
    """Return what the engine logged; ``t`` counts from ``started_at`` of *meta* (if not there, the first arrival)."""
    if not path.is_file():
        return None
    file = File(path, pd.read_csv(path), 2)
    file.need(("t", *_TICKS))
    t = file.numbers("t", "give the end of the tick, in seconds")
    file.sorted("t", t)
    started = datetime.fromisoformat(meta["started_at"]).timestamp() if "started_at" in meta else first_arrival
    apart = started - first_arrival
    if abs(apart) > LONGEST_S:
        raise ValueError(f"{path}: cannot be placed in time: started_at of meta.json is {apart:.0f} s after the first "
                         f"arrival; give arrival_time on the wall clock, or take the file out")
    columns = {"time_s": t + apart,
               **{name: file.numbers(column, "give a number") for column, name in _TICKS.items()}}
    if "kv_cache_pct" in file.table and (used := file.numbers("kv_cache_pct", "give a number")).any():
        columns["kv_used"] = used / 100
    return pd.DataFrame(columns)


def _workload(folder: Path, meta: dict[str, Any]) -> Path | None:
    """Return the file of prompts that the client sent (``dataset_path`` of *meta*), looked for in the folders above."""
    name = meta.get("dataset_path")
    found = [above / name for above in folder.resolve().parents if name and (above / name).is_file()]
    if not found:
        return None
    wanted = meta.get("dataset_hash")
    if wanted and digest(found[0]) != wanted:
        raise ValueError(f"{found[0]}: is not the file that was sent (its SHA-256 is not the dataset_hash of "
                         f"{folder / 'meta.json'}); put the one of the same commit there")
    return found[0]
