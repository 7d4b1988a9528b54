"""The memory tiers of one node, top to bottom, as rooms, bandwidths and copy engines.

>>> from moesim import config
>>> from moesim.hardware import HardwareSpec
>>> from moesim.units import pretty
>>> dgx = Chain.of(config.load(HardwareSpec, "hw_configs/machines/a100-1x8.yaml"))
>>> dgx.names, dgx.room("hbm"), dgx.room("host")
(('hbm', 'host'), 640000000000.0, 2000000000000.0)
>>> dgx.route("host", "hbm", device=3)
('host>hbm 3',)
"""

from __future__ import annotations

import dataclasses

from moesim.hardware import HardwareSpec, Tier, TierLink
from moesim.memory.dma import Engine
from moesim.memory.terms import CacheError
from moesim.registry import suggest


@dataclasses.dataclass(frozen=True)
class Chain:
    """Hold the *tiers* of a node of *devices*; those from *shared* on belong to the node, the others to each device."""

    tiers: tuple[Tier, ...]
    devices: int
    shared: int

    @classmethod
    def of(cls, machine: HardwareSpec) -> Chain:
        """Return the tiers of one node of *machine*: those of its devices, then those of the host."""
        own = machine.device.memory
        return cls((*own, *machine.host), machine.devices_per_node, len(own))

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the tiers, the fastest first."""
        return tuple(tier.name for tier in self.tiers)

    def room(self, tier: str) -> float:
        """Return the bytes of *tier* in the node."""
        at = self._at(tier)
        return self.tiers[at].capacity * (self.devices if at < self.shared else 1)

    def bandwidth(self) -> dict[str, float]:
        """Return the bytes/s of every tier, each device's own by its number."""
        return {self._memory(at, device): tier.bandwidth for at, tier in enumerate(self.tiers)
                for device in range(self.devices)}

    def engines(self) -> dict[str, Engine]:
        """Return the copy engines of the node, upwards and downwards, by the names that ``route`` gives."""
        return {self._engine(low, device, up): self._made(low, device, up) for low in range(1, len(self.tiers))
                for device in range(self.devices) for up in (True, False)}

    def route(self, source: str, target: str, device: int = 0) -> tuple[str, ...]:
        """Return the engines over which a copy for *device* goes from tier *source* to *target*, in turn.

        Raises ``CacheError`` for a tier or a device that the node does not have.
        """
        start, end = self._at(source), self._at(target)
        if start == end or not 0 <= device < self.devices:
            raise CacheError(f"no copy from {source} to {target} for device {device}: give two tiers of "
                             f"{', '.join(self.names)}, and a device below {self.devices}")
        if start > end:
            return tuple(self._engine(low, device, True) for low in range(start, end, -1))
        return tuple(self._engine(low, device, False) for low in range(start + 1, end + 1))

    def _at(self, name: str) -> int:
        if name not in self.names:
            raise CacheError(f"no tier {name!r}{suggest(name, self.names)}")
        return self.names.index(name)

    def _link(self, low: int) -> TierLink:
        link = self.tiers[low].link
        if link is None:
            raise CacheError(f"tier {self.names[low]} has no link to {self.names[low - 1]}; give it one")
        return link

    def _engine(self, low: int, device: int, up: bool) -> str:
        ends = self.names[low], self.names[low - 1]
        at = "" if self._link(low).per == "node" else f" {device}"
        return f"{'>'.join(ends if up else ends[::-1])}{at}"

    def _made(self, low: int, device: int, up: bool) -> Engine:
        link = self._link(low)
        rate = link.bandwidth if up or link.back is None else link.back
        ends = [at for at in (low, low - 1) if link.per == "device" or at >= self.shared]
        return Engine(rate * link.efficiency, tuple(self._memory(at, device) for at in ends), link.lanes, link.half,
                      link.setup)

    def _memory(self, at: int, device: int) -> str:
        return self.names[at] if at >= self.shared else f"{self.names[at]} {device}"
