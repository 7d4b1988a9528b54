"""Machines as data: processors, memory tiers, devices, nodes, links and the fabric -> HardwareSpec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moesim.config import Named, Spec, facts_error
from moesim.registry import Part
from moesim.units import Bytes, BytesPerSecond, FlopPerSecond, Joules, JoulesPerByte, Seconds, Watts


class Energy(Spec):
    """What work costs: a byte on the way between memory cells and processor, its share of opening a row, a FLOP."""

    access: JoulesPerByte
    activation: JoulesPerByte
    flop: Joules


class Processor(Spec):
    """What computes inside a device.

    ``peak``: dense FLOP/s per dtype (one multiply-accumulate is 2 FLOP). ``bandwidth``: bytes/s of the memory that it
    sees. ``multiprocessors``: units over which tiles are spread in waves. Of a processor beside the device's own
    (docs/background/pim.md): ``efficiency``: share of the bandwidth that it reaches; ``power_cap``: what its accesses
    and operations (``energy``) may draw; ``area_mm2``: silicon that it adds to a memory stack, or to the device.
    """

    kind: Literal["gpu", "logic_pim", "bank_pim", "bankgroup_pim", "cpu"] = "gpu"
    peak: dict[str, FlopPerSecond] = Field(min_length=1)
    bandwidth: BytesPerSecond
    multiprocessors: int = Field(ge=1)
    efficiency: float = Field(default=1.0, gt=0, le=1)
    energy: Energy | None = None
    power_cap: Watts | None = None
    area_mm2: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    def peak_flop_per_s(self, dtype: str) -> float:
        """Return the peak rate for *dtype*; a dtype the processor lacks runs at the 16-bit rate (weights unpacked)."""
        if dtype in self.peak:
            return self.peak[dtype]
        return self.peak["bf16"] if "bf16" in self.peak else self.peak["fp16"]

    @model_validator(mode="after")
    def _has_16_bit(self) -> Processor:
        if not {"bf16", "fp16"} & set(self.peak):
            raise ValueError("peak must give bf16 or fp16: other dtypes without a rate of their own fall back to it")
        return self

    @model_validator(mode="after")
    def _can_keep_its_cap(self) -> Processor:
        if self.power_cap is not None and (self.energy is None or self.power_cap == 0):
            raise ValueError("power_cap needs the energy of accesses and operations, and must be above 0; add energy, "
                             "or leave power_cap out")
        return self


class TierLink(Spec):
    """The copy engines between a tier and the one above it: one for each device, or one that a node shares (``per``).

    ``bandwidth``: of one engine, upwards; ``back``: downwards, if another. ``efficiency``: share that copies reach.
    ``lanes``: chunks that an engine moves at a time; n of them reach n / (n + ``half``) of its bandwidth. ``setup``:
    of each chunk, before its bytes move.
    """

    bandwidth: BytesPerSecond
    back: BytesPerSecond | None = None
    efficiency: float = Field(default=1.0, gt=0, le=1)
    per: Literal["device", "node"] = "device"
    lanes: int = Field(default=1, ge=1)
    half: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    setup: Seconds = 0.0


class Tier(Spec):
    """One level of memory; ``link``: to the level above, which every tier but the first of a device has."""

    name: str
    capacity: Bytes
    bandwidth: BytesPerSecond
    link: TierLink | None = None


class Device(Spec):
    """A processor and the memory tiers that it uses, fastest first; power while idle and while busy.

    ``kernels``: the kernel times fitted to it, a name in ``hw_configs/kernels`` or a file; "" if none were.
    ``processors``: others that work on the first tier of the same memory, such as processing-in-memory, each of another
    kind; ``spaces``: parts of that memory (bank bundles) of which each serves one processor at a time.
    """

    name: str
    source: str
    kernels: str = ""
    processor: Processor
    processors: tuple[Processor, ...] = ()
    spaces: int = Field(default=1, ge=1)
    memory: tuple[Tier, ...] = Field(min_length=1)
    idle_power: Watts
    busy_power: Watts

    @model_validator(mode="after")
    def _works_harder_when_busy(self) -> Device:
        if self.idle_power > self.busy_power:
            raise ValueError(f"idle_power {self.idle_power:g} W is above busy_power {self.busy_power:g} W; swap them")
        return self

    @model_validator(mode="after")
    def _kinds_differ(self) -> Device:
        kinds = [p.kind for p in (self.processor, *self.processors)]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"processor and processors are of the kinds {', '.join(kinds)}; name each kind once: it "
                             f"is how results and selection.processor tell them apart")
        if self.processor.efficiency < 1 or self.processor.power_cap is not None:
            raise ValueError("efficiency and power_cap are of processors beside the device's own, whose times come "
                             "from the scenario's kernels; leave them out and use kernels: {name: reachable, ...}")
        if len({p.energy is None for p in (self.processor, *self.processors)}) > 1:
            raise ValueError("some processors have an energy and some have none; give it for all, or for none")
        return self

    def beside(self, kind: str | None) -> Processor | None:
        """Return the processor of *kind* beside the device's own (None: the first); None if there is no such."""
        return next((p for p in self.processors if kind in (None, p.kind)), None)


