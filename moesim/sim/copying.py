"""How long experts take from the tier below to the devices that miss them: closed forms, for whole steps at once.

This is ``moesim.sim.arrivals`` where nothing comes ahead of use and over one link only: then a step has no memory of
the last, and waits can be written down for all layers together. A law holds the two together (test_ahead_laws).
"""

from __future__ import annotations

import numpy as np

from moesim.hardware import HardwareSpec, Tier, TierLink


class Copies:
    """How long experts of *size* bytes take from the tier below to devices of *machine*."""

    def __init__(self, machine: HardwareSpec, size: float):
        tier, below_device = below(machine)
        assert tier.link is not None, "every tier but the first has one"
        self._link, self._tier, self._size = tier.link, tier, size
        self._node, self._tier_is_shared = machine.devices_per_node, not below_device

    @property
    def one_s(self) -> float:
        """Seconds of one expert that is alone on its way."""
        alone = np.zeros(self._node, np.int64)
        alone[0] = 1
        return float(self.seconds(alone)[0])

    def seconds(self, missed: np.ndarray, share: np.ndarray | None = None) -> np.ndarray:
        """Return the seconds until the last of *missed* [..., D] experts has come to each device, all asking at once.

        Over an engine of its own a device gets one after the other (``lanes`` at a time); devices of a node take turns
        at what they share: an engine, or the bandwidth of the tier. *share* [..., D]: of an expert's bytes that a copy
        has (mean; of what shares an engine, mean of the node); None: all.
        """
        nodes = missed.reshape(*missed.shape[:-1], -1, self._node)
        turns = np.minimum(nodes[..., :, None], nodes[..., None, :]).sum(axis=-1).reshape(missed.shape)
        own: np.ndarray | float = self._size if share is None else self._size * share
        common = own if share is None else self._size * self._of_node(share, missed)
        shared_link = self._link.per == "node"
        link_s = copy_s(self._link, common if shared_link else own, turns if shared_link else missed)
        tier_s = (turns * common if self._tier_is_shared else missed * own) / self._tier.bandwidth
        return np.maximum(link_s, tier_s)

    def _of_node(self, share: np.ndarray, missed: np.ndarray) -> np.ndarray:
        """Return the mean *share* of the copies *missed* of each node, on each of its devices [..., D]."""
        by_node = (*missed.shape[:-1], -1, self._node)
        bytes_of, n = ((share * missed).reshape(by_node).sum(axis=-1), missed.reshape(by_node).sum(axis=-1))
        return np.repeat(bytes_of / np.maximum(n, 1), self._node, axis=-1)


def copy_s(link: TierLink, size: float | np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the seconds in which one engine of *link* moves *n* chunks of *size* bytes that are all ready.

    As ``moesim.memory.dma.run`` for one copy: r chunks in flight share r / (r + half) of the bandwidth.
    """
    rate = link.bandwidth * link.efficiency
    rounds, rest = np.divmod(n, link.lanes)
    full_s = link.setup + size * (link.lanes + link.half) / rate
    return rounds * full_s + np.where(rest > 0, link.setup + size * (rest + link.half) / rate, 0.0)


def tiers(machine: HardwareSpec) -> list[tuple[Tier, bool]]:
    """Return the tiers below the first of a device of *machine*, nearest first, and whether each device has its own."""
    return [(tier, True) for tier in machine.device.memory[1:]] + [(tier, False) for tier in machine.host]


def below(machine: HardwareSpec) -> tuple[Tier, bool]:
    """Return the tier below the first of a device of *machine*, and whether each device has its own."""
    return tiers(machine)[0]
