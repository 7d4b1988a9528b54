"""CSV of ExFlow: ``Expert,Node``, one row per expert of every layer, numbered ``layer * E + expert``; no replicas.

>>> import tempfile, pathlib
>>> from moesim.placement import Placement
>>> path = pathlib.Path(tempfile.mkdtemp()) / "p.csv"
>>> Exflow().write(Placement.from_device_of([[1, 0], [0, 1]], n_devices=2), path)
>>> path.read_text().split()
['Expert,Node', '0,1', '1,0', '2,0', '3,1']
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import ClassVar

import numpy as np

from moesim.placement.formats import _files, _slots
from moesim.placement.placement import Placement, PlacementError
from moesim.registry import part


@part
class Exflow:
    """``Node`` is a GPU, numbered node by node.

    Source: YJHMITWEB/ExFlow, solve_affinity.py (the CSV writer at its end, line ends of Python's csv module) and the
    files in its folder solutions. The file says neither E nor how many devices there are.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".csv",)

    def matches(self, path: Path) -> bool:
        """Say whether the file's name ends in ``.csv``."""
        return Path(path).suffix in self.suffixes

    def write(self, placement: Placement, path: str | Path) -> None:
        """Write *placement*, in the order of the numbers. Raises ``PlacementError`` if it has replicas."""
        _slots.check_equal(placement)
        copies = np.argwhere(placement.replicas.sum(axis=2) > 1)
        if len(copies):
            layer, expert = copies[0].tolist()
            raise PlacementError(f"layer {layer}, expert {expert}: has replicas, which ExFlow's file cannot say; place "
                                 "without replicas or choose another format")
        rows = [f"{number},{device}" for number, device in enumerate(placement.device_of.ravel().tolist())]
        _files.save(path, "".join(f"{row}\r\n" for row in ["Expert,Node", *rows]).encode(), self.suffixes)

    def read(self, path: str | Path, n_devices: int | None = None, n_experts: int | None = None) -> Placement:
        """Return the placement; devices left out go up to the largest in the file. Raises ``PlacementError``."""
        try:
            device_of = _device_of(list(csv.reader(_files.load_text(path).splitlines())))
            if n_experts is None:
                raise PlacementError(f"numbers {len(device_of)} experts through all layers and does not say how many a "
                                     "layer has; give n_experts (--experts)")
            if n_experts < 1 or len(device_of) % n_experts:
                raise PlacementError(f"{len(device_of)} experts are no whole layers of {n_experts}; correct n_experts, "
                                     "or the file is cut short")
            devices = int(device_of.max()) + 1 if n_devices is None else n_devices
            return Placement.from_device_of(device_of.reshape(-1, n_experts), devices)
        except (PlacementError, csv.Error) as error:
            raise PlacementError(f"{path}: {error}") from None


def _device_of(rows: list[list[str]]) -> np.ndarray:
    """Return the device of each numbered expert; every number up to the last occurs once."""
    if not rows or rows[0] != ["Expert", "Node"]:
        first = ",".join(rows[0]) if rows else ""
        raise PlacementError(f"begins with {first!r:.40}, not with Expert,Node; give what ExFlow's solve_affinity.py "
                             "writes")
    found: dict[int, int] = {}
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != 2 or not all(cell.isascii() and cell.isdigit() and len(cell) < 10 for cell in row):
            raise PlacementError(f"line {line}: {','.join(row)!r:.40} is not the number of an expert and of a device")
        expert, device = map(int, row)
        if expert in found or expert >= len(rows) - 1:
            why = "for the second time" if expert in found else f"but {len(rows) - 1} rows number from 0"
            raise PlacementError(f"line {line}: expert {expert} {why}; every expert has one row")
        if device > 1 << 16:
            raise PlacementError(f"line {line}: device {device}; devices are numbered from 0")
        found[expert] = device
    if not found:
        raise PlacementError("has no rows; every expert has one")
    return np.array([found[expert] for expert in range(len(found))])
