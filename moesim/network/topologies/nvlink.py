"""Scale-up domain: every device has links to every switch chip, and every chip is a path.

An NVSwitch node of 8 devices, and a rack of 72 (GB200 NVL72: 18 NVLink 5 links of 50 GB/s per direction and device,
one to each of 18 chips):

>>> node, rack = NvLink(devices=8, switches=4, link="450 GB/s"), NvLink(devices=72, switches=18, link="900 GB/s")
>>> [len(d.links()) // 2 for d in (node, rack)], [float(d.links().capacity_bytes_per_s[0]) / 1e9 for d in (node, rack)]
([32, 1296], [112.5, 50.0])
>>> rack.widths(np.array([0]), np.array([71])).tolist()
[[18]]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import PositiveInt

from moesim.network.topologies._build import Topology, link_table
from moesim.registry import part
from moesim.units import BytesPerSecond, Seconds


@part
class NvLink(Topology):
    """Join *devices* (the hosts of this fabric) by *switches* chips that do not block.

    ``link``: bytes/s per direction of a device, over all chips; each chip has an equal part of it (assumed: the 18
    links of an H100 cannot be equal over 4 chips). ``latency``: of each link. Order of links: nic_out by
    (device, chip), then nic_in likewise.
    """

    devices: PositiveInt
    switches: PositiveInt
    link: BytesPerSecond
    latency: Seconds = 0.0

    @property
    def n_hosts(self) -> int:
        """Number of devices."""
        return self.devices

    @property
    def oversubscription(self) -> float:
        """Return 1: the chips carry what all devices send."""
        return 1.0

    @property
    def path_latency_s(self) -> float:
        """Latency of a path: to a chip and from it."""
        return 2 * self.latency

    def switch_of(self, host: Any) -> Any:
        """Return where the paths to *host* (a number or an array) meet: the device itself, or the only chip."""
        return host if self.switches > 1 else host * 0

    def links(self) -> pd.DataFrame:
        """Return the table of links."""
        ports = [(f"host{device}", f"chip{chip}") for device in range(self.devices) for chip in range(self.switches)]
        each = self.link / self.switches
        return link_table([("nic_out", ports, each), ("nic_in", [(b, a) for a, b in ports], each)], self.latency)

    def widths(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return the number of chips that *src* chooses from, [flows, 1]."""
        return np.full((len(src), 1), self.switches, np.int64)

    def path(self, src: np.ndarray, dst: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Return the links of each flow over chip *choice*, [flows, 2]."""
        return np.column_stack([src * self.switches + choice, (self.devices + dst) * self.switches + choice])
