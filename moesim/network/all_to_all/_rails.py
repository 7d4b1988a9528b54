"""Matrices of devices seen as nodes and positions in them: (n, a) is position a of node n. A rail is one position."""

from __future__ import annotations

import numpy as np

from moesim.network.stages import Messages


def checked(messages: Messages, per_node: int) -> np.ndarray:
    """Return the copies as an array [..., D, D]. Raises ``ValueError`` if they do not fill nodes of *per_node*."""
    copies = np.asarray(messages.copies)
    if copies.ndim < 2 or copies.shape[-1] != copies.shape[-2]:
        raise ValueError(f"copies have the shape {copies.shape}; the last two axes must both be the devices")
    if per_node < 1 or copies.shape[-1] % per_node:
        raise ValueError(f"{copies.shape[-1]} devices do not fill nodes of {per_node}; take a divisor as per_node")
    return copies


def by_node(messages: Messages, per_node: int) -> np.ndarray:
    """Return the copies as [..., node, position, node, position]. Raises ``ValueError`` as ``checked``."""
    copies = checked(messages, per_node)
    nodes = copies.shape[-1] // per_node
    return copies.reshape(*copies.shape[:-2], nodes, per_node, nodes, per_node)


def summed(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the sum over *axis* in the type of *array*: int32 counts stay int32."""
    return array.sum(axis=axis, dtype=array.dtype)


def inside(block: np.ndarray) -> np.ndarray:
    """Return *block* [..., node, from position, to position] as traffic [..., D, D] that stays in its node."""
    *batch, nodes, per_node, _ = block.shape
    traffic = np.zeros((*batch, nodes, per_node, nodes, per_node), block.dtype)
    np.einsum("...nanb->...nab", traffic)[...] = block  # a view of the blocks on the diagonal
    return traffic.reshape(*batch, nodes * per_node, nodes * per_node)


def across(block: np.ndarray) -> np.ndarray:
    """Return *block* [..., from node, to node, position] as traffic [..., D, D] between equal positions."""
    *batch, nodes, _, per_node = block.shape
    traffic = np.zeros((*batch, nodes, per_node, nodes, per_node), block.dtype)
    np.einsum("...naka->...nka", traffic)[...] = block  # a view of the entries between equal positions
    return traffic.reshape(*batch, nodes * per_node, nodes * per_node)


def near_then_far(messages: Messages, per_node: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the traffic of two stages: to the position of the destination inside the node, then along that rail."""
    sent = by_node(messages, per_node)
    return inside(summed(sent, -2)), across(summed(sent, -3))


def fan_out(messages: Messages, per_node: int) -> np.ndarray:
    """Return the traffic inside nodes when all has come to the position of its source in the node it is bound for."""
    return inside(summed(by_node(messages, per_node), -4).swapaxes(-3, -2))
