"""Result: what a run left behind, as tables. Every metric is a function of them (``moesim.metrics``)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from moesim import metrics, whole

# What a saved result consists of; `moesim plot` draws figures beside it.
_FILES = {"requests.parquet", "steps.parquet", "spans.parquet", "links.parquet", "memory.parquet", "summary.json",
          "meta.json", "scenario.yaml", "timeline.json", "figures"}


@dataclass(frozen=True, eq=False)
class Result:
    """The tables of one simulation.

    ``requests``: request, group, arrival_s, first_token_s, finish_s, prompt_tokens, output_tokens, ttft_s, tpot_s (NaN
    with a single output token), e2e_s.
    ``steps``: step, start_s, end_s, prefill_tokens, decode_tokens, decode_rows (distinct trace rows
    among them), running, waiting, kv_tokens (of requests that decode), load_max_over_mean
    (tokens per device, mean over layers), active_experts, ``model_flop_<dtype>``, read_bytes (``metrics.utilisation``),
    and per phase ``<phase>_s``, the mean over devices; with ``wait_s`` they
    add up to the length of the step (with pipeline stages: of its way through all of them; ``begin_s_stage_<i>`` and
    ``end_s_stage_<i>`` say when each had it).
    ``spans``: step, layer (-1: after the last), device, server, phase, start_s, end_s, half (of the batch, 0 if whole),
    of the steps that the scenario asks for.
    ``links``: link, class, name, capacity_bytes_per_s, latency_s, ``<phase>_bytes``, bytes, utilisation.
    ``memory``: per device, bytes of weights, experts, KV capacity and KV peak.
    ``meta``: scenario, seed, versions, where the routing is from, placement, ``replacements`` of experts during the run
    (docs/reference/result.md), and ``warnings``.
    """

    requests: pd.DataFrame
    steps: pd.DataFrame
    spans: pd.DataFrame
    links: pd.DataFrame
    memory: pd.DataFrame
    meta: dict[str, Any]

    def summary(self) -> dict[str, float]:
        """Return the numbers that sum up the run (keys: ``metrics.SUMMARY_KEYS``)."""
        return metrics.summary(self.requests, self.steps, self.meta)

    def save(self, folder: str | Path) -> Path:
        """Write tables (Parquet), summary, metadata, scenario and ``timeline.json`` (Perfetto) to *folder*.

        The folder appears complete or not at all; one that holds a saved result and nothing else is replaced. Raises
        ``FileExistsError`` otherwise.
        """
        with whole.folder(folder, _FILES, "moesim.Result") as new:
            self._write(new)
        return Path(folder).resolve()

    def _write(self, folder: Path) -> None:
        for field in fields(self):
            table = getattr(self, field.name)
            if isinstance(table, pd.DataFrame):
                table.to_parquet(folder / f"{field.name}.parquet", index=False)
        numbers = {k: v if math.isfinite(v) else None for k, v in self.summary().items()}  # JSON knows no NaN
        (folder / "summary.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        (folder / "meta.json").write_text(json.dumps(self.meta, indent=1) + "\n", encoding="utf-8")
        with open(folder / "scenario.yaml", "w", encoding="utf-8") as file:
            YAML().dump(self.meta["scenario"], file)
        (folder / "timeline.json").write_text(json.dumps(timeline(self.spans)) + "\n", encoding="utf-8")


def check_folder(folder: str | Path) -> Path:
    """Return *folder* if a result may be saved there. Raises ``FileExistsError`` if it is a file or holds others."""
    return whole.checked(folder, _FILES, "moesim.Result")


def timeline(spans: pd.DataFrame) -> dict[str, Any]:
    """Return *spans* in the Trace Event Format that Perfetto and chrome://tracing open (times in microseconds)."""
    if "half" in spans:  # a row of its own for what overlaps
        spans = spans.assign(server=spans["server"].mask(spans["half"] > 0, spans["server"] + ", half 1"))
    servers = {name: i for i, name in enumerate(sorted(spans["server"].unique()))}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": int(d), "args": {"name": f"device {d}"}}
        for d in sorted(spans["device"].unique())]
    events += [{"ph": "M", "name": "thread_name", "pid": int(d), "tid": i, "args": {"name": name}}
               for d in sorted(spans["device"].unique()) for name, i in servers.items()]
    columns = [spans[c].tolist() for c in ("step", "layer", "device", "server", "phase", "start_s", "end_s")]
    events += [{"ph": "X", "name": phase, "cat": server, "pid": device, "tid": servers[server], "ts": start * 1e6,
                "dur": (end - start) * 1e6, "args": {"step": step, "layer": layer}}
               for step, layer, device, server, phase, start, end in zip(*columns, strict=True)]
    return {"traceEvents": events, "displayTimeUnit": "ns"}
