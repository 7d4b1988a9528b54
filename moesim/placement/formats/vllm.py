"""JSON or npy array ``[MoE layer, slot]`` of experts: the ``physical_to_logical_map`` of vLLM's load balancer.

>>> import tempfile, pathlib
>>> from moesim.placement import Placement
>>> path = pathlib.Path(tempfile.mkdtemp()) / "p.json"
>>> Vllm().write(Placement([[[True, True], [True, False], [False, True]]]), path)
>>> path.read_text().split()
['[', '[0,1,0,2]', ']']
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import ClassVar

import numpy as np

from moesim.placement.formats import _files, _slots
from moesim.placement.placement import Placement, PlacementError
from moesim.registry import part


@part
class Vllm:
    """``fill``: copies may take slots left empty. Layers without experts have no row.

    Source: vllm-project/vllm (Apache-2.0), vllm/distributed/eplb/eplb_state.py, ``physical_to_logical_map`` of shape
    (num_moe_layers, num_physical_experts), which a policy's ``rebalance_experts`` returns as an int array (the npy
    file). No release loads a placement from a file; the JSON file is the one of ``eplb_config.initial_expert_map_path``
    as proposed in pull request 49572 (open in July 2026).
    ``num_redundant_experts`` must be slots minus experts.
    """

    fill: bool = False
    suffixes: ClassVar[tuple[str, ...]] = (".json", ".npy")

    def matches(self, path: Path) -> bool:
        """Say whether *path* is an ``.npy`` file or a JSON list."""
        path = Path(path)
        return path.suffix == ".npy" or (path.suffix == ".json" and isinstance(_files.load_json(path), list))

    def write(self, placement: Placement, path: str | Path) -> None:
        """Write *placement*; as an int64 array if *path* ends in ``.npy``. Raises ``PlacementError``."""
        slots = _slots.slots_of(placement, self.fill)
        if Path(path).suffix == ".npy":
            buffer = io.BytesIO()
            np.save(buffer, slots)
            content = buffer.getvalue()
        else:
            rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in slots.tolist())
            content = f"[\n{rows}\n]\n".encode()
        _files.save(path, content, self.suffixes)

    def read(self, path: str | Path, n_devices: int | None = None, n_experts: int | None = None) -> Placement:
        """Return the placement. Raises ``PlacementError``."""
        rows = _files.load_numpy(path) if Path(path).suffix == ".npy" else _files.load_json(path)
        if isinstance(rows, list) and rows and all(type(expert) is int for expert in rows):
            raise PlacementError(f"{path}: is one list for all layers and does not say how many there are; write it "
                                 "once for every layer: [[...], [...]]")
        try:
            return _slots.placement_of(rows, n_devices, n_experts)
        except PlacementError as error:
            raise PlacementError(f"{path}: {error}") from None
