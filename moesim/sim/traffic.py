"""What the collectives of a step send, worked out only where one may share its links with another.

Every function keeps what the closed form has counted and gives its flows on demand: by layer, and by the first device
of those that take part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moesim import registry
from moesim.network import Messages, Network
from moesim.network.network import title
from moesim.network.play import Act
from moesim.network.play import exchange as exchange_acts
from moesim.network.play import reduction as reduction_acts

NamedAct = tuple[str, Act]  # the collective whose constants count, and what is sent


class Traffic(NamedTuple):
    """What a phase sends, by layer and first device: ``loads`` [links] in bytes, ``acts`` one after the other."""

    loads: Callable[[int, int], np.ndarray]
    acts: Callable[[int, int], list[NamedAct]]


def named(name: str, acts: list[Act]) -> list[NamedAct]:
    """Return *acts* of the collective *name*; the first pays the startup whatever it says, acts of nothing drop out."""
    acts = [act for act in acts if len(act.src) or act.copied_s]
    return [(name, act._replace(launch=act.launch or i == 0)) for i, act in enumerate(acts)]


def of_exchange(network: Network, part: Any, messages: Messages, size: float, reverse: bool,
                places: tuple[np.ndarray, np.ndarray]) -> Traffic:
    """Return the traffic of *messages* times *size* bytes; *places*: layers [M] and loads [M, links] of its rows."""
    part, (layers, loads) = registry.make("all_to_all", part), places
    row = {int(layer): i for i, layer in enumerate(layers)}

    def acts(layer: int, first: int) -> list[NamedAct]:
        one = messages._replace(copies=messages.copies[row[layer]])
        if one.node_copies is not None:
            one = one._replace(node_copies=one.node_copies[row[layer]])
        return named(title(part, reverse), exchange_acts(network, part, one, size, reverse))

    return Traffic(lambda layer, first: loads[row[layer]], acts)


def of_reduction(network: Network, size: np.ndarray, width: int, loads: np.ndarray) -> Traffic:
    """Return the all-reduces of groups of *width* devices, each by itself: *size* [G] bytes, *loads* [G, links]."""
    groups = np.arange(len(size))

    def acts(layer: int, first: int) -> list[NamedAct]:
        found = []
        for act in reduction_acts(network, np.where(groups == first // width, size, 0.0), width):
            mine = act.size > 0
            found.append(act._replace(src=act.src[mine], dst=act.dst[mine], size=act.size[mine]))
        return named("all_reduce", found)

    return Traffic(lambda layer, first: loads[first // width], acts)


def of_gather(network: Network, sent: np.ndarray, loads: np.ndarray) -> Traffic:
    """Return the traffic of ``Network.all_gather`` of *sent* [D] bytes, which puts *loads* [links] on the network."""
    nodes, per_node, n = network.nodes, network.devices_per_node, network.n_devices
    held, device = np.reshape(sent, (nodes, per_node)).astype(np.float64), np.arange(n)
    position = held.sum(axis=0, keepdims=True)
    across = (position - np.roll(held, -1, axis=0), (device + per_node) % n, nodes - 1)
    inside = (position.sum() - np.roll(np.broadcast_to(position, held.shape), -1, axis=1),
              device // per_node * per_node + (device + 1) % per_node, per_node - 1)
    found = []
    for size, target, rounds in (across, inside):
        some = (size.ravel() > 0) & (target != device)
        found.append(Act(device[some], target[some], size.ravel()[some], latencies=rounds, messages=rounds))
    return Traffic(lambda layer, first: loads, lambda layer, first: named("all_gather", found))
