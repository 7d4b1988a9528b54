"""The core loop: requests arrive and are routed to islands of devices; whichever is furthest behind steps."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from moesim import kernels
from moesim.registry import name_of
from moesim.result import Result
from moesim.scenario import Scenario, usable_bytes
from moesim.serving.group import Group, Requests
from moesim.serving.pool import Pool, PrefixPool
from moesim.sim.inputs import Inputs, prepare
from moesim.sim.island import Island
from moesim.sim.needs import peaks
from moesim.sim.notes import notes
from moesim.sim.pipeline import Pipeline
from moesim.sim.replacing import expert_slots
from moesim.units import pretty


def simulate(scenario: Scenario) -> Result:
    """Run *scenario* and return its tables. The same scenario and seed give the same tables.

    Raises ``ConfigError`` if the inputs do not fit together.
    """
    return Engine(prepare(scenario)).run()


class Engine:
    """One run: requests on their way to islands of devices, and the islands."""

    def __init__(self, inputs: Inputs):
        self._inputs = inputs
        self._scenario = inputs.scenario
        self._live = Requests(inputs.requests)
        self._memory, capacity = _memory(inputs)
        self._refused = _too_long(inputs, self._live, capacity)
        kind = Island if self._scenario.parallelism.pp == 1 else Pipeline
        self._islands = [kind(inputs.of_island, self._live, groups, number)
                         for number, groups in enumerate(self._groups(capacity))]
        self._groups_of_all = [group for island in self._islands for group in island.groups]
        self._per_island = len(self._islands[0].groups)
        self._next = self._routed = 0  # the first request that has not arrived; how many have been given a group
        self._sent = int(np.count_nonzero(~np.isnan(self._live.arrival_s)))  # of a closed loop: the first without time
        self._even = len({group.pool.capacity for group in self._groups_of_all}) == 1

    def _groups(self, capacity: np.ndarray) -> list[list[Group]]:
        """Return the groups of each island, with room for *capacity* tokens [groups of an island], or one for all."""
        scenario, kv = self._scenario, self._scenario.kv
        n = len(self._live)

        def pool(tokens: int) -> Pool:
            blocks = int(tokens) // kv.block
            if kv.prefix_cache:
                return PrefixPool(blocks, kv.block, n, self._inputs.hashes)
            return Pool(blocks, kv.block, n)

        made = []
        for _ in range(scenario.n_islands):
            pools = [pool(tokens) for tokens in capacity]
            if len(pools) < scenario.groups_per_island:  # every device holds the KV of all
                pools *= scenario.groups_per_island
            demand = self._inputs.demand if getattr(scenario.scheduler, "knows_experts", False) else None
            made.append([Group(self._live, each, demand) for each in pools])
        return made

    def run(self) -> Result:
        """Serve every request; return the tables."""
        while self.advance():
            pass
        return self._result()

    def advance(self) -> bool:
        """Let the island that is furthest behind step, or the next request arrive; False: all is done."""
        island = self._behind()
        if island is None:
            if not np.isfinite(self._next_arrival_s):
                return False
            self._arrive()
            return True
        island.between_steps()
        while self._next_arrival_s <= island.now:
            self._arrive()
            island = self._behind() or island  # it may have come to one that was idle, and is behind now
        done = island.step()
        for _ in range(len(done)):
            self._send(island.now)
        return True

    def steps(self) -> pd.DataFrame:
        """Return the table of the steps so far."""
        tables = [island.record.steps() for island in self._islands]
        if len(tables) == 1:
            return tables[0]
        whole = pd.concat([table.assign(island=i) for i, table in enumerate(tables)], ignore_index=True)
        return whole.fillna(0.0).sort_values(["start_s", "island"], kind="stable", ignore_index=True)

    @property
    def _next_arrival_s(self) -> float:
        """When the next request comes, seconds; infinite if none is due by itself."""
        return float(self._live.arrival_s[self._next]) if self._next < self._sent else float("inf")

    def _behind(self) -> Island | None:
        """Return the island that steps next: of those with work, the one whose clock is least far; None: all idle."""
        return min((i for i in self._islands if i.busy), key=lambda i: i.now, default=None)

    def _arrive(self) -> None:
        """Let the next request arrive: it is given to a group that can hold it."""
        request, groups = self._next, self._groups_of_all
        self._next += 1
        if self._refused[request]:
            return self._send(float(self._live.arrival_s[request]))
        able = list(range(len(groups)))
        if not self._even:
            blocks = groups[0].pool.blocks(int(self._live.stored[request]))
            able = [g for g in able if groups[g].pool.capacity >= blocks]
            groups = [groups[g] for g in able]
        chosen = able[self._scenario.request_router.choose(request, groups, self._routed)]
        self._routed += 1
        self._live.group[request] = chosen
        self._islands[chosen // self._per_island].add(request, chosen % self._per_island)

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

    def _result(self) -> Result:
        live = self._live
        requests = pd.DataFrame({
            "request": np.arange(len(live)), "group": live.group, "arrival_s": live.arrival_s,
            "queued_s": live.queued_s, "scheduled_s": live.scheduled_s, "first_token_s": live.first_token_s,
            "finish_s": live.finish_s,
            "prompt_tokens": live.prompt, "output_tokens": live.output, "cached_tokens": live.cached,
            "preemptions": live.preemptions, "refused": self._refused, "ttft_s": live.first_token_s - live.arrival_s,
            "tpot_s": np.where(live.output > 1, live.finish_s - live.first_token_s, np.nan)
            / np.maximum(live.output - 1, 1),
            "e2e_s": live.finish_s - live.arrival_s})
        memory = self._memory.copy()
        memory["kv_peak_bytes"] = self._kv_peak_bytes()
        makespan = float(np.nanmax(live.finish_s))
        links = pd.concat([island.record.links(makespan).assign(island=i) for i, island in enumerate(self._islands)],
                          ignore_index=True)
        links = links.drop(columns="island") if len(self._islands) == 1 else links
        steps, first = self.steps(), self._islands[0]
        warnings = notes(self._inputs, steps, links, first.costs.operators, first.costs.network)
        meta = _meta(self._inputs, warnings)
        meta["replacements"] = [] if first.replacing is None else first.replacing.log
        return Result(requests, steps, self._spans(), links, memory, meta)

    def _kv_peak_bytes(self) -> np.ndarray:
        """Return the most bytes of KV on every device: a group's blocks, of the layers of each of its stages."""
        scenario, tp = self._scenario, self._scenario.parallelism.tp
        per_token = np.array([scenario.model.kv_bytes_per_token_on_device(tp, layers) for layers in scenario.stages])
        return np.concatenate([np.outer(per_token, np.repeat(island.peak, tp)).ravel() * scenario.kv.block
                               for island in self._islands])

    def _spans(self) -> pd.DataFrame:
        size = self._scenario.island_size
        tables = [island.record.spans() for island in self._islands]
        return pd.concat([table.assign(device=table["device"] + i * size) for i, table in enumerate(tables)],
                         ignore_index=True) if len(tables) > 1 else tables[0]


