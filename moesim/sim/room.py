"""What devices have memory for: weights, keys and values, and which requests fit into none of them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moesim.fits import cached_experts, usable_bytes
from moesim.scenario import Scenario
from moesim.serving.group import Requests
from moesim.sim.inputs import Inputs
from moesim.sim.replacing import expert_slots
from moesim.units import pretty


def memory(inputs: Inputs) -> tuple[pd.DataFrame, np.ndarray]:
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
    room[:, scenario.groups_per_island * tp :] = 0.0  # the rest is of devices that only run experts
    table = pd.DataFrame({"device": np.arange(scenario.hardware.n_devices),
                          "non_expert_bytes": np.tile(others.ravel(), scenario.n_islands),
                          "expert_bytes": np.tile(experts.ravel(), scenario.n_islands),
                          "kv_capacity_bytes": np.tile(room.ravel(), scenario.n_islands)})
    per_token = np.array([[model.kv_bytes_per_token_on_device(tp, layers)] for layers in scenario.stages])
    groups = room[:, : scenario.groups_per_island * tp].reshape(len(room), -1, tp)
    each = np.floor(groups.min(axis=2) / per_token)
    tokens = each.min(axis=0).astype(np.int64)
    if scenario.kv.blocks is not None:
        tokens[:] = scenario.kv.blocks * scenario.kv.block
    return table, tokens.min(keepdims=True) if scenario.parallelism.mode == "context_coherent" else tokens


def _weights(inputs: Inputs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bytes of an island's weights but experts, of experts, and of the room kept for these.

    All are [stages, devices of one].
    """
    scenario, model, alone = inputs.scenario, inputs.scenario.model, inputs.scenario.parallelism.expert_devices
    here = np.arange(scenario.stage_size) < scenario.stage_size - alone
    others = np.outer([model.non_expert_bytes(scenario.parallelism.tp, layers) for layers in scenario.stages], here)
    experts = np.zeros((len(others), scenario.stage_size))
    if inputs.routing is not None:
        counts = [inputs.placement.counts()[model.moe_rows(layers)] for layers in scenario.stages]
        shared_by = scenario.parallelism.expert_tp
        if scenario.cache is not None:
            counts = [_cached(scenario, of_stage) for of_stage in counts]
        experts = np.stack([np.repeat(np.full(len(of_stage), model.expert_bytes / shared_by) @ of_stage, shared_by)
                            for of_stage in counts])
        experts = np.pad(experts, ((0, 0), (scenario.stage_size - experts.shape[1], 0)))
    if scenario.online is None:
        return others, experts, experts
    return others, experts, np.full(experts.shape, expert_slots(inputs.placement).sum() * model.expert_bytes)


def _cached(scenario: Scenario, placed: np.ndarray) -> np.ndarray:
    """Return how many of the experts *placed* [M, holders] the cache of each holder has room for, [1, holders]."""
    try:
        return np.array([[cached_experts(scenario, of_holder) for of_holder in placed.T]])
    except ValueError as error:
        raise scenario.error("cache.capacity", str(error)) from None


def too_long(inputs: Inputs, live: Requests, capacity: np.ndarray) -> np.ndarray:
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
