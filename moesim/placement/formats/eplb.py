"""Tensors of DeepSeek's EPLB as an npz archive: ``phy2log``, ``log2phy`` and ``logcnt``; ``.pt`` is read too.

>>> import tempfile, pathlib, numpy as np
>>> from moesim.placement import Placement
>>> path = pathlib.Path(tempfile.mkdtemp()) / "p.npz"
>>> Eplb().write(Placement([[[True, True], [True, False], [False, True]]]), path)
>>> {name: array.tolist() for name, array in np.load(path).items()}
{'phy2log': [[0, 1, 0, 2]], 'log2phy': [[[0, 2], [1, -1], [3, -1]]], 'logcnt': [[2, 1, 1]]}
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moesim.placement.formats import _files, _slots
from moesim.placement.placement import Placement, PlacementError
from moesim.registry import part

_NAMES = ("phy2log", "log2phy", "logcnt")


@part
class Eplb:
    """``fill``: copies may take slots left empty. All tensors are int64.

    phy2log [L, P] expert of each slot; log2phy [L, E, X] slots of each expert, ascending, -1 where it has fewer than
    the X of the most copied; logcnt [L, E] slots per expert. Source: deepseek-ai/EPLB (MIT), eplb.py,
    ``rebalance_experts``, which returns them in this order (its log2phy lists the copies in the order they were made).
    """

    fill: bool = False
    suffixes: ClassVar[tuple[str, ...]] = (".npz",)

    def matches(self, path: Path) -> bool:
        """Say whether *path* ends in ``.npz`` or is a ``.pt`` file with these names."""
        path = Path(path)
        return path.suffix == ".npz" or (path.suffix == ".pt" and _files.has_keys(path, set(_NAMES)))

    def write(self, placement: Placement, path: str | Path) -> None:
        """Write *placement*. Raises ``PlacementError``."""
        slots = _slots.slots_of(placement, self.fill)
        counts = _counts(slots, placement.n_experts)
        buffer = io.BytesIO()
        np.savez(buffer, phy2log=slots, log2phy=_slots_by_expert(slots, counts), logcnt=counts)
        _files.save(path, buffer.getvalue(), self.suffixes)

    def read(self, path: str | Path, n_devices: int | None = None, n_experts: int | None = None) -> Placement:
        """Return the placement; the three tensors must agree. Raises ``PlacementError``."""
        content = _files.load_torch(path) if Path(path).suffix == ".pt" else _files.load_numpy(path)
        try:
            held: dict[str, Any] = content if isinstance(content, dict) else {}
            missing = [name for name in _NAMES if not isinstance(held.get(name), np.ndarray)]
            if missing:
                raise PlacementError(f"lacks the tensor {missing[0]}; save phy2log, log2phy and logcnt by these names")
            slots, places, counts = (held[name] for name in _NAMES)
            if counts.ndim != 2 or 0 in counts.shape or n_experts not in (None, counts.shape[1]):
                raise PlacementError(f"logcnt has shape {list(counts.shape)}; it must be [layers, experts]"
                                     + (f" with {n_experts} experts" if n_experts else ""))
            placement = _slots.placement_of(slots, n_devices, counts.shape[1])
            _check_agreement(slots.astype(np.int64), places, counts)
            return placement
        except PlacementError as error:
            raise PlacementError(f"{path}: {error}") from None


def _counts(slots: np.ndarray, n_experts: int) -> np.ndarray:
    return np.stack([np.bincount(row, minlength=n_experts) for row in slots])


def _slots_by_expert(slots: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the slots of each expert, int64 [L, E, X], ascending and padded with -1."""
    order = np.argsort(slots, axis=1, kind="stable")
    present = np.arange(counts.max()) < counts[:, :, None]
    places = np.full(present.shape, -1)
    places[present] = order.ravel()
    return places


def _check_agreement(slots: np.ndarray, places: np.ndarray, counts: np.ndarray) -> None:
    right = _counts(slots, counts.shape[1]) if len(slots) == len(counts) else None
    if right is None or (right != counts).any():
        raise PlacementError("logcnt does not count the experts in phy2log; write both from one result")
    ours = np.sort(_slots_by_expert(slots, right), axis=2)
    theirs = np.sort(places, axis=2) if places.ndim == 3 and places.shape[:2] == counts.shape else None
    if theirs is not None:  # more columns than any expert needs are all -1
        extra = theirs.shape[2] - ours.shape[2]
        ours = np.pad(ours, ((0, 0), (0, 0), (max(extra, 0), 0)), constant_values=-1)
    if theirs is None or theirs.shape != ours.shape or (theirs != ours).any():
        raise PlacementError("log2phy names other slots than phy2log gives the experts; write both from one result")
