"""What a collective is made of: stages of an all-to-all, rounds of an all-reduce. No seconds here, only who sends what.

Letters: D devices, N nodes of m neighbouring devices each, D = N m; n members of a group. ``...`` is a batch (layers).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Messages(NamedTuple):
    """What has to get where, before anybody has decided how.

    Counts (int32) or bytes (float); the network multiplies by a size. Stages keep the type, so int32 counts of one
    device must stay below 2**31 in sum.
    """

    copies: np.ndarray
    """[..., D, D] from device (row) to device (column). The diagonal stays where it is."""
    node_copies: np.ndarray | None = None
    """[..., D, N] from device to node, a token once per node that it visits; only ``node_limited`` asks for it."""
    n_experts: int | None = None
    """Experts of the model in a layer; only ``deepep_ll`` asks for it."""


class Stage(NamedTuple):
    """One step of an all-to-all: everything in it runs at once.

    The way home (combine) is the same stages in reverse order, each with its traffic transposed.
    """

    traffic: np.ndarray
    """[..., D, D] from device (row) to device (column), in the units of ``Messages``. The diagonal is what stays."""
    messages: np.ndarray | None = None
    """[..., D] messages that each device issues. None: one for every other device that it sends something to."""
    copied: np.ndarray | float = 0.0
    """[..., D] what each device reads once and writes once in its own memory before the stage, in the same units."""
    launch: bool = True
    """Whether it pays the startup of its links: a kernel of its own. The first stage of a collective always does."""
    with_before: bool = False
    """Whether it runs together with the stage before it (pipelined), not after it."""


class Round(NamedTuple):
    """One step of a collective among members 0 .. n - 1 (member i is in node i // per_node): all its messages at once.

    ``src``, ``dst``, ``share``: arrays of one length; no pair occurs twice.
    """

    src: np.ndarray
    """int64: who sends."""
    dst: np.ndarray
    """int64: to whom."""
    share: np.ndarray
    """float64: the share of the vector of one member that each message carries."""
    repeat: int = 1
    """Times that the round is done, one after the other."""
    launch: bool = True
    """Whether it pays the startup of its links: a kernel of its own. The first round of a collective always does."""
    latencies: int = 1
    """Path latencies, of the slowest links it uses, that a repetition waits for: the depth of a pipelined tree."""
    messages: int | None = None
    """Messages that a device waits for in a repetition. None: as many as the busiest one sends."""


def staged(part: Any, messages: Messages, per_node: int, reverse: bool = False) -> list[list[Stage]]:
    """Return the stages of the all-to-all *part*, those that run together as one list; *reverse*: the way home.

    The way home has the same stages in reverse order; their traffic is not transposed, readers exchange the axes.
    """
    together: list[list[Stage]] = []
    for stage in part.stages(messages, per_node):
        if stage.with_before and together:
            together[-1].append(stage)
        else:
            together.append([stage])
    if not reverse:
        return together
    ends = [*(any(stage.launch for stage in stages) for stages in together[1:]), True]  # the launch after it is another
    return [[stage._replace(launch=end) for stage in stages] for stages, end in zip(together, ends, strict=True)][::-1]
