"""Flat or 2DH? All-to-alls of equal parts, in closed form, from 8 to 2,048 GPUs and 64 KiB to 256 MiB.

Size: bytes that a GPU sends in all, its own part too (Tutel's S). Times in s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim import config
from moesim.hardware import HardwareSpec
from moesim.network import Constants, Messages, Network

MACHINE = Path(__file__).resolve().parent / "ndm-a100-v4.yaml"
GPUS = tuple(2**k for k in range(3, 12))
KIB, MIB = 2**10, 2**20
SIZES = tuple(64 * KIB * 2**k for k in range(13))
MESSAGES_S = (1e-6, 2e-6, 3e-6)
"""What a message over the port may cost: NCCL's figure for Intel hosts, for AMD hosts (taken), and more than that."""
COPY_SHARE = 0.85  # of the memory bandwidth that a copy reaches: assumed, about what streaming benchmarks find
ALGORITHMS: dict[str, Any] = {
    "flat": "flat", "2DH": "2dh", "hierarchical, one copy": {"name": "hierarchical", "transforms": 1},
    "bi-level": "bilevel", "PXN": "pxn"}
"""Hierarchical with both copies is 2DH, so the one without the first copy stands here. Pairwise is never before flat:
it sends the same messages and waits in between."""


def network(gpus: int, message_s: float | None = None, machine: Path = MACHINE) -> Network:
    """Return the network of *gpus* of *machine*; *message_s* replaces what a message over the port costs."""
    nodes = gpus // 8
    spec = config.load(HardwareSpec, machine, [f"nodes={nodes}", f"fabric.hosts={gpus}"])
    found = replace(Network.of(spec), copy_bandwidth=COPY_SHARE * spec.device.memory[0].bandwidth)
    if message_s is None or found.scale_out is None:
        return found
    return replace(found, scale_out=plain(found.scale_out, message=message_s))


def plain(constants: Any, **changes: float) -> Constants:
    """Return *constants* of a domain as plain numbers, some of them changed."""
    names = ("efficiency", "startup", "ramp", "message")
    values = {name: getattr(constants, name) for name in names} | {"bandwidth": getattr(constants, "bandwidth", np.inf)}
    return Constants(**(values | changes))


def even(gpus: int) -> Messages:
    """Return one part for every GPU from every GPU."""
    return Messages(np.ones((gpus, gpus), np.int32))


def times(gpus: Sequence[int] = GPUS, sizes: Sequence[int] = SIZES, message_s: float | None = None,
          algorithms: Iterable[str] = ALGORITHMS) -> pd.DataFrame:
    """Return a table of gpus, size_bytes, algorithm, time_s."""
    rows, algorithms = [], list(algorithms)
    for n in gpus:
        net, messages = network(n, message_s), even(n)
        rows += [(n, s, a, t) for (a, s), t in _each(net, messages, sizes, algorithms).items()]
    return pd.DataFrame(rows, columns=["gpus", "size_bytes", "algorithm", "time_s"])


def ratio(table: pd.DataFrame, above: str = "flat", below: str = "2DH") -> pd.DataFrame:
    """Return time of *above* over time of *below*: one row per size, one column per number of GPUs."""
    wide = {a: table[table["algorithm"] == a].pivot(index="size_bytes", columns="gpus", values="time_s")
            for a in (above, below)}
    return wide[above] / wide[below]


def crossover(size: int, message_s: float | None = None, last: int = 2048) -> int | None:
    """Return from how many GPUs on (in whole nodes) 2DH beats flat for *size*; None if not up to *last*."""
    def wins(nodes: int) -> bool:
        found = times([8 * nodes], [size], message_s, ("flat", "2DH"))["time_s"]
        return bool(found[1] < found[0])

    high = 2
    while not wins(high):
        high *= 2
        if 8 * high > last:
            return None
    low = high // 2  # one node: equal
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wins(middle) else (middle, high)
    return 8 * high


PARTS = ("startup", "messages", "copies", "NIC", "NVLink")


def parts(gpus: int, sizes: Sequence[int], algorithms: Sequence[str]) -> pd.DataFrame:
    """Return where the time goes: gpus, size_bytes, algorithm, part, time_s.

    Each part is what is saved when it costs nothing, taken away in the order messages, startup, copies, bytes over
    ports; what is left are the bytes over NVLink. So a part that hides behind another is not shown.
    """
    net, messages = network(gpus), even(gpus)
    up, out = net.scale_up, net.scale_out
    changes: dict[str, dict[str, Any]] = {
        "messages": {"scale_up": plain(up, message=0), "scale_out": plain(out, message=0)},
        "startup": {"scale_up": plain(up, message=0, startup=0), "scale_out": plain(out, message=0, startup=0)},
        "copies": {"copy_bandwidth": np.inf},
        "NIC": {"scale_out": plain(out, message=0, startup=0, efficiency=np.inf)}}
    before, rows = _each(net, messages, sizes, algorithms), []
    for part, change in changes.items():
        net = replace(net, **change)
        after = _each(net, messages, sizes, algorithms)
        rows += [(gpus, s, a, part, before[a, s] - after[a, s]) for a, s in after]
        before = after
    rows += [(gpus, s, a, "NVLink", t) for (a, s), t in before.items()]
    return pd.DataFrame(rows, columns=["gpus", "size_bytes", "algorithm", "part", "time_s"])


def _each(net: Network, messages: Messages, sizes: Iterable[int],
          algorithms: Iterable[str]) -> Mapping[tuple[str, int], float]:
    """Return the seconds of every algorithm and size."""
    return {(a, s): float(net.exchange(ALGORITHMS[a], messages, s / net.n_devices).time_s)
            for a in algorithms for s in sizes}