def _memory(inputs: Inputs) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the bytes of weights and room for KV per device, and the KV tokens that groups of an island have room for.

    With ``context_coherent`` every device holds the KV of all requests: one number, that of the fullest device. In a
    pipeline the stage with the least room for its layers counts.
    """
    scenario, model, tp = inputs.scenario, inputs.scenario.model, inputs.scenario.parallelism.tp
    others, experts, kept = _weights(inputs)
    room = usable_bytes(scenario) - others - kept  # [stages, devices of one]
    worst = int(np.argmin(room))
    if room.flat[worst] <= 0:
        gap = pretty(-room.flat[worst], "byte")
        raise scenario.error("placement", f"device {worst} has {gap} too little memory for the experts placed on it; "
                                          f"spread them more evenly, or use larger devices")
    table = pd.DataFrame({"device": np.arange(scenario.hardware.n_devices),
                          "non_expert_bytes": np.tile(np.repeat(others, scenario.stage_size), scenario.n_islands),
                          "expert_bytes": np.tile(experts.ravel(), scenario.n_islands),
                          "kv_capacity_bytes": np.tile(room.ravel(), scenario.n_islands)})
    per_token = np.array([[model.kv_bytes_per_token_on_device(tp, layers)] for layers in scenario.stages])
    each = np.floor(room.reshape(len(room), -1, tp).min(axis=2) / per_token)
    tokens = each.min(axis=0).astype(np.int64)
    if scenario.kv.blocks is not None:
        tokens[:] = scenario.kv.blocks * scenario.kv.block
    return table, tokens.min(keepdims=True) if scenario.parallelism.mode == "context_coherent" else tokens


def _weights(inputs: Inputs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bytes of an island's weights but experts, [stages, 1], of experts, and of the room kept for these.

    The last two are [stages, devices of one].
    """
    scenario, model = inputs.scenario, inputs.scenario.model
    others = np.array([[model.non_expert_bytes(scenario.parallelism.tp, layers)] for layers in scenario.stages])
    experts = np.zeros((len(others), scenario.stage_size))
    if inputs.routing is not None:
        counts = [inputs.placement.counts()[model.moe_rows(layers)] for layers in scenario.stages]
        experts = np.stack([np.full(len(of_stage), model.expert_bytes) @ of_stage for of_stage in counts])
    if scenario.online is None:
        return others, experts, experts
    return others, experts, np.full(experts.shape, expert_slots(inputs.placement).sum() * model.expert_bytes)