class Eager(Spec):
    """Short messages, up to ``limit``, go at ``rate`` each; longer ones start ``delay`` later (eager, rendezvous)."""

    limit: Bytes
    rate: BytesPerSecond
    delay: Seconds = 0.0


class Packet(Spec):
    """Packets: bytes of ``payload`` in a full one, and of ``header`` in each."""

    payload: Bytes
    header: Bytes


class Transfer(Spec):
    """What collectives reach: startup + messages * message + x + sqrt(ramp * x), x the bytes over rate * efficiency.

    ``message``: of each message that the busiest device sends. ``packet``: headers, where efficiency does not contain
    them. The form and its fit to measured collectives:
    docs/background/network.md.
    """

    efficiency: float = Field(gt=0, le=1)
    startup: Seconds
    ramp: Seconds
    message: Seconds = 0.0
    packet: Packet | None = None
    eager: Eager | None = None


class LinkClass(Transfer):
    """The scale-up links of a node: ``bandwidth`` per device and direction. ``of``: constants of single collectives."""

    bandwidth: BytesPerSecond
    of: dict[str, Transfer] = {}


class ScaleOut(Transfer):
    """How collectives use the fabric between nodes; the bandwidth of its links is the topology's.

    ``transport`` says what keeps senders from overrunning links: "paced" (congestion control that works), "pfc_only"
    (pause frames alone) or "sender_window" (windows, unpaced). The model is for the first; see ``network.validity``.
    """

    of: dict[str, Transfer] = {}
    transport: Literal["paced", "pfc_only", "sender_window"] = "paced"


class HardwareSpec(Spec):
    """A machine: equal devices in equal nodes behind a scale-up switch, nodes joined by a fabric.

    ``host``: memory below the devices' own that the devices of a node share, nearer first. ``host_processor``: what
    computes there, one for a node. ``reduction``: the algorithm of its all-reduces.
    """

    name: str
    source: str
    device: Annotated[Device, Named("hw_configs/devices")]
    devices_per_node: int = Field(ge=1)
    nodes: int = Field(ge=1)
    host: tuple[Tier, ...] = ()
    host_processor: Processor | None = None
    scale_up: LinkClass
    fabric: Annotated[Any, Part("topology", optional=True)] = None
    scale_out: ScaleOut | None = None
    reduction: Annotated[Any, Part("all_reduce")] = Field(default="hierarchical_ring", validate_default=True)

    @property
    def n_devices(self) -> int:
        """Number of devices of the machine."""
        return self.devices_per_node * self.nodes

    def part(self, n_devices: int) -> HardwareSpec:
        """Return the first *n_devices* as a machine of their own: part of a node, or whole nodes."""
        if n_devices <= self.devices_per_node:
            changes = {"devices_per_node": n_devices, "nodes": 1}
        else:
            changes = {"nodes": n_devices // self.devices_per_node}
        return self if n_devices == self.n_devices else self.model_copy(update=changes)

    def node_of(self, device: int) -> int:
        """Return the node of *device*."""
        return device // self.devices_per_node

    @model_validator(mode="after")
    def _tiers_form_a_chain(self) -> HardwareSpec:
        tiers = [(f"device.memory.{i}", tier) for i, tier in enumerate(self.device.memory)]
        tiers += [(f"host.{i}", tier) for i, tier in enumerate(self.host)]
        facts, names = [], [tier.name for _, tier in tiers]
        for i, (path, tier) in enumerate(tiers):
            if tier.name in names[:i]:
                facts.append((f"{path}.name", f"{tier.name!r} is the name of a tier above; give another"))
            if i and tier.link is None:
                facts.append((path, f"{tier.name} has no link to {names[i - 1]}; add link: {{bandwidth: ...}}"))
        if self.device.memory[0].link is not None:
            facts.append(("device.memory.0.link", f"nothing is above {names[0]}; move the link to the tier below"))
        if facts:
            raise facts_error("HardwareSpec", facts)
        return self

    @model_validator(mode="after")
    def _nodes_are_joined(self) -> HardwareSpec:
        if self.nodes == 1:
            return self
        if self.fabric is None or self.scale_out is None:
            raise ValueError(f"{self.nodes} nodes need a fabric and scale_out to join them; add both, or use nodes: 1")
        if self.fabric.n_hosts < self.n_devices:
            raise ValueError(f"the fabric has {self.fabric.n_hosts} hosts for {self.n_devices} devices "
                             f"(one network port each); add leaves or hosts_per_leaf")
        return self
