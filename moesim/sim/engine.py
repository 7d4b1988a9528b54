"""The core loop: requests arrive and are routed to islands of devices; whichever is furthest behind steps."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from moesim import kernels, pools
from moesim.registry import expect, name_of
from moesim.result import Result
from moesim.scenario import Scenario
from moesim.sim.fleet import Fleet
from moesim.sim.handover import Handover, pool_of
from moesim.sim.inputs import Inputs, prepare
from moesim.sim.island import Island
from moesim.sim.needs import peaks
from moesim.sim.notes import notes, of_pools
from moesim.sim.room import memory, too_long


def simulate(scenario: Scenario) -> Result:
    """Run *scenario* and return its tables. The same scenario and seed give the same tables.

    Raises ``ConfigError`` if the inputs do not fit together.
    """
    expect(scenario, Scenario, "scenario", "give what moesim.load(path) returns")
    return Engine(prepare(scenario)).run()


class Engine:
    """One run: requests on their way to islands of devices, and the islands."""

    def __init__(self, inputs: Inputs):
        self._inputs = inputs
        self._scenario = inputs.scenario
        self._fleets, self._memory, self._refused = _fleets(inputs)
        self._front, self._back = self._fleets[0], self._fleets[-1]  # where prompts and answers run
        self._live = self._front.live
        self._handover = Handover.of(self._scenario, *self._fleets) if len(self._fleets) > 1 else None
        self._islands = [island for fleet in self._fleets for island in fleet.islands]
        self._next = 0  # the first request that has not arrived
        self._sent = int(np.count_nonzero(~np.isnan(self._live.arrival_s)))  # of a closed loop: the first without time

    def run(self) -> Result:
        """Serve every request; return the tables."""
        while self.advance():
            pass
        return self._result()

    def advance(self) -> bool:
        """Let the island that is furthest behind step, or the next request arrive; False: all is done."""
        island = self._behind()
        if island is None:
            if not np.isfinite(self._due_s):
                return False
            self._happen()
            return True
        island.between_steps()
        while self._due_s <= island.now:
            self._happen()
            island = self._behind() or island  # it may have come to one that was idle, and is behind now
        begun_s, done = island.now, island.step()
        if done is None and not (self._handover and self._handover.stall(island)):
            raise RuntimeError("the scheduler runs nothing although requests wait")
        if done is not None:
            done = self._handover.stepped(island, begun_s, done) if self._handover else done
            for _ in range(len(done)):
                self._send(island.now)
        return True

    def steps(self) -> pd.DataFrame:
        """Return the table of the steps so far."""
        tables = [island.record.steps() for island in self._islands]
        if len(tables) == 1:
            return tables[0]
        if self._handover:
            tables = [table.assign(pool=name, devices=fleet.scenario.stage_size) for table, (name, fleet) in zip(
                tables, self._of_islands(), strict=True)]
        whole = pd.concat([table.assign(island=i) for i, table in enumerate(tables)], ignore_index=True)
        return whole.fillna(0.0).sort_values(["start_s", "island"], kind="stable", ignore_index=True)

    @property
    def _next_arrival_s(self) -> float:
        """When the next request comes, seconds; infinite if none is due by itself."""
        return float(self._live.arrival_s[self._next]) if self._next < self._sent else float("inf")

    @property
    def _due_s(self) -> float:
        """When something happens next that is no step, seconds: a request arrives, or its KV."""
        return min(self._next_arrival_s, self._handover.due_s if self._handover else np.inf)

    def _behind(self) -> Island | None:
        """Return the island that steps next: of those with work, the one whose clock is least far; None: all idle."""
        stalled = self._handover.stalled if self._handover else ()
        return min((i for i in self._islands if i.busy and i not in stalled), key=lambda i: i.now, default=None)

    def _happen(self) -> None:
        """Let happen what is due next. What becomes of KV that moves comes before requests of the same time."""
        if self._handover and self._handover.due_s <= self._next_arrival_s:
            self._handover.happen()
        else:
            self._arrive()

    def _arrive(self) -> None:
        """Let the next request arrive: it is given to a group that can hold it."""
        request, at_s = self._next, self._next_arrival_s
        self._next += 1
        if self._refused[request]:
            return self._send(at_s)
        chosen = self._front.choose(request)
        if self._handover:
            self._handover.wake(self._front.island_of(chosen), at_s)
        return self._front.add(request, chosen)

    def _send(self, now: float) -> None:
        """Let a user of a closed loop, who has the answer at *now*, send the next request.

        Islands run ahead of each other: who sends earlier may be known later. Requests arrive in order of time.
        """
        if self._sent == len(self._live):
            return
        at, arrival = self._sent, self._live.arrival_s
        while at > self._next and arrival[at - 1] > now:
            arrival[at] = arrival[at - 1]
            at -= 1
        arrival[at] = now
        self._sent += 1

    def _of_islands(self) -> Iterator[tuple[str, Fleet]]:
        """Yield the name of its pool and the fleet of each island."""
        for name, fleet in zip(self._inputs.scenario.pools, self._fleets, strict=True):
            for _ in fleet.islands:
                yield name, fleet

    def _result(self) -> Result:
        requests = self._requests()
        makespan = float(np.nanmax(requests["finish_s"]))
        memory = self._memory.assign(kv_peak_bytes=np.concatenate([fleet.kv_peak_bytes() for fleet in self._fleets]))
        if self._scenario.cache is not None:
            tables = [island.offload.memory for island in self._islands if island.offload]
            memory = memory.assign(**{name: np.concatenate([t[name] for t in tables]) for name in tables[0]})
        tables = [island.record.links(makespan).assign(island=i) for i, island in enumerate(self._islands)]
        if self._handover:
            tables.append(self._handover.links(makespan).assign(island=-1))
        links = pd.concat(tables, ignore_index=True)
        links = links.drop(columns="island") if len(tables) == 1 else links.fillna(0.0)
        steps = self.steps()
        meta = _meta(self._inputs, self._notes(steps, links))
        first = self._islands[0]
        meta["replacements"] = [] if first.replacing is None else first.replacing.log
        return Result(requests, steps, self._spans(), links, memory, meta)

    def _requests(self) -> pd.DataFrame:
        """Return the table of requests."""
        live, moved = self._live, self._handover
        table = pd.DataFrame({
            "request": np.arange(len(live)), "group": live.group, "arrival_s": live.arrival_s,
            "queued_s": live.queued_s, "scheduled_s": live.scheduled_s, "first_token_s": live.first_token_s,
            "finish_s": live.finish_s,
            "prompt_tokens": live.prompt, "output_tokens": self._back.live.output, "cached_tokens": live.cached,
            "preemptions": live.preemptions, "refused": self._refused})
        if moved:
            table = moved.told(table)
        output, took = table["output_tokens"], table["finish_s"] - table["first_token_s"]
        return table.assign(ttft_s=table["first_token_s"] - table["arrival_s"],
                            tpot_s=np.where(output > 1, took, np.nan) / np.maximum(output - 1, 1),
                            e2e_s=table["finish_s"] - table["arrival_s"])

    def _notes(self, steps: pd.DataFrame, links: pd.DataFrame) -> list[str]:
        """Return the warnings of the run, those of all pools."""
        found: dict[str, None] = dict.fromkeys(of_pools(self._scenario))
        for fleet in self._fleets:
            mine, over = steps, links
            if self._handover:
                here = [self._islands.index(island) for island in fleet.islands]
                mine, over = (table[table["island"].isin(here)] for table in (steps, links))
            costs = fleet.islands[0].costs
            found |= dict.fromkeys(notes(fleet.inputs, mine, over, costs.operators, costs.network))
        return list(found)

    def _spans(self) -> pd.DataFrame:
        sizes = [fleet.scenario.island_size for _, fleet in self._of_islands()]
        tables = [island.record.spans() for island in self._islands]
        return pd.concat([table.assign(device=table["device"] + sum(sizes[:i])) for i, table in enumerate(tables)],
                         ignore_index=True) if len(tables) > 1 else tables[0]


def _fleets(inputs: Inputs) -> tuple[list[Fleet], pd.DataFrame, np.ndarray]:
    """Return the fleets of a run, the memory of all devices, and which requests some pool has no room for [requests].
    """
    fleets, tables, first = list[Fleet](), list[pd.DataFrame](), 0
    refused = np.zeros(len(inputs.requests), bool)
    for name, part in inputs.pools.items():
        live, make = pool_of(name, part)
        with pools.naming(name):
            table, capacity = memory(part)
            refused |= too_long(part, live, capacity)
        fleets.append(Fleet(part, live, capacity, first, make))
        tables.append(table.assign(device=table["device"] + first, **({"pool": name} if name else {})))
        first += len(table)
    return fleets, pd.concat(tables, ignore_index=True), refused


def _meta(inputs: Inputs, warnings: list[str]) -> dict[str, Any]:
    """Return what a reader needs to trust and to repeat the run."""
    scenario = inputs.scenario
    device = scenario.hardware.device
    return {
        "scenario": scenario.dump(), "seed": scenario.seed, "warnings": warnings,
        "trace": _about_trace(inputs),
        "kernels": _kernels(scenario),
        "slo": {f"{name}_s": limit for name in ("ttft", "tpot", "e2e")
                if (limit := getattr(scenario.slo, name)) is not None},
        "placement": {k: v for k, v in (inputs.placement.info if inputs.routing else {}).items()
                      if k != "seconds"},  # results hold no wall time
        "devices": {"count": scenario.hardware.n_devices, "step_together": scenario.stage_size,
                    "idle_power_w": device.idle_power,
                    "busy_power_w": device.busy_power,
                    "bandwidth_bytes_per_s": device.processor.bandwidth,
                    "peak_flop_per_s": peaks(scenario)},
        "versions": {"python": platform.python_version(), **_versions()}}


@cache
def _versions() -> Mapping[str, str]:
    """Return the versions of this package and those that results rest on; a tenth of a short run to look up."""
    return {name: version(name) for name in ("moesim", "numpy", "pandas", "scipy", "numba", "simpy")}


def _about_trace(inputs: Inputs) -> dict[str, Any] | None:
    """Return where the routing is from; None for a model without experts."""
    if inputs.routing is None:
        return None
    scenario, trace = inputs.scenario, inputs.trace
    return {k: trace.meta.get(k) for k in ("model", "origin", "licence", "synthetic")} | {
        "join": "balanced" if scenario.traced.balanced else scenario.traced.join, "evaluation_tokens": trace.n_tokens}


def _kernels(scenario: Scenario) -> dict[str, Any]:
    """Return which kernel model ran and, if it is the one fitted to the device, the errors that its file states."""
    if scenario.profile is not None:
        return {"model": name_of(scenario.profile), "file": scenario.profile.read(scenario.parallelism.tp).source,
                "transferred_from": "", "accuracy": {}}
    device = scenario.hardware.device
    fitted = kernels.load(device.kernels) if device.kernels else None
    about: dict[str, Any] = {"model": name_of(scenario.kernels), "file": "", "transferred_from": "", "accuracy": {}}
    if fitted is not None and fitted.model == scenario.kernels:
        about |= {"file": device.kernels} | {key: fitted.info[key] for key in ("transferred_from", "accuracy")}
    return about
