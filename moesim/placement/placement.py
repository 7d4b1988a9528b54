"""Where the experts are: a placement, its checks, its size per device and its file.

Letters: L MoE layers, E experts (of the largest layer), D devices. An expert has one replica or more; the replica on
the lowest-numbered device is its first.

>>> placement = Placement.from_device_of([[0, 0, 1, 1]], n_devices=2)
>>> placement.counts().tolist()
[[2, 2]]
"""

from __future__ import annotations

import dataclasses
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moesim import units, whole

VERSION = 1


class PlacementError(ValueError):
    """A placement, a placement problem or a placement file that cannot be."""


class CapacityError(PlacementError):
    """Experts that do not fit into a device."""


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """Hold which devices hold which expert; check it on construction.

    replicas  bool [L, E, D], read-only; every expert is on at least one device
    info      who made it and how good it is (JSON values): solver, seed, objective, status, ...
    sizes     int64 [L], the experts of each layer, read-only; left out, all have E. Of smaller layers the first count

    Raises ``PlacementError`` with layer, expert, fact and remedy.
    """

    replicas: np.ndarray
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    sizes: np.ndarray = None  # type: ignore[assignment]  # always an array once constructed

    def __post_init__(self) -> None:
        replicas = np.array(self.replicas)
        if replicas.dtype != bool or replicas.ndim != 3 or 0 in replicas.shape:
            raise PlacementError(f"replicas is {replicas.dtype} of shape {list(replicas.shape)}; give a bool array "
                                 "[layers, experts, devices] without empty axes, or use Placement.from_device_of")
        sizes = _checked_sizes(self.sizes, replicas.shape)
        there = np.arange(replicas.shape[1]) < sizes[:, None]
        surplus = np.argwhere(replicas.any(axis=2) & ~there)
        if len(surplus):
            layer, expert = surplus[0].tolist()
            raise PlacementError(f"layer {layer}, expert {expert}: is on a device, but this layer has {sizes[layer]} "
                                 "experts; correct sizes, or leave it out")
        orphans = np.argwhere(~replicas.any(axis=2) & there)
        if len(orphans):
            layer, expert = orphans[0].tolist()
            raise PlacementError(f"layer {layer}, expert {expert}: on no device ({len(orphans)} such experts); "
                                 "put every expert on at least one device")
        for name, array in (("replicas", replicas), ("sizes", sizes)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "info", _plain(dict(self.info)))

    @classmethod
    def from_device_of(cls, device_of: Any, n_devices: int, sizes: Any = None, **info: Any) -> Placement:
        """Return the placement with one replica per expert on the device ``device_of[layer, expert]``.

        What *device_of* says beyond the *sizes* of the layers (left out: all have E experts) is -1.
        """
        devices = np.asarray(device_of)
        if devices.ndim != 2 or not np.issubdtype(devices.dtype, np.integer):
            raise PlacementError(f"device_of is {devices.dtype} of shape {list(devices.shape)}; "
                                 "give device numbers [layers, experts]")
        absent = np.zeros(devices.shape, bool) if sizes is None else (
            np.arange(devices.shape[1]) >= _checked_sizes(sizes, devices.shape)[:, None])
        outside = np.argwhere(((devices < 0) | (devices >= n_devices)) & ~(absent & (devices == -1)))
        if len(outside):
            layer, expert = outside[0].tolist()
            raise PlacementError(f"layer {layer}, expert {expert}: on device {devices[layer, expert]}, "
                                 f"but the devices are 0..{n_devices - 1}")
        return cls(devices[:, :, None] == np.arange(n_devices), info, sizes)

    @property
    def n_layers(self) -> int:
        """Return L."""
        return self.replicas.shape[0]

    @property
    def n_experts(self) -> int:
        """Return E, the experts of the largest layer."""
        return self.replicas.shape[1]

    @property
    def n_devices(self) -> int:
        """Return D."""
        return self.replicas.shape[2]

    @cached_property
    def device_of(self) -> np.ndarray:
        """Return the device of each expert's first replica, int64 [L, E], read-only; -1 where there is no expert."""
        devices = np.where(self.replicas.any(axis=2), self.replicas.argmax(axis=2), -1)
        devices.setflags(write=False)
        return devices

    def counts(self) -> np.ndarray:
        """Return how many experts each device holds, replicas counted, int64 [L, D]."""
        return self.replicas.sum(axis=1, dtype=np.int64)

    def with_info(self, **info: Any) -> Placement:
        """Return the same placement with *info* added."""
        return dataclasses.replace(self, info=self.info | info)

    def device_bytes(self, expert_bytes: Any) -> np.ndarray:
        """Return the bytes of experts on each device, float64 [D]; *expert_bytes* is one number or one per layer."""
        return np.broadcast_to(np.asarray(expert_bytes, dtype=float), self.n_layers) @ self.counts()

    def check_capacity(self, expert_bytes: Any, capacity_bytes: Any) -> None:
        """Raise ``CapacityError`` if the experts of a device need more than it has.

        *expert_bytes* is one number or one per layer, *capacity_bytes* one number or one per device: what is
        left for routed experts after everything else.
        """
        demand = self.device_bytes(expert_bytes)
        bound = np.broadcast_to(np.asarray(capacity_bytes, dtype=float), self.n_devices)
        gap = demand - bound
        worst = int(gap.argmax())
        if gap[worst] <= 0:
            return
        size = [units.pretty(v, "byte", 4) for v in (demand[worst], bound[worst], gap[worst])]
        even = demand.sum() / self.n_devices <= bound.min()
        help_ = ("spread the experts evenly (they fit then)" if even
                 else f"use {_devices_needed(demand.sum(), bound)} devices of this kind or more")
        replicated = int(self.replicas.sum() - self.sizes.sum())
        help_ += f", drop some of the {replicated} extra replicas" if replicated else ""
        raise CapacityError(f"device {worst}: its {self.replicas[:, :, worst].sum()} experts need {size[0]}, "
                            f"it has {size[1]} for them, {size[2]} too little ({(gap > 0).sum()} of "
                            f"{self.n_devices} devices are over); {help_}, use a smaller dtype, or offload experts")

    def migration_bytes(self, other: Placement, expert_bytes: Any) -> float:
        """Return the bytes to copy for going from this placement to *other*: replicas that are new on their device."""
        if self.replicas.shape != other.replicas.shape:
            raise PlacementError(f"cannot migrate from [layers, experts, devices] {list(self.replicas.shape)} "
                                 f"to {list(other.replicas.shape)}: the shapes must be equal")
        new = (other.replicas & ~self.replicas).sum(axis=(1, 2))
        return float(np.broadcast_to(np.asarray(expert_bytes, dtype=float), self.n_layers) @ new)

    def save(self, path: str | Path) -> None:
        """Write the placement as JSON: ``devices[layer][expert]`` is a device, or a list of them if replicated."""
        rows = [[_short(np.flatnonzero(expert).tolist()) for expert in layer[:size]]
                for layer, size in zip(self.replicas, self.sizes, strict=True)]
        content = {"moesim_placement": VERSION, "n_devices": self.n_devices, "info": self.info, "devices": rows}
        if (self.sizes < self.n_experts).any():
            content["experts_per_layer"] = self.sizes.tolist()
        whole.file(Path(path), (json.dumps(content) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Placement:
        """Return the placement that ``save`` wrote. Raises ``PlacementError`` if the file is not one."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlacementError(f"{path}: {error.strerror or error}; give a file that Placement.save wrote") from error
        except ValueError as error:  # not UTF-8, or not JSON
            raise PlacementError(f"{path}: not JSON ({error}); give a file that Placement.save wrote") from error
        try:
            return _from_json(content)
        except PlacementError as error:
            raise PlacementError(f"{path}: {error}") from None


def _short(devices: list[int]) -> int | list[int]:
    return devices[0] if len(devices) == 1 else devices


def _from_json(content: Any) -> Placement:
    if not isinstance(content, dict) or content.get("moesim_placement") != VERSION:
        raise PlacementError(f"not a placement file: the key moesim_placement must be {VERSION}; an engine's file "
                             "becomes one by `moesim convert IN OUT --to moesim_json`")
    rows, n_devices, info = content.get("devices"), content.get("n_devices"), content.get("info", {})
    if not isinstance(n_devices, int) or n_devices < 1 or not isinstance(info, dict):
        raise PlacementError("n_devices must be a number above 0 and info a mapping")
    if not isinstance(rows, list) or not rows or any(not isinstance(row, list) or not row for row in rows):
        raise PlacementError("devices must be a list of layers, each a list with one entry per expert, all as long")
    sizes = [len(row) for row in rows]
    if sizes != content.get("experts_per_layer", sizes[:1] * len(rows)):
        raise PlacementError("devices must be a list of layers, each a list with one entry per expert, all as long "
                             "unless experts_per_layer says how long")
    replicas = np.zeros((len(rows), max(sizes), n_devices), dtype=bool)
    for layer, row in enumerate(rows):
        for expert, entry in enumerate(row):
            for device in entry if isinstance(entry, list) else [entry]:
                if type(device) is not int or not 0 <= device < n_devices:
                    raise PlacementError(f"layer {layer}, expert {expert}: device {device!r}, "
                                         f"but the devices are 0..{n_devices - 1}")
                replicas[layer, expert, device] = True
    return Placement(replicas, info, np.array(sizes))


def _checked_sizes(sizes: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return *sizes* as int64 [L], all E of *shape* (L, E, ...) if it is None."""
    if sizes is None:
        return np.full(shape[0], shape[1])
    found = np.array(sizes)
    if found.shape != shape[:1] or found.dtype.kind not in "iu" or found.min() < 1 or found.max() != shape[1]:
        raise PlacementError(f"sizes is {found.tolist()}; give the experts of each of {shape[0]} layers, above 0, the "
                             f"largest {shape[1]}")
    return found.astype(np.int64)


def _devices_needed(total_bytes: float, bound: np.ndarray) -> int | str:
    return int(np.ceil(total_bytes / bound.min())) if bound.min() > 0 else "more"


def _plain(value: Any) -> Any:
    """Return *value* with numpy scalars and arrays as Python values, so that JSON can hold it."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
