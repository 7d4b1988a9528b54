"""What a kernel model sees of a processor: plain numbers for one dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from moesim.layers import DTYPE_BYTES
from moesim.registry import suggest


class Processor(Protocol):
    """A processor as the machine description gives it: bytes/s, count, FLOP/s per dtype."""

    @property
    def bandwidth(self) -> float:
        """Bytes per second of the memory it works from."""

    @property
    def multiprocessors(self) -> int:
        """Units over which tiles are spread."""

    def peak_flop_per_s(self, dtype: str) -> float:
        """Return the dense peak rate for *dtype*."""


@dataclass(frozen=True)
class Rates:
    """The numbers a kernel model works with.

    ``flop_per_s`` and ``bandwidth`` (bytes/s) are peaks of the whole processor; ``weight_bytes`` is the size of a
    stored weight, ``value_bytes`` of an activation or a cached key or value.
    """

    flop_per_s: float
    bandwidth: float
    multiprocessors: int
    weight_bytes: float
    value_bytes: float

    @property
    def flop_per_s_each(self) -> float:
        """Peak FLOP/s of one multiprocessor."""
        return self.flop_per_s / self.multiprocessors

    @property
    def bandwidth_each(self) -> float:
        """Bytes/s of one multiprocessor when all share the memory evenly."""
        return self.bandwidth / self.multiprocessors


class Setting(NamedTuple):
    """Where measurements were made: rates of the processor, name of the device, data type of the weights."""

    rates: Rates
    device: str
    dtype: str


def rates(processor: Processor, dtype: str) -> Rates:
    """Return what *processor* does with weights stored as *dtype*; activations stay 16 bit (fp32 beside fp32 weights).

    Raises ``ValueError`` for an unknown dtype.
    """
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"unknown dtype {dtype!r}{suggest(dtype, DTYPE_BYTES)}")
    return Rates(processor.peak_flop_per_s(dtype), processor.bandwidth, processor.multiprocessors,
                 DTYPE_BYTES[dtype], 4.0 if dtype == "fp32" else 2.0)