def _too_long(inputs: Inputs, live: Requests, capacity: np.ndarray) -> np.ndarray:
    """Return which requests no group can ever hold, bool [requests].

    Raises ``ConfigError`` for the worst of them, unless the scenario has them refused.
    """
    scenario = inputs.scenario
    need, block = live.stored, scenario.kv.block
    room, limit = int(capacity.max()) // block * block, scenario.model.context
    too_long = (need > room) | (need + 1 > limit)
    if not too_long.any() or scenario.too_long == "refuse" and not too_long.all():
        return too_long
    worst = int(np.argmax(need))
    remedy = ", or set too_long: refuse to serve the others" if scenario.too_long == "stop" else "; none fits"
    if need[worst] > room:
        raise scenario.error("requests", (
            f"request {worst} needs the KV of {need[worst]} tokens, the memory left beside the weights holds {room} "
            f"({need[worst] - room} too few); shorten it, use more or larger devices, a larger parallelism.tp or a "
            f"higher memory_fraction{remedy}"))
    raise scenario.error("requests", (
        f"request {worst} has {need[worst] + 1} tokens, above the model's context of {limit}; shorten it{remedy}"))


def _meta(inputs: Inputs, warnings: list[str]) -> dict[str, Any]:
    """Return what a reader needs to trust and to repeat the run."""
    scenario = inputs.scenario
    device = scenario.hardware.device
    packages = ("moesim", "numpy", "pandas", "scipy", "numba", "simpy")
    return {
        "scenario": scenario.dump(), "seed": scenario.seed, "warnings": warnings,
        "trace": _about_trace(inputs),
        "kernels": _kernels(scenario),
        "slo": {f"{name}_s": limit for name in ("ttft", "tpot", "e2e")
                if (limit := getattr(scenario.slo, name)) is not None},
        "placement": {k: v for k, v in (inputs.placement.info if inputs.routing else {}).items()
                      if k != "seconds"},  # results hold no wall time
        "devices": {"count": scenario.hardware.n_devices, "step_together": scenario.stage_size,
                    "stages": scenario.parallelism.pp,
                    "idle_power_w": device.idle_power,
                    "busy_power_w": device.busy_power,
                    "bandwidth_bytes_per_s": device.processor.bandwidth,
                    "peak_flop_per_s": peaks(scenario)},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages}}


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
