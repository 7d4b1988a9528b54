"""Numbers that describe a model, a machine, a trace or a placement; the list of everything that has a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from moesim import registry
from moesim.cli import library
from moesim.hardware import Device, HardwareSpec
from moesim.model import ModelSpec
from moesim.units import pretty


def numbers(kind: str, content: Any) -> dict[str, Any] | None:
    """Return what describes *content*, or None if only its text does (a scenario, a sweep)."""
    describe = _DESCRIBE.get(kind)
    return describe(content) if describe else None


def _model(model: ModelSpec) -> dict[str, Any]:
    experts = sorted(set(model.experts_per_layer.tolist()))
    return {
        "name": model.name, "source": model.source,
        "layers": f"{model.layers}, {model.n_moe_layers} with experts",
        "experts": f"{' or '.join(map(str, experts))} per layer, {model.top_k} chosen per token",
        "hidden": model.hidden, "total_parameters": model.total_parameters,
        "active_parameters": model.active_parameters, "weights": pretty(model.total_bytes, "byte", 4),
        "expert": pretty(model.expert_bytes, "byte", 4),
        "shared_experts": pretty(model.shared_expert_bytes, "byte", 4) + " per layer",
        "expert_flop_per_token": model.expert_flop_per_token,
        "kv_per_token": pretty(model.kv_bytes_per_token, "byte", 4),
        "activation_per_token": pretty(model.activation_bytes_per_token, "byte", 4)}


def _device(device: Device) -> dict[str, Any]:
    processor = device.processor
    return {"device": device.name, "device_source": device.source,
            **{f"peak_{dtype}": f"{rate / 1e12:.5g} TFLOP/s" for dtype, rate in processor.peak.items()},
            **{f"memory_{tier.name}": f"{pretty(tier.capacity, 'byte', 4)}, {pretty(tier.bandwidth, 'byte/second', 4)}"
               for tier in device.memory},
            **{f"beside_{p.kind}": f"{p.peak_flop_per_s('fp16') / 1e12:.5g} TFLOP/s at 16 bit, "
                                   f"{pretty(p.bandwidth, 'byte/second', 4)} x {p.efficiency:g}"
               for p in device.processors},
            "power": f"{device.idle_power:g} W idle, {device.busy_power:g} W busy"}


def _machine(machine: HardwareSpec) -> dict[str, Any]:
    first = machine.device.memory[0]
    pairs = {"name": machine.name, "source": machine.source,
             "devices": f"{machine.n_devices}, {machine.devices_per_node} in each of {machine.nodes} node(s)"}
    pairs |= _device(machine.device)
    pairs[f"all_{first.name}"] = pretty(machine.n_devices * first.capacity, "byte", 4)
    pairs["scale_up"] = f"{pretty(machine.scale_up.bandwidth, 'byte/second', 4)} per device and direction"
    pairs |= {f"host_{tier.name}": f"{pretty(tier.capacity, 'byte', 4)}, {pretty(tier.bandwidth, 'byte/second', 4)}, "
              f"shared by the {machine.devices_per_node} devices of a node" for tier in machine.host}
    pairs |= {f"link_to_{tier.name}": f"{pretty(tier.link.bandwidth, 'byte/second', 4)} per {tier.link.per}, of which "
              f"{tier.link.efficiency:.0%} reached" for tier in (*machine.device.memory, *machine.host) if tier.link}
    if machine.fabric is not None:
        pairs |= {f"fabric_{key}": _scaled(value) for key, value in registry.dump(machine.fabric).items()
                  if value is not None}
    return pairs


def _scaled(value: Any) -> Any:
    """Return a quantity in SI units, as parts dump it, with a prefix; anything else as it is."""
    number, _, symbol = str(value).partition(" ")
    unit = {"B/s": "byte/second", "B": "byte", "s": "second"}.get(symbol)
    return pretty(float(number), unit, 4) if unit else value


def _trace(trace: Any) -> dict[str, Any]:
    from moesim import trace_stats

    facts = {key: value for key, value in trace.meta.items() if isinstance(value, (str, int, float)) and value != ""}
    decode = int((trace.tokens["phase"] == 1).sum())
    facts |= {"tokens": trace.n_tokens, "prefill_tokens": trace.n_tokens - decode, "decode_tokens": decode,
              "domains": ", ".join(trace.domains())}
    return facts | {name: float(value) for name, value in trace_stats.summary(trace).items()
                    if not {name, f"n_{name}"} & facts.keys()}


def _placement(placement: Any) -> dict[str, Any]:
    counts = placement.counts()
    return {"layers": placement.n_layers, "experts": placement.n_experts, "devices": placement.n_devices,
            "replicas": int(placement.replicas.sum()), "experts_per_device": f"{counts.min()}..{counts.max()}",
            **{key: str(value) for key, value in placement.info.items()}}


def _kernels(file: Any) -> dict[str, Any]:
    errors = {f"error_{op}": f"median {a.median:g} %, p90 {a.p90:g} %, bias {a.bias:g} % of {a.rows} rows"
              for op, a in file.accuracy.items()}
    return {"name": file.name, "source": file.source, "device": file.device.name, "dtype": file.dtype,
            **{f"model_{k}": v for k, v in registry.dump(file.model).items()}, **errors}


_DESCRIBE: dict[str, Callable[[Any], dict[str, Any]]] = {
    "model": _model, "machine": _machine, "device": _device, "trace": _trace, "placement": _placement,
    "kernels": _kernels}


def listing(kind: str | None = None) -> list[list[str]]:
    """Return (kind, name, what it is) of all parts, library files, metrics and plots, or of one *kind* of them.

    Raises ``ValueError`` if there is no such kind.
    """
    kinds: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
        **{part: partial(_parts, part) for part in registry.KINDS},
        **{file: partial(_files, file) for file in library.FOLDERS},
        "metric": _metrics, "plot": _plots}
    if kind is not None and kind not in kinds:
        raise ValueError(f"unknown kind {kind!r}{registry.suggest(kind, kinds)}")
    return [[name, *row] for name in ([kind] if kind else kinds) for row in kinds[name]()]


def _parts(kind: str) -> Iterator[tuple[str, str]]:
    for name in registry.names(kind):
        yield name, registry.summary(kind, name)


def _files(kind: str) -> Iterator[tuple[str, str]]:
    from moesim import config, trace_file

    for name, path in library.files(kind).items():
        if kind == "trace":
            meta = trace_file.read_meta(path)
            label = "synthetic" if meta.get("synthetic") else meta.get("model", "")
            yield name, f"{label}: {meta['n_layers']} layers, {meta['n_experts']} experts, top {meta['top_k']}"
        else:
            yield name, str(config.read(path).data.get("source", ""))


def _metrics() -> Iterator[tuple[str, str]]:
    from moesim.explore import metric_names

    yield from metric_names().items()


def _plots() -> Iterator[tuple[str, str]]:
    from moesim import plots

    for name in plots.names():
        yield name, (getattr(plots, name).__doc__ or "").strip().splitlines()[0]
