"""What does not fit together in a scenario whose devices all do the same: every check that needs more than a field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from moesim.network import Messages
from moesim.registry import name_of
from moesim.requests import ClosedLoop
from moesim.units import pretty

if TYPE_CHECKING:
    from moesim.scenario import Scenario

Fact = tuple[str, str]  # dotted path of the field, what is wrong with it and what to do


def facts(scenario: Scenario) -> list[Fact]:
    """Return what does not fit together in a *scenario* whose devices all do the same."""
    checks = (_experts, _cached, _parallelism, _islands, _pipeline, _replicated, _expert_devices, _exchange, _sharing,
              _selected, _foresight, _lengths)
    return [fact for check in checks for fact in check(scenario)] or list(_memory(scenario))


def _parallelism(scenario: Scenario) -> Iterable[Fact]:
    tp, machine, heads = scenario.parallelism.tp, scenario.hardware, scenario.model.attention.heads
    if machine.devices_per_node % tp:
        yield "parallelism.tp", f"{tp} does not divide the {machine.devices_per_node} devices of a node; use a divisor"
    elif scenario.parallelism.mode == "context_coherent" and not scenario.parallelism.deduplicate:
        yield "parallelism.deduplicate", "must be true with mode context_coherent: a token moves once to each device"
    elif scenario.parallelism.mode == "context_coherent" and tp > 1:
        yield "parallelism.tp", "must be 1 with mode context_coherent: a token's whole attention runs on one device"
    elif heads % tp:
        yield "parallelism.tp", f"{tp} does not divide the {heads} attention heads; use a divisor"


def _islands(scenario: Scenario) -> Iterable[Fact]:
    machine, parallelism, size = scenario.hardware, scenario.parallelism, scenario.stage_size
    if machine.devices_per_node % parallelism.tp or parallelism.pp > 1 and parallelism.ep is None:
        return  # said already, or will be
    if size % parallelism.tp or machine.n_devices % size or (size > machine.devices_per_node
                                                            and size % machine.devices_per_node):
        yield "parallelism.ep", (f"{size} must be a multiple of parallelism.tp ({parallelism.tp}), and part of a node "
                                 f"({machine.devices_per_node} devices) or whole nodes that divide the machine")
    elif scenario.n_islands > 1 and parallelism.pp == 1:
        for name, used in (("parallelism.mode", parallelism.mode == "context_coherent"),
                           ("placement.online", scenario.online is not None),
                           ("background", scenario.background is not None)):
            if used:
                yield name, f"the machine is {scenario.n_islands} islands (parallelism.ep); this needs one: all devices"


def _pipeline(scenario: Scenario) -> Iterable[Fact]:
    parallelism = scenario.parallelism
    if parallelism.pp == 1:
        return
    if wrong := parallelism.misfit(scenario.model.layers, scenario.hardware, scenario.stage_size):
        yield "parallelism.pp", wrong
    for name, used, remedy in (
            ("parallelism.mode", parallelism.mode == "context_coherent", "use dispatch_combine"),
            ("engine.asynchronous", scenario.engine.asynchronous, "set it to false (stages have batches ahead anyway)"),
            ("overlap", scenario.overlap != "none", "leave it out"),
            ("background", scenario.background is not None, "leave it out"),
            ("placement.online", scenario.online is not None, "leave it out")):
        if used:
            yield name, f"does not go with pipeline stages (parallelism.pp is {parallelism.pp}); {remedy}"


def _experts(scenario: Scenario) -> Iterable[Fact]:
    experts = scenario.model.moe is not None
    for name in ("trace", "placement"):
        given = getattr(scenario, name) is not None
        if experts and not given:
            yield name, "missing; add it"
        elif given and not experts:
            yield name, f"model {scenario.model.name} has no experts; remove it"
    if not experts and scenario.parallelism.mode == "context_coherent":
        yield "parallelism.mode", f"model {scenario.model.name} has no experts; use dispatch_combine"


def _cached(scenario: Scenario) -> Iterable[Fact]:
    machine, cache, model = scenario.hardware, scenario.cache, scenario.model
    if cache is None:
        return
    if model.moe is None:
        yield "cache", f"model {model.name} has no experts; remove it"
        return
    if len(machine.device.memory) == 1 and not machine.host:
        yield "cache", (f"{machine.name} has no memory below {machine.device.memory[0].name} to fetch experts from; "
                        f"add hardware.host: [{{name: host, capacity: ..., bandwidth: ..., link: {{bandwidth: ...}}}}]")
    for name, used in (("parallelism.mode", scenario.parallelism.mode == "context_coherent"),
                       ("parallelism.pp", scenario.parallelism.pp > 1), ("overlap", scenario.overlap != "none"),
                       ("placement.online", scenario.online is not None), ("selection", scenario.selection.uses_both)):
        if used:
            yield name, "does not go with a cache of experts; leave it out, or cache"
    yield from cache.misfits(scenario)
    try:
        cached_experts(scenario, -(-model.experts_per_layer // max(scenario.n_holders, 1)))  # none: a fact of its own
    except ValueError as error:
        yield "cache.capacity", str(error)


def cached_experts(scenario: Scenario, placed: np.ndarray) -> int:
    """Return how many of the experts *placed* on a device, of each layer, its caches hold. Raises ``CacheError``."""
    from moesim.memory.live import rooms  # half a second, which scenarios without a cache need not wait

    cache = scenario.cache
    assert cache is not None, "asked only of scenarios with a cache"
    size = scenario.model.expert_bytes / scenario.parallelism.expert_tp
    return int(rooms(cache.capacity, cache.scope, placed, size).sum())


def _exchange(scenario: Scenario) -> Iterable[Fact]:
    part, machine, name = scenario.all_to_all, scenario.hardware, name_of(scenario.all_to_all)
    nodes, per_expert = (getattr(part, asked, False) for asked in ("needs_nodes", "per_expert"))
    if scenario.parallelism.mode == "context_coherent" and (nodes or per_expert):
        yield "all_to_all", (f"{name} is a way for tokens to go out and come home, in mode context_coherent they move "
                             f"on; use 'flat' or mode dispatch_combine")
    elif per_expert and scenario.parallelism.deduplicate:
        yield "parallelism.deduplicate", f"must be false with all_to_all {name}, which sends a copy per expert"
    if scenario.parallelism.pp > 1:
        machine = scenario.of_stage.hardware
    n = machine.n_devices
    none = Messages(np.zeros((n, n), np.int32), np.zeros((n, machine.nodes), np.int32), scenario.model.n_experts)
    try:
        part.stages(none, machine.devices_per_node)
    except ValueError as error:
        yield "all_to_all", str(error)


def _sharing(scenario: Scenario) -> Iterable[Fact]:
    online = scenario.online
    if scenario.parallelism.dispatch == "all_gather":
        for name, used in (("overlap", scenario.overlap != "none"), ("background", scenario.background is not None),
                           ("parallelism.mode", scenario.parallelism.mode == "context_coherent")):
            if used:
                yield name, "does not go with parallelism.dispatch all_gather; use all_to_all"
    if scenario.engine.graphs:
        for name, used in (("parallelism.mode", scenario.parallelism.mode == "context_coherent"),
                           ("overlap", scenario.overlap != "none")):
            if used:
                yield name, "does not go with engine.graphs: tokens that only fill up have no place there; set it to 0"
    if scenario.profile is not None and scenario.parallelism.mode == "context_coherent":
        yield "profile", "does not go with parallelism.mode context_coherent, whose tokens move; use kernels"
    if scenario.detail == "steps":
        for name, used in (("overlap", scenario.overlap != "none"), ("background", scenario.background is not None),
                           ("placement.online.blocking", online is not None and not online.blocking)):
            if used:
                yield name, "needs detail: events (with steps, every collective has its links to itself); set that too"


def _foresight(scenario: Scenario) -> Iterable[Fact]:
    if not getattr(scenario.scheduler, "knows_experts", False):
        return
    name = name_of(scenario.scheduler)
    if scenario.trace is None:
        yield "scheduler", f"{name} looks at experts, and model {scenario.model.name} has none; use another one"
    elif scenario.trace.balanced:
        yield "scheduler", (f"{name} looks at what experts tokens choose, and with trace.balanced that depends on the "
                            f"step they run in; use another scheduler or trace")
    if scenario.engine.asynchronous:
        yield "engine.asynchronous", (f"must be false with scheduler {name}: a step is planned before the tokens are "
                                      f"known that choose its experts")


def _replicated(scenario: Scenario) -> Iterable[Fact]:
    parallelism, tp = scenario.parallelism, scenario.parallelism.expert_tp
    if parallelism.dispatch != "replicated":
        if tp > 1:
            yield "parallelism.expert_tp", (f"{tp} devices can share an expert only where they have the same tokens; "
                                            f"set parallelism.dispatch: replicated too")
        return
    if parallelism.tp % tp:
        yield "parallelism.expert_tp", f"{tp} does not divide the {parallelism.tp} devices of a group; use a divisor"
    elif scenario.model.moe is not None and scenario.model.moe.ffn % tp:
        yield "parallelism.expert_tp", f"{tp} does not divide the {scenario.model.moe.ffn} columns of an expert"
    for name, used in (("parallelism.mode", parallelism.mode == "context_coherent"),
                       ("parallelism.deduplicate", not parallelism.deduplicate),
                       ("overlap", scenario.overlap != "none"), ("background", scenario.background is not None),
                       ("placement.online", scenario.online is not None), ("parallelism.pp", parallelism.pp > 1),
                       ("all_to_all", getattr(scenario.all_to_all, "needs_nodes", False))):
        if used:
            yield name, "does not go with parallelism.dispatch replicated; use all_to_all"


def _expert_devices(scenario: Scenario) -> Iterable[Fact]:
    parallelism, n, size = scenario.parallelism, scenario.parallelism.expert_devices, scenario.stage_size
    at, per_node = "parallelism.expert_devices", scenario.hardware.devices_per_node
    if n == 0:
        return
    if scenario.model.moe is None:
        yield at, f"model {scenario.model.name} has no experts; set it to 0"
    elif n >= size:
        yield at, f"{n} of the {size} devices of an island run experts, none is left for all else; use fewer"
    elif n % parallelism.tp or n > per_node and n % per_node:
        yield at, (f"{n} must be a multiple of parallelism.tp ({parallelism.tp}), and above the {per_node} devices of "
                   f"a node whole nodes; change one of them")
    for name, used, remedy in (
            ("parallelism.mode", parallelism.mode == "context_coherent", "use dispatch_combine"),
            ("parallelism.dispatch", parallelism.dispatch != "all_to_all", "use all_to_all"),
            ("parallelism.pp", parallelism.pp > 1, "set it to 1"),
            ("all_to_all", getattr(scenario.all_to_all, "needs_nodes", False), "use flat"),
            ("overlap", scenario.overlap != "none", "leave it out"),
            ("placement.online", scenario.online is not None, "leave it out"),
            ("profile", scenario.profile is not None, "use kernels"),
            ("cache", scenario.cache is not None, "leave it out"),
            ("selection.attention", name_of(scenario.selection.attention) != "gpu_only", "use gpu_only")):
        if used:
            yield name, f"does not go with {at} ({n}); {remedy}"


def _selected(scenario: Scenario) -> Iterable[Fact]:
    selection, device = scenario.selection, scenario.hardware.device
    if selection.processor is not None and device.beside(selection.processor) is None:
        known = ", ".join(p.kind for p in device.processors) or "none"
        yield "selection.processor", f"{device.name} has no {selection.processor!r} beside its own; known: {known}"
    elif selection.uses_both and not device.processors:
        yield "selection", (f"{device.name} has one processor, nothing to select; use a device with processors "
                            f"(hw_configs/devices/duplex.yaml), or gpu_only")
    if selection.uses_both:
        for name, used in (("profile", scenario.profile is not None),
                           ("parallelism.pp", scenario.parallelism.pp > 1),
                           ("parallelism.mode", scenario.parallelism.mode == "context_coherent")):
            if used:
                yield name, "does not go with a selection other than gpu_only: work is not shared there yet"


def _lengths(scenario: Scenario) -> Iterable[Fact]:
    requests, join = scenario.requests, scenario.trace.join if scenario.trace is not None else "resampled"
    names = ("prompt_tokens", "output_tokens")
    if requests.kind == "replay":
        if join == "paired":
            yield "trace.join", "paired takes the trace's own requests; use requests.kind poisson or closed_loop"
        return
    for name in names:
        given = getattr(requests, name) is not None
        if join == "paired" and given:
            yield f"requests.{name}", "trace.join is paired: lengths are the trace's own; remove it"
        if join == "resampled" and not given:
            yield f"requests.{name}", "missing; add it (trace.join is resampled: lengths are not the trace's)"
    if isinstance(requests, ClosedLoop) and requests.concurrency > requests.count:
        yield "requests.concurrency", f"{requests.concurrency} is above requests.count {requests.count}; lower it"


def weight_bytes_per_device(scenario: Scenario) -> float:
    """Return the bytes of weights that the fullest device needs when experts are spread evenly."""
    return max(_weight_bytes(scenario).values())


def _weight_bytes(scenario: Scenario) -> dict[str, float]:
    """Return the bytes of weights of the fullest device of each kind, by how errors call devices of that kind."""
    model, needed = scenario.model, []
    for layers in scenario.stages:
        each = -(-model.experts_per_layer[model.moe_rows(layers)] // scenario.n_holders)
        experts = int(each.sum()) if scenario.cache is None else cached_experts(scenario, each)
        needed.append((experts * model.expert_bytes / scenario.parallelism.expert_tp if experts else 0.0,
                       model.non_expert_bytes(scenario.parallelism.tp, layers)))
    if n := scenario.parallelism.expert_devices:
        experts_alone, others = needed[0]  # of one stage
        return {f"{scenario.hardware.n_devices - n * scenario.n_islands} devices without experts": others,
                f"{n * scenario.n_islands} devices for experts": experts_alone}
    return {f"{scenario.hardware.n_devices} devices": max(map(sum, needed))}


def usable_bytes(scenario: Scenario) -> float:
    """Return the bytes of a device's first memory tier that weights and KV may fill."""
    return scenario.memory_fraction * scenario.hardware.device.memory[0].capacity


def _memory(scenario: Scenario) -> Iterable[Fact]:
    bound, memory = usable_bytes(scenario), scenario.hardware.device.memory[0].name
    alone = ", more of them (parallelism.expert_devices)" if scenario.parallelism.expert_devices else ""
    below = ", a cache of experts (cache)" if scenario.model.moe is not None and scenario.cache is None else ""
    for kind, demand in _weight_bytes(scenario).items():
        if demand < bound:
            continue
        yield "hardware", (
            f"the weights do not fit: each of {kind} needs {pretty(demand, 'byte', 4)} and has "
            f"{pretty(bound, 'byte', 4)} ({scenario.memory_fraction:.0%} of {memory}), "
            f"{pretty(demand - bound, 'byte', 4)} too little; more devices{alone if 'for experts' in kind else ''}, "
            f"a larger parallelism.tp, narrower model.dtype.experts{below} or a higher memory_fraction would help")
