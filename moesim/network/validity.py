"""Where a fluid model of the network is known to be wrong, and by how much: notes for the result of a run.

Both regimes were measured once, packet by packet, on all-to-alls (docs/background/network.md). What keeps senders from
overrunning links is the ``transport``: "paced" is what the model is for, and never noted.

>>> from moesim.network import LeafSpine
>>> links = LeafSpine(leaves=2, spines=2, hosts_per_leaf=2).links()
>>> load = np.where(links["name"].str.contains("spine0"), 2e6, 1e6)
>>> notes("pfc_only", links.assign(load_bytes=load), senders=2)[0][:68]
'network: flows collide (busiest leaf_down link 1.33 times the mean) '
>>> notes("paced", links.assign(load_bytes=load), senders=400)
[]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moesim import registry
from moesim.network.stages import Messages, staged

TRANSPORTS = ("paced", "pfc_only", "sender_window")
EVEN = 1.02  # max / mean of link loads up to which paths count as even: dealt flows differ by a rounding at most
SENDERS = 31  # to one port at a time: the most that agreed with sender windows at packet level (2 to 4 %); 255 did not
_PORTS = ("nic_out", "nic_in", "scale_up_out", "scale_up_in")


def notes(transport: str, links: pd.DataFrame, senders: int) -> list[str]:
    """Return a note for each regime that the run is in and the model is not valid for.

    *links*: table of links with ``load_bytes``; *senders*: the most flows that arrive at one port at a time. Raises
    ``ValueError`` for an unknown transport.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"transport is {transport!r}; choose one of {', '.join(TRANSPORTS)}")
    found = []
    worst, name = collision(links)
    if transport == "pfc_only" and worst > EVEN:
        found.append(f"network: flows collide (busiest {name} link {worst:.2f} times the mean) and pause frames are "
                     "all that stops senders: paused links also stop flows that do not cross the collision. Packet by "
                     "packet such all-to-alls took 9 % longer than said at 1.25 times the mean, 28 % at 1.54")
    if transport == "sender_window" and senders > SENDERS:
        found.append(f"network: {senders} senders to one port at a time, each free to send a window: packets are "
                     "dropped and sent again. Packet by packet 255 senders of 62.5 KB took 54 to 88 % longer than "
                     f"said; up to {SENDERS} senders of 1 MiB were right to 4 %")
    return found


def collision(links: pd.DataFrame) -> tuple[float, str]:
    """Return max / mean of the load of the most uneven class of *links* between switches, and the class."""
    inside = links[~links["class"].isin(_PORTS) & links["alive"]]
    ratios: dict[Any, float] = {}
    for name, load in inside.groupby("class")["load_bytes"]:
        if load.max() > 0:
            ratios[name] = float(load.max() / load.mean())
    worst = max(ratios, key=lambda name: ratios[name], default="")
    return (ratios[worst], str(worst)) if ratios else (1.0, "")


def senders_at_once(flows: pd.DataFrame) -> int:
    """Return the most of *flows* (src, dst, start_s, finish_s) that are under way to one destination at a time."""
    most = 0
    for _, group in flows.groupby("dst"):
        start, end = np.sort(group["start_s"].to_numpy()), np.sort(group["finish_s"].to_numpy())
        under_way = np.arange(1, len(start) + 1) - np.searchsorted(end, start, side="right")
        most = max(most, int(under_way.max()))
    return most


def senders(network: Any, part: Any) -> int:
    """Return how many devices of other nodes send to one port at a time when all devices exchange by *part*."""
    every = Messages(np.ones((network.n_devices,) * 2), np.ones((network.n_devices, network.nodes)), 1)
    node = network.node_of(np.arange(network.n_devices))
    most = 0
    for stages in staged(registry.make("all_to_all", part), every, network.devices_per_node):
        sent = sum(np.asarray(stage.traffic) for stage in stages) > 0
        most = max(most, int((sent & (node[:, None] != node)).sum(axis=0).max()))
    return most
