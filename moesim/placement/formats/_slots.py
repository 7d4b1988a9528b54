"""Slots: the numbered places for experts that engines know, device by device; a placement as slots and back.

Letters: L MoE layers, E experts, D devices, P slots of a layer (all devices). Slot p is on device ``p // (P / D)``.

>>> from moesim.placement import Placement
>>> placement = Placement.from_device_of([[1, 0, 1, 0]], n_devices=2)
>>> slots_of(placement, fill=False).tolist()
[[1, 3, 0, 2]]
>>> placement_of([[1, 3, 0, 2]], n_devices=2).device_of.tolist()
[[1, 0, 1, 0]]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.placement.placement import Placement, PlacementError

KEY = "moe_layer_indices"  # of Placement.info: the layers of the model that the placement's layers are


def slots_of(placement: Placement, fill: bool) -> np.ndarray:
    """Return the expert in each slot, int64 [L, P]: a device's experts ascending, then copies in slots left empty.

    Copies are made with *fill* only, of experts that are on this device alone where it has some: engines split an
    expert's tokens over its slots, so a second slot on one device would draw tokens away from other devices. Raises
    ``PlacementError`` if devices are unequal and may not, or cannot, be filled.
    """
    check_equal(placement)
    counts = placement.counts()
    per_device = int(counts.max())
    short = np.argwhere(counts < per_device)
    if not len(short):
        layer, _, expert = np.nonzero(placement.replicas.transpose(0, 2, 1))
        return expert.reshape(placement.n_layers, -1)
    layer, device = short[0].tolist()
    if not fill:
        raise PlacementError(f"layer {layer}, device {device}: holds {counts[layer, device]} experts, others "
                             f"{per_device}, but engines have equally many slots everywhere; place equally many, or "
                             "let copies of a device's own experts take its empty slots: {name: ..., fill: true}")
    slots = np.empty((placement.n_layers, placement.n_devices, per_device), dtype=np.int64)
    for layer, device in np.ndindex(counts.shape):
        own = np.flatnonzero(placement.replicas[layer, :, device])
        if not len(own):
            raise PlacementError(f"layer {layer}, device {device}: holds no expert, so there is none to fill its "
                                 f"{per_device} slots with; place at least one expert of every layer on it")
        alone = own[placement.replicas[layer, own].sum(axis=1) == 1]
        slots[layer, device] = np.append(own, np.resize(alone if len(alone) else own, per_device - len(own)))
    return slots.reshape(placement.n_layers, -1)


def check_equal(placement: Placement) -> None:
    """Raise ``PlacementError`` if layers have different numbers of experts: files of engines know one number."""
    sizes = placement.sizes
    if (other := np.flatnonzero(sizes != sizes[0])).size:
        raise PlacementError(f"layer {other[0]}: has {sizes[other[0]]} experts, layer 0 has {sizes[0]}; files of "
                             "engines know one number for all layers: write moesim_json")


def placement_of(rows: Any, n_devices: int | None, n_experts: int | None = None, **info: Any) -> Placement:
    """Return the placement whose slots are *rows* [L, P]; experts are 0 to the largest named unless *n_experts* is.

    Raises ``PlacementError`` if the rows are not whole numbers of that shape, if a number is no expert, or if an
    expert is in no slot.
    """
    slots = _matrix(rows)
    n_layers, n_slots = slots.shape
    if n_devices is None:
        raise PlacementError(f"the file says which expert is in each of {n_slots} slots but not how many devices "
                             "share them; give n_devices (--devices)")
    if n_devices < 1 or n_slots % n_devices:
        raise PlacementError(f"{n_slots} slots do not divide over {n_devices} devices; give the number it is for")
    bound = n_slots if n_experts is None else n_experts
    outside = np.argwhere((slots < 0) | (slots >= bound))
    if len(outside):
        layer, slot = outside[0].tolist()
        why = f"{n_slots} slots hold at most as many experts" if n_experts is None else f"n_experts is {n_experts}"
        raise PlacementError(f"layer {layer}, slot {slot}: expert {slots[layer, slot]}, but ids go from 0 to "
                             f"{bound - 1} ({why}); correct the file")
    replicas = np.zeros((n_layers, int(slots.max()) + 1 if n_experts is None else n_experts, n_devices), dtype=bool)
    device = np.arange(n_slots) // (n_slots // n_devices)
    replicas[np.arange(n_layers)[:, None], slots, device] = True
    return Placement(replicas, info)


def _matrix(rows: Any) -> np.ndarray:
    if isinstance(rows, np.ndarray):
        slots = rows
    else:
        if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
            raise PlacementError("the map must be a list of layers, each a list of the experts in its slots")
        for layer, row in enumerate(rows):
            if len(row) != len(rows[0]):
                raise PlacementError(f"layer {layer}: has {len(row)} slots, layer 0 has {len(rows[0])}; all layers "
                                     "have equally many")
            bad = [expert for expert in row if type(expert) is not int or not -1 << 62 < expert < 1 << 62]
            if bad:
                raise PlacementError(f"layer {layer}: {bad[0]!r:.40} is no expert; ids are whole numbers from 0")
        slots = np.array(rows)
    if slots.ndim != 2 or slots.dtype.kind not in "iu" or 0 in slots.shape:
        raise PlacementError(f"the map is {slots.dtype} of shape {list(slots.shape)}; it must be whole numbers "
                             "[layers, slots]")
    return slots.astype(np.int64)


def moe_layers(placement: Placement, layers: tuple[int, ...] | None) -> list[int]:
    """Return which layers of the model the placement's layers are: *layers*, else what its info says.

    Raises ``PlacementError`` if neither says it, or as many as the placement has and ascending.
    """
    found = list(placement.info.get(KEY) or ()) if layers is None else list(layers)
    if not found:
        raise PlacementError(f"the file counts all layers of the model, but nothing says which {placement.n_layers} of "
                             "them have the experts placed here; give them: {name: ..., layers: [3, 4, ...]}")
    return checked_layers(found, placement.n_layers)


def checked_layers(layers: list[int], n_layers: int) -> list[int]:
    """Return *layers* if they are *n_layers* ascending numbers. Raises ``PlacementError``."""
    if len(layers) != n_layers:
        raise PlacementError(f"layers names {len(layers)} layers of the model, {n_layers} are placed; name each once")
    if any(type(layer) is not int or layer < 0 for layer in layers) or sorted(set(layers)) != layers:
        raise PlacementError(f"layers is {layers[:6]}...; they must be numbers from 0, ascending, each once")
    return layers
