"""The record of a run: steps, spans and link bytes as they happen, tables at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from moesim.network import Network
from moesim.sim.cost import INDEX, LOCAL, PHASES, SYNC, StepCost

_SPAN_COLUMNS = {"step": "int64", "layer": "int64", "device": "int64", "server": "str", "phase": "str",
                 "start_s": "float64", "end_s": "float64", "half": "int64"}


class Record:
    """Append-only; knows nothing of how times came about."""

    def __init__(self, network: Network, span_steps: int, first_devices: np.ndarray):
        """*first_devices* [layers + 1]: where the devices of a layer begin."""
        self._network, self._first_devices = network, first_devices
        self._span_steps = span_steps
        self._steps: list[dict[str, Any]] = []
        self._times: list[np.ndarray] = []  # of each step, mean over devices, seconds [PHASES]
        self._waits: list[float] = []
        self._seen: np.ndarray | bool = False  # which phases any layer of any step has had, bool [layers + 1, PHASES]
        self._spans: list[pd.DataFrame] = []
        self._link_bytes: dict[str, np.ndarray] = {}

    def add(self, facts: dict[str, Any], costs: Sequence[StepCost], starts: Sequence[np.ndarray]) -> None:
        """Record one step: *facts* (start_s, end_s and counts), *costs* and *starts* of every phase, of both halves."""
        step = len(self._steps)
        times = np.zeros(len(PHASES))
        for cost in costs:
            times += cost.seconds.sum(axis=0).sum(axis=1) / cost.seconds.shape[2]
            self._seen = self._seen | cost.present
        wait = facts["end_s"] - facts["start_s"] - sum(times.tolist())
        if len(costs) > 1:
            wait = _idle(facts, costs, starts)
        self._steps.append({"step": step} | facts)
        self._times.append(times)
        self._waits.append(max(0.0, wait))
        for half, (cost, start) in enumerate(zip(costs, starts, strict=True)):
            if self._span_steps < 0 or step < self._span_steps:
                self._spans.append(_spans(step, half, cost, start, self._first_devices))
                if cost.beside is not None and cost.beside[1]:
                    self._spans.append(_beside(self._spans[-1], cost))
            for phase, loads in cost.link_bytes.items():
                self.add_bytes(phase, loads)

    def add_bytes(self, phase: str, loads: np.ndarray) -> None:
        """Record bytes on every link [links], of a *phase* of a step or of what moves between steps."""
        self._link_bytes[phase] = self._link_bytes.get(phase, 0.0) + loads

    def steps(self) -> pd.DataFrame:
        """Return the table of steps; a phase that a step lacks took 0 s."""
        if not self._steps:
            return pd.DataFrame()
        seen = np.flatnonzero(np.any(self._seen, axis=0))
        phases = pd.DataFrame(np.stack(self._times)[:, seen], columns=[f"{PHASES[i]}_s" for i in seen])
        return pd.concat([pd.DataFrame(self._steps), phases, pd.DataFrame({"wait_s": self._waits})], axis=1)

    def spans(self) -> pd.DataFrame:
        """Return the table of spans, in order of step, half, layer, phase and device."""
        if not self._spans:
            return pd.DataFrame({name: np.empty(0, kind) for name, kind in _SPAN_COLUMNS.items()}).astype(_SPAN_COLUMNS)
        return pd.concat(self._spans, ignore_index=True)

    def links(self, makespan_s: float) -> pd.DataFrame:
        """Return the table of links: bytes per phase and in all, and the share of capacity used over *makespan_s*."""
        links = self._network.links()
        for phase, loads in self._link_bytes.items():
            links[f"{phase}_bytes"] = loads
        links["bytes"] = sum(self._link_bytes.values(), np.zeros(len(links)))
        links["utilisation"] = links["bytes"] / (links["capacity_bytes_per_s"] * makespan_s)
        return links


def _idle(facts: dict[str, Any], costs: Sequence[StepCost], starts: Sequence[np.ndarray]) -> float:
    """Return the seconds of a step in which a device neither computes nor communicates in any half, mean of devices."""
    begin = np.concatenate([s[c.present] for c, s in zip(costs, starts, strict=True)])  # [phases of halves, devices]
    end = begin + np.concatenate([c.seconds[c.present] for c in costs])
    order = np.argsort(begin, axis=0)
    begin, end = np.take_along_axis(begin, order, axis=0), np.take_along_axis(end, order, axis=0)
    busy_until = np.maximum.accumulate(np.concatenate([np.full((1, begin.shape[1]), facts["start_s"]), end]), axis=0)
    last = np.full((1, begin.shape[1]), facts["end_s"])
    return float(np.maximum(np.concatenate([begin, last]) - busy_until, 0.0).sum(axis=0).mean())


def _spans(step: int, half: int, cost: StepCost, start: np.ndarray, first_devices: np.ndarray
           ) -> pd.DataFrame:
    """Return the spans of one *half* of a step (0 if it ran whole), zero-length ones left out."""
    layer, phase, device = np.nonzero(cost.present[:, :, None] & (cost.seconds > 0))
    begin = start[layer, phase, device]
    server = np.where((SYNC[phase] == LOCAL) & (phase != INDEX["fetch"]), "processor", "links")
    last = cost.present.shape[0] - 1
    return pd.DataFrame({
        "step": step, "layer": np.where(layer == last, -1, layer), "device": device + first_devices[layer],
        "server": server,
        "phase": np.array(PHASES)[phase], "start_s": begin, "end_s": begin + cost.seconds[layer, phase, device],
        "half": half})


def _beside(spans: pd.DataFrame, cost: StepCost) -> pd.DataFrame:
    """Return the spans of processors beside the devices' own, which begin with those of their phase in *spans*."""
    assert cost.beside is not None, "asked only of steps with such processors"
    kind, seconds = cost.beside
    found = []
    for phase, of_phase in seconds.items():
        some = spans[spans["phase"] == phase]
        row = np.searchsorted(np.flatnonzero(cost.present[:, PHASES.index(phase)]), some["layer"])
        some = some.assign(server=kind, end_s=some["start_s"] + of_phase[row, some["device"]])
        found.append(some[some["end_s"] > some["start_s"]])
    return pd.concat(found, ignore_index=True)
