"""What a collective costs in closed form: how long its steps take when the links are its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np


class Eager(Protocol):
    """How a library sends short messages: without asking first, at a rate of their own."""

    @property
    def limit(self) -> float:
        """Bytes of the longest message that is sent so."""

    @property
    def rate(self) -> float:
        """Bytes per second of one message."""

    @property
    def delay(self) -> float:
        """Seconds by which longer messages start later."""


class Transfer(Protocol):
    """Constants of one domain (scale-up or scale-out); ``of`` has those of collectives that differ, by name."""

    @property
    def efficiency(self) -> float:
        """Share of the bandwidth that large messages reach."""

    @property
    def startup(self) -> float:
        """Seconds before anything moves."""

    @property
    def ramp(self) -> float:
        """Seconds that grow with the square root: links reach full speed late."""

    @property
    def message(self) -> float:
        """Seconds that a device needs for each message that it sends, however small."""

    @property
    def packet(self) -> Any:
        """Payload and header of packets (both in bytes), or None: then efficiency contains headers."""

    @property
    def eager(self) -> Eager | None:
        """What is different for short messages, or None."""

    @property
    def of(self) -> Mapping[str, Any]:
        """Constants of single collectives, by name."""


class LinkClass(Transfer, Protocol):
    """A domain whose links are all alike: the scale-up switch."""

    @property
    def bandwidth(self) -> float:
        """Bytes per second, per device and direction."""


@dataclass(frozen=True)
class Constants:
    """Constants in plain SI numbers; the default is a perfect domain. Machines give the same as ``LinkClass``."""

    bandwidth: float = np.inf
    efficiency: float = 1.0
    startup: float = 0.0
    ramp: float = 0.0
    message: float = 0.0
    packet: Any = None
    eager: Any = None
    of: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Collective:
    """What a collective costs: seconds, and bytes on every link (``time_s`` [...], ``loads`` [..., links])."""

    time_s: np.ndarray
    loads: np.ndarray


class Step(NamedTuple):
    """A step of a collective in one or two domains (axis 0: scale-up, scale-out); fields [domains, ...] or one number.

    ``x``: seconds of the busiest link at its reachable rate. ``issued``: messages of the busiest device. ``longest``:
    bytes of the longest message. ``repeat``: how often; ``latencies``: path latencies each time. ``launch``: startups
    are paid. ``copied_s`` [...]: copies before it.
    """

    x: np.ndarray
    issued: np.ndarray | float = 0.0
    longest: np.ndarray | float = np.inf
    repeat: int = 1
    latencies: int = 1
    launch: bool = True
    copied_s: np.ndarray | float = 0.0


def seconds(steps: Iterable[Step], constants: list[Transfer], latency_s: list[float]) -> np.ndarray:
    """Return the seconds [...] of *steps* one after the other; *constants* and *latency_s* by domain.

    A launch takes startup + x + sqrt(ramp * x) in each domain, the slower counts; a domain without traffic takes no
    time. Steps without a launch go on with the launch before them: x adds up under one square root, no second startup.
    Where every message is short enough for the eager protocol, x + sqrt(ramp * x) is the longest over its rate, or x.
    How it fits measured collectives: docs/background/network.md, tests/external/test_collectives.py.
    """
    total: Any = 0.0
    carried: np.ndarray | None = None
    for step in steps:
        if carried is None or step.launch:
            carried = np.zeros(np.shape(step.x))
        domains = []
        for d, (c, latency) in enumerate(zip(constants, latency_s, strict=True)):
            x, before = step.repeat * step.x[d], carried[d].copy()
            carried[d] += x
            wait = waiting(c, (before, x), step.repeat, of_domain(step.issued, d), of_domain(step.longest, d))
            domains.append(np.where(x > 0, wait + x + step.repeat * latency * step.latencies, 0.0))
        total = total + step.copied_s + np.maximum.reduce(domains)
    return np.asarray(total)


def waiting(c: Transfer, busy_s: tuple[Any, Any], repeat: int, issued: Any, longest: Any) -> Any:
    """Return the seconds that a step takes in a domain beside moving bytes at full rate and latency.

    *busy_s*: of the busiest link in this launch before the step, and in it; other arguments as in ``Step``.
    """
    before, x = busy_s
    extra = np.sqrt(c.ramp * (before + x)) - np.sqrt(c.ramp * before)
    if c.eager is not None:
        quick = np.maximum(repeat * longest / c.eager.rate - x, 0.0)
        extra = np.where(longest <= c.eager.limit, quick, c.eager.delay + extra)
    return np.where(before > 0, 0.0, c.startup) + repeat * c.message * issued + extra


def of_domain(value: np.ndarray | float, domain: int) -> Any:
    """Return the entry of *domain* of *value* [domains, ...], or the one value for all."""
    return value if np.ndim(value) == 0 else np.asarray(value)[domain]
