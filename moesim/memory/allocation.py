"""What is placed in which tier before a run: everything in the first, what moves least further down.

>>> weights, once = Symbol("weights", 60, 600), Symbol("once", 30, 30)
>>> first, then = Symbol("a", 30, 90, lives=(0, 1)), Symbol("b", 20, 60, lives=(2, 3))   # never at the same time
>>> allocate([weights, once, first, then], {"hbm": 100, "ddr": 1000})[["symbol", "tier", "offset_bytes"]]
    symbol tier  offset_bytes
0  weights  hbm           0.0
1     once  ddr           0.0
2        a  hbm          60.0
3        b  hbm          60.0
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from moesim.memory.terms import CacheError
from moesim.units import pretty


@dataclasses.dataclass(frozen=True)
class Symbol:
    """Name what needs room: its bytes, the bytes that a run moves of it, the first and the last step in which it lives.

    ``moved_bytes`` is its size times how often it is read or written. What never lives at the same time may lie at the
    same place.
    """

    name: str
    bytes: float
    moved_bytes: float
    lives: tuple[float, float] = (-math.inf, math.inf)


def allocate(symbols: Sequence[Symbol], rooms: Mapping[str, float]) -> pd.DataFrame:
    """Return tier and offset_bytes of every symbol.

    *rooms*: bytes of the tiers, fastest first. As long as a tier is too small, the symbol of which least bytes are
    moved goes down (of equals, the larger one): the static allocation of SN40L's compiler (Prabhakar et al., MICRO
    2024, section V). Raises ``CacheError`` with what is missing if the last is too small.
    """
    _check(symbols, rooms)
    left, tiers = list(symbols), list(rooms)
    found: dict[str, tuple[str, float]] = {}
    for tier in tiers:
        order = sorted(left, key=lambda s: (s.moved_bytes, -s.bytes))
        stay, down = left, 0
        while tier != tiers[-1] and not _fits(stay, rooms[tier]):
            down += 1
            gone = {s.name for s in order[:down]}
            stay = [s for s in left if s.name not in gone]
        offsets = offsets_of(stay)
        if (height := _height(stay, offsets)) > rooms[tier]:
            largest = max(stay, key=lambda s: s.bytes).name
            raise CacheError(f"{len(stay)} symbols need {pretty(height, 'byte', 4)} of {tier}, the last tier, which "
                             f"has {pretty(rooms[tier], 'byte', 4)}: {pretty(height - rooms[tier], 'byte', 4)} too "
                             f"little (the largest is {largest}); give it more, or a tier below")
        found |= {s.name: (tier, offset) for s, offset in zip(stay, offsets, strict=True)}
        left = [s for s in left if s.name not in found]
    rows = [(s.name, *found[s.name], s.bytes, s.moved_bytes) for s in symbols]
    return pd.DataFrame(rows, columns=["symbol", "tier", "offset_bytes", "bytes", "moved_bytes"])


def offsets_of(symbols: Sequence[Symbol]) -> list[float]:
    """Return where each symbol begins: the largest first, each at the lowest place that is free while it lives."""
    placed: list[tuple[float, float, Symbol]] = []
    found: dict[str, float] = {}
    for symbol in sorted(symbols, key=lambda s: -s.bytes):
        at = 0.0
        for begin, end, other in placed:
            together = symbol.lives[0] <= other.lives[1] and other.lives[0] <= symbol.lives[1]
            if together and begin < at + symbol.bytes and at < end:
                at = end
        bisect.insort(placed, (at, at + symbol.bytes, symbol), key=lambda p: p[0])
        found[symbol.name] = at
    return [found[s.name] for s in symbols]


def peak_bytes(symbols: Sequence[Symbol]) -> float:
    """Return the most bytes that live at any step: no allocation needs less."""
    if not symbols:
        return 0.0
    lives, size = np.array([s.lives for s in symbols]), np.array([s.bytes for s in symbols], dtype=np.float64)
    begun, ended = (np.concatenate([[0.0], size[np.argsort(lives[:, i])].cumsum()]) for i in (0, 1))
    at = lives[:, 0]  # the most live where one begins
    return float((begun[np.searchsorted(np.sort(lives[:, 0]), at, "right")]
                  - ended[np.searchsorted(np.sort(lives[:, 1]), at)]).max())


def _fits(symbols: Sequence[Symbol], room: float) -> bool:
    return peak_bytes(symbols) <= room and _height(symbols, offsets_of(symbols)) <= room


def _height(symbols: Sequence[Symbol], offsets: Sequence[float]) -> float:
    return max((offset + s.bytes for s, offset in zip(symbols, offsets, strict=True)), default=0.0)


def _check(symbols: Sequence[Symbol], rooms: Mapping[str, float]) -> None:
    if not rooms:
        raise CacheError("rooms is empty; give the bytes of at least one tier")
    names: set[str] = set()
    for i, symbol in enumerate(symbols):
        if symbol.name in names:
            raise CacheError(f"symbols[{i}].name is {symbol.name!r} a second time; give each a name of its own")
        names.add(symbol.name)
        if not 0 < symbol.bytes < math.inf or not 0 <= symbol.moved_bytes < math.inf:
            raise CacheError(f"symbols[{i}] ({symbol.name}) has {symbol.bytes!r} bytes and moves "
                             f"{symbol.moved_bytes!r}; give a size above 0 and moved bytes from 0")
        if not symbol.lives[0] <= symbol.lives[1]:
            raise CacheError(f"symbols[{i}].lives is {symbol.lives!r}; give the first step, then the last")
