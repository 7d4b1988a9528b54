"""JSON for SGLang's ``--init-expert-location``: ``physical_to_logical_map``, a row for every layer of the model.

The file has no other key, because SGLang passes all keys on as arguments. Layers without experts have a row too:

>>> import tempfile, pathlib
>>> from moesim.placement import Placement
>>> path = pathlib.Path(tempfile.mkdtemp()) / "p.json"
>>> Sglang(layers=(1,)).write(Placement.from_device_of([[1, 0, 1, 0]], n_devices=2), path)
>>> path.read_text().split()
['{"physical_to_logical_map":', '[', '[0,1,2,3],', '[1,3,0,2]', ']}']
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from moesim.placement.formats import _files, _slots
from moesim.placement.placement import Placement, PlacementError
from moesim.registry import part

_MAP, _COUNTS = "physical_to_logical_map", "logical_count"


@part
class Sglang:
    """``layers``: those of the model that have experts (left out: what the placement's info says).

    ``hidden_layers``: all layers of the model (left out: up to the last with experts). ``fill``: copies may take
    slots left empty. The file does not say how many devices there are: SGLang's ``--ep-size`` does, and
    ``--ep-num-redundant-experts`` must be slots minus experts. Source: sgl-project/sglang (Apache-2.0),
    python/sglang/srt/eplb/expert_location.py, ``compute_initial_expert_location_metadata``, ``init_by_mapping``,
    ``init_trivial``; models/deepseek_v2.py gives ``num_layers=config.num_hidden_layers``.
    """

    layers: tuple[int, ...] | None = None
    hidden_layers: int | None = Field(default=None, ge=1)
    fill: bool = False
    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    def matches(self, path: Path) -> bool:
        """Say whether *path* is JSON or a ``.pt`` file with one of SGLang's keys."""
        return _files.has_keys(Path(path), {_MAP, _COUNTS})

    def write(self, placement: Placement, path: str | Path) -> None:
        """Write *placement*; layers without experts get SGLang's trivial row. Raises ``PlacementError``."""
        layers = _slots.moe_layers(placement, self.layers)
        slots = _slots.slots_of(placement, self.fill)
        n_layers = layers[-1] + 1 if self.hidden_layers is None else self.hidden_layers
        if layers[-1] >= n_layers:
            raise PlacementError(f"layer {layers[-1]} has experts, but hidden_layers is {n_layers}; raise it")
        rows = np.tile(np.arange(slots.shape[1]) % placement.n_experts, (n_layers, 1))
        rows[layers] = slots
        text = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows.tolist())
        _files.save(path, f'{{"{_MAP}": [\n{text}\n]}}\n'.encode(), self.suffixes)

    def read(self, path: str | Path, n_devices: int | None = None, n_experts: int | None = None) -> Placement:
        """Return the placement in the rows ``layers`` (left out: in all). Raises ``PlacementError``."""
        path = Path(path)
        content = _files.load_torch(path) if path.suffix == ".pt" else _files.load_json(path)
        try:
            rows = _rows(content)
            layers = list(range(len(rows)) if self.layers is None else self.layers)
            if not set(layers) <= set(range(len(rows))):
                raise PlacementError(f"layers names layer {max(layers)}, but the file has {len(rows)} rows")
            _slots.checked_layers(layers, len(layers))
            chosen = rows[layers] if isinstance(rows, np.ndarray) else [rows[layer] for layer in layers]
            return _slots.placement_of(chosen, n_devices, n_experts, **{_slots.KEY: layers})
        except PlacementError as error:
            raise PlacementError(f"{path}: {error}") from None


def _rows(content: object) -> list | np.ndarray:
    if isinstance(content, dict) and _MAP in content:
        rows = content[_MAP]
        if isinstance(rows, list) or (isinstance(rows, np.ndarray) and rows.ndim == 2):
            return rows
        raise PlacementError(f"{_MAP} must be a list of rows, one per layer")
    if isinstance(content, dict) and _COUNTS in content:
        raise PlacementError(f"holds {_COUNTS}, tokens per expert, from which SGLang makes a placement itself; read it "
                             "with moesim.placement.read_counts and place it")
    raise PlacementError(f"has no key {_MAP}; give what --init-expert-location takes")
