"""JSON of moesim: devices of every expert, and who placed them; the only file that says all by itself.

>>> import tempfile, pathlib
>>> from moesim.placement import Placement
>>> path = pathlib.Path(tempfile.mkdtemp()) / "p.json"
>>> MoesimJson().write(Placement.from_device_of([[0, 0, 1]], n_devices=2), path)
>>> MoesimJson().read(path).device_of.tolist()
[[0, 0, 1]]
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from moesim.placement.formats import _files
from moesim.placement.placement import Placement, PlacementError
from moesim.registry import part


@part
class MoesimJson:
    """What ``Placement.save`` writes and a scenario's ``placement.path`` names."""

    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    def matches(self, path: Path) -> bool:
        """Say whether *path* is a JSON mapping with the key ``moesim_placement``."""
        return Path(path).suffix == ".json" and _files.has_keys(Path(path), {"moesim_placement"})

    def write(self, placement: Placement, path: str | Path) -> None:
        """Write *placement* with its info."""
        if Path(path).suffix not in self.suffixes:
            raise PlacementError(f"{path}: the name of this format's files ends in .json; rename it")
        placement.save(path)

    def read(self, path: str | Path, n_devices: int | None = None, n_experts: int | None = None) -> Placement:
        """Return the placement; the numbers, if given, must be those of the file. Raises ``PlacementError``."""
        placement = Placement.load(path)
        for what, given, held in (("devices", n_devices, placement.n_devices),
                                  ("experts", n_experts, placement.n_experts)):
            if given not in (None, held):
                raise PlacementError(f"{path}: is for {held} {what}, not {given}; leave the number out")
        return placement
