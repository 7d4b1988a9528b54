"""Placement files of any format: which one a file is, and which one a name asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim import registry
from moesim.placement.placement import Placement, PlacementError

_KIND, _OWN = "placement_format", "moesim_json"


def write_placement(placement: Placement, path: str | Path, format: Any = None) -> None:
    """Write *placement* to *path*; *format* is a part of kind ``placement_format``, left out by the file's suffix.

    ``.json`` is moesim's own form then. A file that cannot say what the placement says is refused; an existing file
    is replaced only when the new one is complete. Raises ``PlacementError`` or ``registry.UnknownPart``.
    """
    path = Path(path)
    if format is None:
        known = {name: registry.make(_KIND, name).suffixes for name in registry.names(_KIND)}
        fitting = [name for name, suffixes in known.items() if path.suffix in suffixes]
        if not fitting:
            ends = ", ".join(sorted({suffix for suffixes in known.values() for suffix in suffixes}))
            raise PlacementError(f"{path}: no placement format ends in {path.suffix!r}; end it in {ends}")
        format = _OWN if _OWN in fitting else fitting[0]
        if len(fitting) > 1 and format != _OWN:
            raise PlacementError(f"{path}: {' and '.join(fitting)} write such files; name one with format=...")
    registry.make(_KIND, format).write(placement, path)


def read_placement(path: str | Path, n_devices: int | None = None, format: Any = None,
                   n_experts: int | None = None) -> Placement:
    """Return the placement in *path*; *format* left out is found from the file.

    Files of engines say which expert is in each slot, not how many devices share the slots: give *n_devices*.
    *n_experts* (per layer) is needed for ExFlow's file only. Raises ``PlacementError`` or ``registry.UnknownPart``.
    """
    path = Path(path)
    if not path.is_file():
        raise PlacementError(f"{path}: no such file{registry.near_files(path)}")
    if format is not None:
        return registry.make(_KIND, format).read(path, n_devices, n_experts)
    parts = [registry.make(_KIND, name) for name in registry.names(_KIND)]
    fitting = [part for part in parts if part.matches(path)]
    if len(fitting) != 1:
        names = ", ".join(registry.names(_KIND))
        raise PlacementError(f"{path}: {'several' if fitting else 'no'} placement formats fit this file; name one with "
                             f"format=... ({names})")
    return fitting[0].read(path, n_devices, n_experts)
