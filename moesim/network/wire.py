"""What crosses the wire: payload in packets, each with headers.

>>> wire_bytes(np.array([0.0, 1.0, 4096.0, 4097.0]), Packet(payload=4096, header=64)).tolist()
[0.0, 65.0, 4160.0, 4225.0]
>>> round(Packet(payload=4096, header=64).goodput, 4)
0.9846
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Packet(NamedTuple):
    """Bytes of ``payload`` that a full packet carries, and of ``header`` that every packet adds."""

    payload: float
    header: float

    @property
    def goodput(self) -> float:
        """Share of the wire that the payload of full packets takes."""
        return self.payload / (self.payload + self.header)


def wire_bytes(size: np.ndarray, packet: Packet) -> np.ndarray:
    """Return the bytes on the wire of messages of *size* bytes: the last packet is as long as it must be."""
    return size + np.ceil(np.asarray(size) / packet.payload) * packet.header
